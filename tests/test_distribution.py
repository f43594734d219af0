"""Divergence from the language model's probabilities: by hand, by its definition in float64, and where gradients go."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_comat import transfer_loss
from nemo_comat.transfer import token_divergence, vocabulary
from nemo_comat.transfer.vocabulary import candidate_ids


def given(tokens=4, words=50, width=8, top=5):
    torch.manual_seed(0)
    student = torch.randn(2, tokens, width, requires_grad=True)
    logits = 2 * torch.randn(2, tokens, words)
    share, ids = logits.softmax(-1).topk(top, -1)
    return student, (ids, share), torch.ones(2, tokens, dtype=torch.bool), torch.randn(words, width)


def by_definition(student, predicted, table, temperature, candidates=None):
    """KL of two whole distributions in float64, zeros where p or q has nothing."""
    student, table = student.double(), table.double()
    cosines = F.cosine_similarity(student[:, :, None], table[None, None], dim=-1) / temperature
    if candidates is not None:
        out = torch.ones(len(table), dtype=torch.bool)
        out[candidates] = False
        cosines = cosines.masked_fill(out, -torch.inf)
    share = predicted[1].double() / predicted[1].double().sum(-1, keepdim=True)
    p = torch.zeros_like(cosines).scatter(2, predicted[0], share)
    log_q = cosines.log_softmax(-1).masked_fill(p == 0, 0)
    return (torch.xlogy(p, p) - p * log_q).sum(-1)


def test_by_hand():
    student, table = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    predicted = torch.tensor([[[0, 1]]]), torch.tensor([[[0.6, 0.2]]])
    # q is e, 1 and 1/e over their sum; p is 3/4 and 1/4 of what is kept
    total = torch.tensor([1.0, 0.0, -1.0]).exp().sum()
    wanted = 0.75 * torch.log(0.75 * total / torch.e) + 0.25 * torch.log(0.25 * total)
    found = token_divergence(student, predicted, torch.tensor([[True]]), table, temperature=1.0)
    torch.testing.assert_close(found, wanted[None, None])
    # of the likeliest token alone it is cross entropy with it
    first = token_divergence(student, predicted, torch.tensor([[True]]), table, temperature=1.0, top_k=1)
    torch.testing.assert_close(first, torch.log(total / torch.e)[None, None])


@pytest.mark.parametrize("together", [vocabulary.TOGETHER, 7])
def test_value_and_gradient_are_those_of_the_definition(together, monkeypatch):
    monkeypatch.setattr(vocabulary, "TOGETHER", together)
    student, predicted, mask, table = given()
    weight = torch.rand(2, 4)
    found = token_divergence(student, predicted, mask, table, temperature=0.3)
    (gradient,) = torch.autograd.grad((weight * found).sum(), student)
    wanted = by_definition(student, predicted, table, 0.3)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    (exact,) = torch.autograd.grad((weight * wanted).sum(), student)
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


def test_a_student_that_says_the_same_costs_nothing():
    table = torch.eye(3)
    share = (table[:2] / 0.5).softmax(-1)
    top = share.topk(3, -1)
    found = token_divergence(
        table[None, :2], (top.indices[None], top.values[None]), torch.ones(1, 2).bool(), table, temperature=0.5
    )
    torch.testing.assert_close(found, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_all_words_drawn_are_the_whole_vocabulary():
    student, predicted, mask, table = given(words=6)
    # so many draws that each of the six ids comes
    drawn = token_divergence(student, predicted, mask, table, negatives=500)
    torch.testing.assert_close(drawn, token_divergence(student, predicted, mask, table))


# fewer candidates than words, and more, of which each counts once
@pytest.mark.parametrize("words", [1000, 60])
def test_candidates_are_what_is_expected_anywhere_and_what_is_drawn(words):
    student, predicted, mask, table = given(words=words)
    mask[1, 2:] = False
    ids, again = candidate_ids(predicted[0], mask[..., None].expand(2, 4, 5), words, 30, 9)
    assert (len(ids) < words) == (words == 1000)
    wanted = by_definition(student, predicted, table, 0.1, candidates=ids[~again])
    found = token_divergence(student, predicted, mask, table, negatives=30, seed=9)
    torch.testing.assert_close(found[mask], wanted[mask].float(), rtol=1e-4, atol=1e-4)
    assert not found[mask].equal(token_divergence(student, predicted, mask, table, negatives=30, seed=8)[mask])


@pytest.mark.parametrize("negatives", [None, 10])
def test_gradients_reach_the_student_alone(negatives):
    student, (ids, share), mask, table = given()
    for tensor in (share, table):
        tensor.requires_grad_()
    mask[1, 2:] = False
    options = dict(loss="distribution", predicted=(ids, share), table=table, negatives=negatives)
    state = torch.get_rng_state()
    transfer_loss(student, torch.zeros_like(student), mask, **options).sum().backward()
    assert (student.grad.abs().sum(-1) > 0).equal(mask) and table.grad is None and share.grad is None
    # what is drawn is drawn aside
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("negatives", [None, 10])
def test_a_token_without_probabilities_costs_nothing(negatives):
    student, (ids, share), mask, table = given()
    rest = token_divergence(student, (ids, share), mask, table).detach()
    share[0, 0] = 0
    found = token_divergence(student, (ids, share), mask, table, negatives=negatives)
    found.sum().backward()
    assert found[0, 0] == 0 and (student.grad[0, 0] == 0).all() and student.grad.isfinite().all()
    if negatives is None:
        assert found[1].equal(rest[1])


def test_autocast_has_the_products_in_its_dtype_and_the_rest_in_float32():
    student, predicted, mask, table = given()
    found = []
    for enabled in (False, True):
        student.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = token_divergence(student, predicted, mask, table)
        loss.sum().backward()
        found.append((loss.detach(), student.grad.clone()))
    (loss, gradient), (rounded, coarse) = found
    assert rounded.dtype == torch.float32 and not rounded.equal(loss)
    # logits are below 10, where bfloat16's steps are 0.0625
    torch.testing.assert_close(rounded, loss, rtol=0, atol=0.05)
    torch.testing.assert_close(coarse, gradient, rtol=0.1, atol=0.01 * gradient.abs().max().item())


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made while it is active."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        results = result if isinstance(result, (tuple, list)) else [result]
        made = [x.numel() for x in results if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *made])
        return result


def test_logits_of_a_large_vocabulary_are_never_there_at_once(monkeypatch):
    monkeypatch.setattr(vocabulary, "TOGETHER", 500)
    student, predicted, mask, table = given(tokens=10, words=4000, width=2)
    with Largest() as largest:
        token_divergence(student, predicted, mask, table).sum().backward()
    # 20 tokens and 500 words, against 80,000
    assert 20 * 500 <= largest.elements < 2 * 20 * 500


def test_it_needs_probabilities_and_a_table():
    student, predicted, mask, table = given()
    lacking = [dict(predicted=predicted), dict(table=table), dict(predicted=(predicted[0][:1],) * 2, table=table)]
    for one in lacking:
        with pytest.raises(ValueError, match="needs predicted, the ids and the probabilities .* and its table"):
            transfer_loss(student, torch.zeros_like(student), mask, loss="distribution", **one)


def test_half_precision_tables_and_rows_of_zeros():
    student, predicted, mask, table = given()
    table[int(predicted[0][0, 0, 0])] = 0
    plain = token_divergence(student, predicted, mask, table)
    half = token_divergence(student, predicted, mask, table.half())
    torch.testing.assert_close(half, plain, rtol=0.01, atol=0.01)


def test_an_id_of_no_probability_is_no_candidate():
    torch.manual_seed(0)
    student, table = torch.randn(1, 1, 4), torch.randn(60, 4)
    one = torch.tensor([[[3]]]), torch.tensor([[[1.0]]])
    two = torch.tensor([[[3, 5]]]), torch.tensor([[[1.0, 0.0]]])
    found = [token_divergence(student, x, torch.tensor([[True]]), table, negatives=0) for x in (one, two)]
    assert found[0].equal(found[1])
