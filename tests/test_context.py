"""Segments in context: what is masked is told from its neighbours, and padding does not matter."""

import math

import pytest
import torch
from test_comat import METHODS, batch, every_method

from nemo_comat import CompressAlignTransfer
from nemo_comat.transfer import Context, segment_mask

DIM, BLANK, WIDTH = 8, 5, 6


def network(mask=0.15, layers=2, dim=8, heads=2):
    """One that has begun to learn: its last layer is not zero."""
    torch.manual_seed(0)
    context = Context(dim, layers, heads=heads, mask=mask)
    torch.nn.init.normal_(context.head.weight)
    return context


def build(methods=METHODS[0], layer_weights=(1.0,), **context):
    torch.manual_seed(0)
    return CompressAlignTransfer(
        DIM,
        BLANK,
        compress={"method": methods[0]},
        align={"method": methods[1]},
        projection={"dim": WIDTH},
        transfer={},
        layer_weights=layer_weights,
        context=context,
    )


def learning(module):
    torch.nn.init.normal_(module.context.head.weight)
    return module


# --- the network ---


def test_it_begins_as_nothing_but_its_masks():
    segments, seg_len = torch.randn(2, 6, 8), torch.tensor([6, 4])
    context = Context(8, 2, heads=2, mask=0.5)
    out = context(segments, seg_len, seed=3)
    valid = torch.arange(6) < seg_len[:, None]
    drawn = segment_mask(valid, 0.5, 3)
    assert drawn.any() and not drawn.equal(valid)
    assert out[valid & ~drawn].equal(segments[valid & ~drawn]) and (out[~valid] == 0).all()
    assert (out[drawn] == context.masked).all()


def test_one_layer_of_one_head_is_attention_by_hand():
    context = network(mask=0.0, layers=1, dim=2, heads=1).double()
    x = torch.randn(1, 3, 2, dtype=torch.float64)
    layer = context.encoder.layers[0]

    def norm(rows, of):
        rows = rows - rows.mean(-1, keepdim=True)
        return rows / (rows.square().mean(-1, keepdim=True) + of.eps).sqrt() * of.weight + of.bias

    def linear(rows, of):
        return rows @ of.weight.T + of.bias

    angle = torch.arange(3, dtype=torch.float64)
    read = norm(x[0], context.norm) + torch.stack([angle.sin(), angle.cos()], -1)
    inside = norm(read, layer.norm1) @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias
    query, key, value = inside.split(2, -1)
    read = read + linear((query @ key.T / math.sqrt(2)).softmax(-1) @ value, layer.self_attn.out_proj)
    hidden = linear(norm(read, layer.norm2), layer.linear1)
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    read = read + linear(gelu, layer.linear2)
    expected = x[0] + linear(norm(read, context.encoder.norm), context.head)
    torch.testing.assert_close(context(x, torch.tensor([3]))[0].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_masked_segment_is_told_from_its_neighbours_alone():
    context, seg_len = network(mask=0.5), torch.tensor([6])
    segments = torch.randn(1, 6, 8, requires_grad=True)
    drawn = segment_mask(torch.ones(1, 6, dtype=torch.bool), 0.5, 1)[0]
    assert 0 < drawn.sum() < 6
    place = int(drawn.nonzero()[0])
    (grad,) = torch.autograd.grad(context(segments, seg_len, seed=1)[0, place].square().sum(), segments)
    assert (grad[0][drawn] == 0).all() and (grad[0][~drawn].abs().sum(-1) > 0).all()


def test_order_counts():
    context, segments = network(mask=0.0), torch.randn(1, 4, 8)
    out = context(segments, torch.tensor([4]))
    turned = context(segments.flip(1), torch.tensor([4])).flip(1)
    assert not turned.allclose(out, atol=1e-2)


@pytest.mark.parametrize("padding", [0.0, 3.0, float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_padding_does_not_matter(padding, training):
    context, seg_len = network(mask=0.3).train(training), torch.tensor([4, 2])
    segments = torch.randn(2, 4, 8)
    longer = torch.cat([segments, torch.full((2, 3, 8), padding)], 1).requires_grad_()
    out = context(longer, seg_len, seed=5)
    torch.testing.assert_close(out[:, :4], context(segments, seg_len, seed=5))
    assert (out[:, 4:] == 0).all()
    out.sum().backward()
    assert longer.grad.isfinite().all() and (longer.grad[:, 4:] == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(context(longer, seg_len, seed=5), out.detach())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_rows_of_nothing_and_of_what_is_not_finite_give_finite_gradients(poison):
    context, seg_len = network(mask=0.0), torch.tensor([3, 0, 3, 3])
    segments = torch.randn(4, 3, 8)
    segments[1], segments[2], segments[3, 1] = poison, poison, poison
    segments.requires_grad_()
    out = context(segments, seg_len)
    assert out.isfinite().all() and (out[1:3] == 0).all() and (out[3, 1] == 0).all()
    torch.testing.assert_close(out[0], context(segments[:1], seg_len[:1])[0])
    out.sum().backward()
    assert segments.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in context.parameters())


def test_no_segment_at_all_gives_gradients_of_0():
    context = network()
    context(torch.zeros(2, 0, 8), torch.tensor([0, 0])).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in context.parameters())


def test_masks_are_drawn_by_seed_and_leave_other_random_numbers_alone():
    context, segments, seg_len = network(mask=0.5), torch.randn(2, 9, 8), torch.tensor([9, 7])
    before = torch.get_rng_state()
    one, again, other = (context(segments, seg_len, seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert one.equal(again) and not one.equal(other)


def test_only_in_training_something_is_masked():
    context, segments, seg_len = network(mask=0.9).eval(), torch.randn(2, 9, 8), torch.tensor([9, 7])
    unmasked = network(mask=0.0)
    torch.testing.assert_close(context(segments, seg_len), unmasked(segments, seg_len))


def test_the_share_of_masks():
    valid = torch.arange(400) < torch.tensor([400, 300, 0])[:, None]
    drawn = segment_mask(valid, 0.15, 0)
    assert not drawn[~valid].any() and drawn.sum().item() / 700 == pytest.approx(0.15, abs=0.04)
    assert not segment_mask(valid, 0.0, 0).any() and segment_mask(valid, 1.0, 0).equal(valid)
    assert segment_mask(valid[:, :300], 0.15, 0).equal(drawn[:, :300] & valid[:, :300])


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="context.heads must divide the projection's width 6; got 4"):
        build(layers=1, heads=4)


# --- in the method ---


def test_without_layers_nothing_is_built_and_nothing_changes():
    plain, none = build(), build(layers=0, heads=4, mask=0.15)
    assert none.context is None and plain.state_dict().keys() == none.state_dict().keys()
    assert plain(*batch()).loss.equal(none(*batch()).loss)


def test_the_first_weights_of_the_projection_are_those_of_before():
    projected, plain = build(layers=1, heads=2), build()
    assert all(projected.state_dict()[key].equal(value) for key, value in plain.state_dict().items())


@every_method
def test_the_alignment_does_not_see_it(methods):
    plain, module = build(methods), learning(build(methods, layers=1, heads=2, mask=0.5))
    out, expected = module(*batch(), seed=2), plain(*batch())
    assert out.path.equal(expected.path) and out.active.equal(expected.active)
    torch.testing.assert_close(out.score, expected.score, equal_nan=True)
    assert not out.loss.allclose(expected.loss)
    assert out.loss.equal(module(*batch(), seed=2).loss) and not out.loss.equal(module(*batch(), seed=7).loss)


@every_method
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_harms_no_other(methods, poison):
    args, module = batch(), learning(build(methods, layers=1, heads=2, mask=0.3))
    clean = module(*args)
    args[0].data[1, 3:15] = poison
    out = module(*args)
    keep = torch.tensor([0, 2, 3, 4])
    torch.testing.assert_close(out.loss[keep], clean.loss[keep])
    assert out.loss[1] == 0 and not out.active[1]
    out.loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert args[0].grad.isfinite().all() and (args[0].grad[1] == 0).all()


@every_method
def test_padding_changes_nothing(methods):
    hidden, frame_len, log_probs, targets, target_len, teacher = batch()
    module = learning(build(methods, layers=1, heads=2, mask=0.3))
    plain = module(hidden, frame_len, log_probs, targets, target_len, teacher)
    hidden, log_probs = (torch.nn.functional.pad(x, (0, 0, 0, 5), value=3.0) for x in (hidden, log_probs))
    teacher = teacher._replace(
        embeddings=torch.nn.functional.pad(teacher.embeddings, (0, 0, 0, 2), value=3.0),
        token_id=torch.nn.functional.pad(teacher.token_id, (0, 2)),
    )
    out = module(hidden, frame_len, log_probs, targets, target_len, teacher)
    torch.testing.assert_close(out.loss, plain.loss)


def test_of_several_layers_the_last_alone_has_it():
    hidden, *rest = batch()
    module = learning(build(layer_weights=(1.0, 0.0), layers=1, heads=2))
    module([hidden, hidden], *rest).loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in module.context.parameters())
    module.layer_weights = [0.0, 1.0]
    module([hidden, hidden], *rest).loss.sum().backward()
    assert all(p.grad.any() for name, p in module.context.named_parameters() if name != "masked")


def test_it_learns_to_tell_a_masked_token():
    """Three sentences of three words in a fixed order: what is masked can be told from what is not."""
    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(9, 8), dim=-1).view(3, 3, 8)
    context, seg_len = Context(8, 1, heads=2, mask=0.3), torch.tensor([3, 3, 3])
    optimizer = torch.optim.Adam(context.parameters(), 1e-2)
    losses = []
    for step in range(400):
        drawn = segment_mask(torch.ones(3, 3, dtype=torch.bool), 0.3, step)
        cosines = torch.nn.functional.cosine_similarity(context(words, seg_len, seed=step), words, dim=-1)
        if drawn.any() and not drawn.all(1).any():
            losses.append(1 - cosines[drawn].mean().item())
        optimizer.zero_grad()
        (1 - cosines).mean().backward()
        optimizer.step()
    assert sum(losses[-10:]) / 10 < 0.1 < 0.5 < sum(losses[:5]) / 5


@pytest.mark.parametrize("poison", [float("nan"), 3e38])
def test_a_row_that_went_wrong_in_a_lower_layer_stays_out_of_it(poison):
    hidden, *rest = batch()
    module, lower = build(layer_weights=(1.0, 1.0)), hidden.detach().clone()
    lower[1] = poison
    both = module([lower, hidden], *rest).loss
    module.layer_weights = [0.0, 1.0]
    last = module([lower, hidden], *rest).loss
    assert both[1] == last[1] > 0 and both[0] > last[0]
