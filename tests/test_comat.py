"""The three steps together, without a recogniser around them."""

import pytest
import torch

from nemo_comat import CompressAlignTransfer, sinkhorn
from nemo_comat.comat import ALIGNERS, COMPRESSORS
from nemo_comat.compress import FrameCompressor
from nemo_comat.teacher import TeacherOutput

BLANK, DIM, WIDTH = 5, 8, 6
# compress.method and align.method: COMAT, its relatives, and the pairs that no paper has
METHODS = [
    ("ctc", "monotonic"),
    ("cif", "one_to_one"),
    ("attention", "one_to_one"),
    ("none", "sinkhorn"),
    ("cif", "monotonic"),
    ("attention", "sinkhorn"),
    ("none", "monotonic"),
    ("ctc", "sinkhorn"),
]
every_method = pytest.mark.parametrize("methods", METHODS, ids="-".join)


def build(labels="forced", methods=METHODS[0], **transfer):
    torch.manual_seed(0)
    return CompressAlignTransfer(
        DIM,
        BLANK,
        compress={"method": methods[0], "labels": labels},
        align={"method": methods[1], "backend": "auto"},
        projection={"dim": WIDTH},
        transfer=transfer,
    )


def batch(text_len=(3, 2, 0, 4, 2), target_len=(4, 5, 3, 3, 9)):
    torch.manual_seed(1)
    text_len, target_len = torch.tensor(text_len), torch.tensor(target_len)
    rows, n = len(text_len), int(text_len.max())
    inside = torch.arange(n) < text_len[:, None]
    embeddings = torch.randn(rows, n, WIDTH).masked_fill(~inside[..., None], 0).requires_grad_()
    teacher = TeacherOutput(embeddings, text_len, torch.randint(0, 50, (rows, n)), torch.zeros(rows, dtype=torch.bool))
    hidden = torch.randn(rows, 20, DIM, requires_grad=True)
    log_probs = torch.randn(rows, 20, BLANK + 1).log_softmax(-1)
    targets = torch.randint(0, BLANK, (rows, int(target_len.max())))
    return hidden, torch.tensor([20, 18, 16, 20, 8]), log_probs, targets, target_len, teacher


def test_which_rows_take_part():
    # a good row, another, no text, more tokens than segments, more labels than frames
    out = build()(*batch())
    assert out.active.tolist() == [True, True, False, False, False]
    assert out.text_len.tolist() == [3, 2, 0, 0, 0]
    assert (out.loss[:2] > 0).all() and (out.loss[2:] == 0).all()


@every_method
def test_texts_without_any_token(methods):
    *given, teacher = batch()
    nothing = TeacherOutput(torch.zeros(5, 0, WIDTH), *3 * [torch.zeros(5, dtype=torch.int64)])
    nothing = nothing._replace(token_id=torch.zeros(5, 0, dtype=torch.int64), too_long=torch.zeros(5, dtype=torch.bool))
    out = build(methods=methods)(*given, nothing)
    assert not out.active.any() and out.alignment_score == 0 and (out.loss == 0).all()


@pytest.mark.parametrize("loss", ["classify", "distribution"])
def test_negatives_are_drawn_by_the_seed(loss):
    args, module = batch(), build(loss=loss, negatives=3)
    predicted = torch.randint(60, (5, 4, 3)), torch.rand(5, 4, 3)
    teacher = args[-1]._replace(table=torch.randn(60, WIDTH), predicted=predicted)
    one, same, other = (module(*args[:-1], teacher, seed=seed).loss for seed in (1, 1, 2))
    assert one.equal(same) and not one.equal(other)


def active_rows(methods):
    """What `batch` gives: the fourth row has too few labels for its tokens, the fifth too few frames for its labels."""
    few_segments, no_ctc_path = methods == ("ctc", "monotonic"), methods[0] == "ctc"
    return [True, True, False, not few_segments, not no_ctc_path]


@every_method
def test_which_rows_take_part_by_method(methods):
    out = build(methods=methods)(*batch())
    assert out.active.tolist() == active_rows(methods)
    assert out.text_len.tolist() == [n * a for n, a in zip([3, 2, 0, 4, 2], active_rows(methods))]
    assert (out.loss > 0).equal(out.active) and (out.loss[~out.active] == 0).all()
    assert out.path.shape == out.compressed.seg_label.shape == out.score.shape[:2]
    assert ((out.path >= 0).sum(1) == torch.where(out.active, out.compressed.seg_len, 0)).all()


@every_method
def test_gradient_reaches_active_frames_by_method(methods):
    args, module = batch(), build(methods=methods)
    module(*args).loss.sum().backward()
    assert (args[0].grad.abs().sum((1, 2)) > 0).tolist() == active_rows(methods)
    assert args[-1].embeddings.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@every_method
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_harms_no_other_by_method(methods, poison):
    args, module = batch(), build(methods=methods)
    clean = module(*args)
    args[0].data[1, 3:15] = poison  # the other frames of the row are good
    out = module(*args)
    assert out.active.tolist() == [a and row != 1 for row, a in enumerate(active_rows(methods))]
    keep = torch.tensor([0, 2, 3, 4])
    torch.testing.assert_close(out.loss[keep], clean.loss[keep])
    assert out.loss[1] == 0
    out.loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert args[0].grad.isfinite().all() and (args[0].grad[1] == 0).all()


@every_method
def test_a_teacher_that_is_not_finite_takes_its_row_out_by_method(methods):
    args, module = batch(), build(methods=methods)
    args[-1].embeddings.data[0, 1] = float("nan")
    out = module(*args)
    assert out.active.tolist() == [False, *active_rows(methods)[1:]]
    out.loss.sum().backward()
    assert out.loss[0] == 0 and all(p.grad.isfinite().all() for p in module.parameters())


@every_method
def test_padding_changes_nothing_by_method(methods):
    args, module = batch(), build(methods=methods)
    plain = module(*args)
    hidden, frame_len, log_probs, targets, target_len, teacher = args
    hidden, log_probs = (torch.nn.functional.pad(x, (0, 0, 0, 5), value=3.0) for x in (hidden, log_probs))
    hidden = torch.where((torch.arange(25) < frame_len[:, None])[..., None], hidden, float("nan"))
    teacher = teacher._replace(
        embeddings=torch.nn.functional.pad(teacher.embeddings, (0, 0, 0, 2), value=3.0),
        token_id=torch.nn.functional.pad(teacher.token_id, (0, 2)),
    )
    out = module(hidden, frame_len, log_probs, targets, target_len, teacher)
    torch.testing.assert_close(out.loss, plain.loss)
    assert out.active.equal(plain.active)


@every_method
def test_without_active_rows_every_parameter_gets_a_gradient_of_0(methods):
    args, module = batch(text_len=(1, 1, 1, 1, 1)), build(methods=methods)
    out = module(*args[:-1], args[-1]._replace(text_len=torch.zeros(5, dtype=torch.int64)))
    assert not out.active.any()
    out.loss.sum().backward()
    assert args[0].grad.eq(0).all() and all(p.grad.eq(0).all() for p in module.parameters())


@every_method
def test_under_autocast_the_loss_is_still_float32_by_method(methods):
    args, module = batch(), build(methods=methods)
    plain = module(*args).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(*args).loss, plain)


def test_the_quantity_loss_is_added_to_active_rows():
    args = batch()
    one, two = (CompressAlignTransfer(
        DIM, BLANK, compress={"method": "cif", "quantity_weight": weight}, align={"method": "one_to_one"},
        projection={"dim": WIDTH}, transfer={},
    ) for weight in (0.0, 2.0))  # fmt: skip
    two.load_state_dict(one.state_dict())
    without, with_it = one(*args), two(*args)
    log_weight = two.compressor.log_weight(torch.where(torch.arange(20)[:, None] < 18, args[0][1], 0)[None])
    wanted = 2 * abs(log_weight[0, :18].exp().sum().item() - 2)
    assert (with_it.loss - without.loss)[1].item() == pytest.approx(wanted, rel=1e-4)
    assert with_it.compressed.loss[1].item() == pytest.approx(wanted, rel=1e-4)
    assert with_it.loss[2] == 0 and with_it.compressed.loss[2] == 0


@every_method
def test_alignment_score_is_the_mean_cosine_along_the_path_by_method(methods):
    args, module = batch(), build(methods=methods)
    args[0].data[1, 3] = float("nan")  # this row leaves, and its score with it
    out = module(*args)
    vectors, along = module.projection(out.compressed.segments), []
    for row in (0, 3, 4):
        for s, n in enumerate(out.path[row].tolist()):
            if active_rows(methods)[row] and n >= 0:
                along.append(torch.cosine_similarity(vectors[row, s], args[-1].embeddings[row, n], dim=0))
    assert out.alignment_score.item() == pytest.approx(torch.stack(along).mean().item(), abs=1e-5)
    assert not out.alignment_score.requires_grad
    nothing = module(*args[:-1], args[-1]._replace(text_len=torch.zeros(5, dtype=torch.int64)))
    assert nothing.alignment_score == 0


def test_one_to_one_pulls_each_segment_to_its_own_token():
    args, module = batch(), build(methods=("attention", "one_to_one"))
    out = module(*args)
    vectors, wanted = module.projection(out.compressed.segments[0, :3]), args[-1].embeddings[0, :3]
    assert out.path[0].tolist() == [0, 1, 2, -1]
    assert out.loss[0].item() == pytest.approx((1 - torch.cosine_similarity(vectors, wanted)).sum().item(), abs=1e-5)


def test_transport_pulls_the_planned_mean_of_the_frames():
    args, module = batch(), build(methods=("none", "sinkhorn"))
    out = module(*args)
    plan = sinkhorn(1 - out.score[1:2], torch.tensor([18]), torch.tensor([2]))[0, :18, :2]
    vectors = module.projection(args[0][1, :18])
    mean = torch.stack([(plan[:, n, None] * vectors).sum(0) / plan[:, n].sum() for n in range(2)])
    wanted = (1 - torch.cosine_similarity(mean, args[-1].embeddings[1, :2])).sum().item()
    assert out.loss[1].item() == pytest.approx(wanted, abs=1e-5)
    assert out.path[1, :18].equal(plan.argmax(1).int())


@pytest.mark.parametrize(
    "compress, align, message",
    [
        ({"method": "rnn"}, {}, "compress.method must be one of ctc, cif, attention, none; got 'rnn'"),
        ({}, {"method": "dtw"}, "align.method must be one of monotonic, one_to_one, sinkhorn; got 'dtw'"),
        ({"method": "none", "lables": "x"}, {}, "compress does not know lables; its options are blanks, heads, labels"),
        ({}, {"blank": 3}, "align does not know blank; its options are backend, epsilon, iterations"),
    ],
)
def test_unknown_methods_and_options_are_refused(compress, align, message):
    with pytest.raises(ValueError, match=message):
        CompressAlignTransfer(DIM, BLANK, compress=compress, align=align, projection={"dim": WIDTH}, transfer={})


class Evenly(torch.nn.Module):
    """An aligner without a constructor of its own, as a user may write one."""


class Follower(FrameCompressor):
    """A compressor that looks at labels, and follows their blank."""

    def __init__(self, blank):
        super().__init__()
        self.set_blank(blank)

    def set_blank(self, blank):
        self.blank = blank


def test_classes_of_the_users_own(monkeypatch):
    monkeypatch.setitem(ALIGNERS, "evenly", Evenly)
    monkeypatch.setitem(COMPRESSORS, "follower", Follower)
    rest = dict(projection={"dim": WIDTH}, transfer={})
    module = CompressAlignTransfer(DIM, BLANK, compress={"method": "follower"}, align={"method": "evenly"}, **rest)
    assert module.compressor.blank == BLANK
    module.set_blank(9)
    assert module.compressor.blank == module.blank == 9
    with pytest.raises(
        ValueError, match="align does not know args; its options are backend, epsilon, iterations, temp"
    ):
        CompressAlignTransfer(DIM, BLANK, compress={}, align={"method": "evenly", "args": 1}, **rest)


@pytest.mark.parametrize("labels", ["forced", "greedy"])
def test_gradient_reaches_active_frames_and_never_the_teacher(labels):
    args, module = batch(), build(labels)
    out = module(*args)
    out.loss.sum().backward()
    hidden, teacher = args[0], args[-1]
    moved = hidden.grad.abs().sum((1, 2)) > 0
    assert moved.equal(out.active) and moved.any()
    assert teacher.embeddings.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_loss_equals_its_parts_by_hand():
    args, module = batch(), build()
    out = module(*args)
    hidden, teacher = args[0], args[-1]
    segment = [hidden[0, out.compressed.seg_of_frame[0] == s].mean(0) for s in range(4)]
    vectors = torch.stack([module.projection(v[None, None])[0, 0] for v in segment])
    total = 0.0
    for n in range(3):
        mean = vectors[[s for s in range(4) if out.path[0, s] == n]].mean(0)
        total += 1 - torch.cosine_similarity(mean, teacher.embeddings[0, n], dim=0).item()
    assert out.loss[0].item() == pytest.approx(total, abs=1e-5)


def test_a_batch_without_active_rows_still_gives_every_parameter_a_gradient():
    args, module = batch(text_len=(9, 9, 9, 9, 9)), build()
    out = module(*args)
    assert not out.active.any()
    out.loss.sum().backward()
    assert args[0].grad.eq(0).all() and all(p.grad.eq(0).all() for p in module.parameters())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_leaves_and_harms_no_other(poison):
    args, module = batch(), build()
    clean = module(*args)
    args[0].data[1] = poison
    out = module(*args)
    assert out.active.tolist() == [True, False, False, False, False]
    assert out.loss[0].equal(clean.loss[0]) and out.loss[1] == 0
    out.loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_a_teacher_that_is_not_finite_takes_its_row_out():
    args, module = batch(), build()
    args[-1].embeddings.data[0, 1] = float("nan")
    out = module(*args)
    assert out.active.tolist() == [False, True, False, False, False] and out.loss.isfinite().all()


@pytest.mark.parametrize("loss", ["classify", "distribution"])
def test_autocast_reaches_the_products_over_the_vocabulary(loss):
    args, module = batch(), build(loss=loss)
    table = torch.randn(40, WIDTH)
    predicted = torch.randint(40, (5, 4, 3)), torch.rand(5, 4, 3)
    args = (*args[:-1], args[-1]._replace(table=table, predicted=predicted))
    plain = module(*args).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(*args).loss
    assert mixed.dtype == torch.float32 and not mixed.equal(plain)
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("number", [1, 3])
def test_a_layer_too_few_or_too_many_is_refused(number):
    step = CompressAlignTransfer(
        DIM, BLANK, compress={}, align={}, projection={"dim": WIDTH}, transfer={}, layer_weights=[0.5, 1.0]
    )
    hidden, *given = batch()
    assert step([hidden, hidden], *given).loss.isfinite().all()
    with pytest.raises(ValueError, match=f"a tensor for each of the 2 layer_weights, got {number}"):
        step(hidden if number == 1 else [hidden] * 3, *given)


def test_training_lowers_the_loss():
    args, module = batch(), build(loss="contrastive")
    optimizer = torch.optim.Adam([*module.parameters(), args[0]], lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module(*args).loss.sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_frames_whose_sum_overflows_harm_no_weight():
    args, module = batch(), build()
    args[0].data[1] = 3e38
    out = module(*args)
    assert out.compressed.segments[1].isinf().any() and out.active.tolist() == [True, False, False, False, False]
    out.loss.sum().backward()
    assert out.loss[1] == 0 and all(p.grad.isfinite().all() for p in module.parameters())


def test_words_need_a_path_and_to_be_known():
    options = dict(compress={}, projection={"dim": WIDTH}, transfer={})
    with pytest.raises(ValueError, match="within_words needs align.method monotonic, got sinkhorn"):
        CompressAlignTransfer(DIM, BLANK, align={"method": "sinkhorn", "within_words": True}, **options)
    module = CompressAlignTransfer(DIM, BLANK, align={"within_words": True}, **options)
    with pytest.raises(ValueError, match="needs the words of both sides' tokens"):
        module(*batch())
