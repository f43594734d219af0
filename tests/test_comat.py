"""The three steps together, without a recogniser around them."""

import pytest
import torch

from nemo_comat import CompressAlignTransfer
from nemo_comat.teacher import TeacherOutput

BLANK, DIM, WIDTH = 5, 8, 6


def build(labels="forced", **transfer):
    torch.manual_seed(0)
    return CompressAlignTransfer(
        DIM, BLANK, compress={"labels": labels}, align={"backend": "auto"}, projection={"dim": WIDTH}, transfer=transfer
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


def test_under_autocast_the_loss_is_still_float32():
    args, module = batch(), build()
    plain = module(*args).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(*args).loss, plain)


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
