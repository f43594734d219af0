"""Transfer: values computed by hand, where gradients go, and that padding changes nothing."""

import math

import pytest
import torch
from torch.nn import functional as F

from nemo_comat import cosine_score, plan_average, token_average, transfer_loss
from nemo_comat.transfer import LOSSES, TransferLoss, classify_tokens, reduce_rows, token_divergence


def vocabulary(batch, tokens, words, width):
    """Tokens' ids, all different, a table, and two probabilities for each token, as the losses of a vocabulary need."""
    token_id = torch.arange(batch * tokens).view(batch, tokens)
    predicted = torch.stack([token_id, (token_id + 1) % words], -1), torch.tensor([0.6, 0.1]).expand(batch, tokens, 2)
    return dict(token_id=token_id, table=torch.randn(words, width), predicted=predicted)


def test_token_average_by_hand():
    segments = torch.tensor([[[1.0], [3.0], [5.0], [100.0]], [[2.0], [4.0], [100.0], [100.0]]])
    path = torch.tensor([[0, 0, 1, -1], [0, 1, -1, -1]], dtype=torch.int32)
    assert token_average(segments, path, 3)[..., 0].tolist() == [[2, 5, 0], [2, 4, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_token_of_many_segments_has_their_mean(dtype):
    segments = torch.full((1, 1000, 1), 100.0, dtype=dtype)
    found = token_average(segments, torch.zeros(1, 1000), 1)
    assert found.dtype == dtype and found.tolist() == [[[100.0]]]


def test_cosine_score_by_hand():
    student = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [3.0, 4.0]]])
    score = cosine_score(student, teacher)
    assert not score.requires_grad
    torch.testing.assert_close(score, torch.tensor([[[0.6, 0.8, 1.0], [0.0, 1.0, 0.8]]]))


def test_cosine_and_mse_by_hand():
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [5.0, 5.0]]])
    mask = torch.tensor([[True, True, False]])
    assert transfer_loss(student, teacher, mask).tolist() == pytest.approx([0.4 + 2.0])
    assert transfer_loss(student, teacher, mask, loss="mse").tolist() == pytest.approx([(4 + 16) / 2 + 4 / 2])


def test_contrastive_by_hand():
    # two rows of one token each: cosines 1 and 0 with the own and the other token
    student = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])
    teacher = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    mask = torch.tensor([[True], [True]])
    wanted = -math.log(math.exp(2) / (math.exp(2) + math.exp(0)))
    loss = transfer_loss(student, teacher, mask, loss="contrastive", temperature=0.5)
    assert loss.tolist() == pytest.approx([wanted, wanted])
    # the same token elsewhere is no negative, so nothing is left to tell apart
    same = transfer_loss(student, teacher, mask, loss="contrastive", token_id=torch.tensor([[7], [7]]))
    assert same.tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_reaches_the_student_and_never_the_teacher(loss):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    transfer_loss(student, teacher, mask, loss=loss, **vocabulary(2, 4, 9, 8)).sum().backward()
    assert teacher.grad is None
    moved = student.grad.abs().sum(-1) > 0
    assert moved.equal(mask)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_changes_nothing_whatever_it_holds(loss):
    torch.manual_seed(0)
    student, teacher, given = torch.randn(2, 4, 8), torch.randn(2, 4, 8), vocabulary(2, 4, 9, 8)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    plain = transfer_loss(student, teacher, mask, loss=loss, **given)
    student[1, 2:], teacher[1, 2:], given["token_id"][1, 2:] = float("nan"), float("inf"), 1
    student, teacher = (F.pad(x, (0, 0, 0, 3), value=1e30).requires_grad_() for x in (student, teacher))
    given["token_id"], mask = F.pad(given["token_id"], (0, 3), value=2), F.pad(mask, (0, 3))
    ids, shares = (F.pad(x, (0, 0, 0, 3), value=1) for x in given["predicted"])
    ids[1, 2:], shares[1, 2:] = 3, float("nan")
    padded = transfer_loss(student, teacher, mask, loss=loss, **{**given, "predicted": (ids, shares)})
    torch.testing.assert_close(padded, plain)
    padded.sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_without_tokens_costs_nothing(loss):
    mask = torch.tensor([[False, False], [True, True]])
    out = transfer_loss(torch.randn(2, 2, 3), torch.randn(2, 2, 3), mask, loss=loss, **vocabulary(2, 2, 5, 3))
    assert out[0] == 0 and out[1] > 0


def test_reductions_are_those_of_nemos_ctc():
    loss, tokens = torch.tensor([6.0, 0.0, 2.0]), torch.tensor([3, 0, 1])
    assert reduce_rows(loss, tokens).item() == pytest.approx(8 / 3)
    assert reduce_rows(loss, tokens, "mean").item() == pytest.approx((2 + 0 + 2) / 3)
    assert reduce_rows(loss, tokens, "mean_volume").item() == pytest.approx(8 / 4)
    assert reduce_rows(loss, tokens, "sum").item() == pytest.approx(8)
    with pytest.raises(ValueError, match="reduction must be one of .* got 'none'"):
        reduce_rows(loss, tokens, "none")


def test_module_equals_function():
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(1, 3, 4), torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    module = TransferLoss(loss="contrastive", temperature=0.3)
    assert module(student, teacher, mask).equal(
        transfer_loss(student, teacher, mask, loss="contrastive", temperature=0.3)
    )


def test_the_module_heeds_all_options_of_the_vocabularys_losses():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 3, 4)
    mask, ids, table = torch.tensor([[True, True, False]]), torch.tensor([[1, 2, 3]]), torch.randn(99, 4)
    predicted = torch.stack([ids, ids + 7], -1), torch.tensor([0.6, 0.1]).expand(1, 3, 2)
    options = dict(temperature=0.3, negatives=5)
    wanted = {
        "classify": classify_tokens(student, ids, mask, table, **options, seed=7),
        "distribution": token_divergence(student, predicted, mask, table, **options, top_k=1, seed=7),
    }
    for loss, each in wanted.items():
        module = TransferLoss(loss, **options, top_k=1)
        found = module(student, teacher, mask, token_id=ids, table=table, predicted=predicted, seed=7)
        torch.testing.assert_close(found, torch.where(mask, each, 0).sum(1))


def test_bad_arguments_are_refused():
    x, mask = torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="loss must be one of cosine, mse, .*, classify, distribution; got 'l1'"):
        transfer_loss(x, x, mask, loss="l1")
    with pytest.raises(ValueError, match=r"must be \[B, N, D\] and mask \[B, N\]"):
        transfer_loss(x, x[:, :1], mask)
    with pytest.raises(ValueError, match=r"must be \[B, N, D\]"):
        transfer_loss(x[0], x[0], mask[0])
    with pytest.raises(ValueError, match="mask must be bool, .* got torch.float32"):
        transfer_loss(x, x, mask.float())
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
            transfer_loss(x, x, mask, loss="contrastive", temperature=temperature)
    with pytest.raises(ValueError, match=r"token_id must be \[B, N\] = \(1, 2\), got \(1, 3\)"):
        transfer_loss(x, x, mask, loss="contrastive", token_id=torch.zeros(1, 3))


def test_the_score_and_planned_means_are_float32_under_autocast():
    student, teacher = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
    plan = torch.rand(1, 4, 3)
    wanted = cosine_score(student, teacher), plan_average(student, plan)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_score(student, teacher), plan_average(student, plan)
    assert all(one.equal(other) for one, other in zip(wanted, found))


def test_the_contrastive_loss_is_float32_under_autocast():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    wanted = transfer_loss(student, teacher, mask, loss="contrastive")
    with torch.autocast("cpu", torch.bfloat16):
        assert transfer_loss(student, teacher, mask, loss="contrastive").equal(wanted)
