"""Classification over the teacher's vocabulary: by hand, its candidates, and where gradients go."""

import pytest
import torch
from torch.nn import functional as F

from nemo_comat import transfer_loss
from nemo_comat.transfer import classify_tokens, vocabulary
from nemo_comat.transfer.vocabulary import candidate_ids


def given(tokens=4, words=50, width=8):
    torch.manual_seed(0)
    student = torch.randn(2, tokens, width, requires_grad=True)
    return (
        student,
        torch.randint(0, words, (2, tokens)),
        torch.ones(2, tokens, dtype=torch.bool),
        torch.randn(words, width),
    )


def test_the_whole_vocabulary_is_cross_entropy_of_cosines():
    student, ids, mask, table = given()
    cosines = torch.stack([F.cosine_similarity(student[..., None, :], row, dim=-1)[..., 0] for row in table], -1)
    wanted = F.cross_entropy(cosines.flatten(0, 1) / 0.3, ids.flatten(), reduction="none").view(2, 4)
    torch.testing.assert_close(classify_tokens(student, ids, mask, table, temperature=0.3), wanted)


def test_all_words_drawn_are_the_whole_vocabulary():
    student, ids, mask, table = given(words=6)
    # so many draws that each of the six ids comes
    drawn = classify_tokens(student, ids, mask, table, negatives=500)
    torch.testing.assert_close(drawn, classify_tokens(student, ids, mask, table))


def test_without_draws_the_batch_is_the_vocabulary():
    student, table = torch.tensor([[[1.0, 0], [0, 1], [1, 1]]]), torch.eye(2)
    ids, mask = torch.tensor([[0, 1, 0]]), torch.tensor([[True, True, False]])
    loss = classify_tokens(student, ids, mask, table, temperature=1.0, negatives=0)
    # one other word each, however often a word stands in the batch
    assert loss[0, :2].tolist() == pytest.approx([(1 + torch.tensor(-1.0).exp()).log().item()] * 2)


def test_candidates_are_the_words_of_the_batch_and_what_is_drawn():
    ids, mask = torch.tensor([[7, 7, 3], [1, 9, 9]]), torch.tensor([[True, True, True], [True, False, False]])
    found, again = candidate_ids(ids, mask, 10, 0, 0)
    assert found[~again].tolist() == [1, 3, 7] and found.shape == (6,)
    one, two, other = (candidate_ids(ids, mask, 1000, 40, seed)[0] for seed in (5, 5, 6))
    assert one.equal(two) and not one.equal(other)


# fewer candidates than words, and more, of which each counts once
@pytest.mark.parametrize("words", [1000, 30])
def test_candidates_are_the_classes(words):
    student, ids, mask, table = given(words=words)
    mask[1, 2:] = False
    found, again = candidate_ids(ids, mask, words, 30, 9)
    assert (len(found) < words) == (words == 1000)
    chosen = found[~again]
    cosines = F.cosine_similarity(student[:, :, None], table[chosen], dim=-1) / 0.1
    own = F.cosine_similarity(student, table[ids], dim=-1) / 0.1
    loss = classify_tokens(student, ids, mask, table, negatives=30, seed=9)
    torch.testing.assert_close(loss[mask], (cosines.logsumexp(-1) - own)[mask], rtol=1e-4, atol=1e-4)
    assert (loss[~mask] == 0).all()


@pytest.mark.parametrize("temperature", [0.002, 0.3])
@pytest.mark.parametrize("left_out", [[], range(7), range(7, 14), range(3, 19), range(20)], ids=str)
def test_the_sum_by_parts_is_the_sum_of_what_is_not_left_out(left_out, temperature, monkeypatch):
    monkeypatch.setattr(vocabulary, "TOGETHER", 7)
    torch.manual_seed(0)
    student = F.normalize(torch.randn(2, 3, 8, dtype=torch.float64), dim=-1).requires_grad_()
    table, out = torch.randn(20, 8), torch.zeros(20, dtype=torch.bool)
    out[list(left_out)] = True
    wanted = (student @ F.normalize(table.double(), dim=-1).T / temperature)[..., ~out].logsumexp(-1)
    weight = torch.rand(2, 3)
    same = student.detach().float().requires_grad_()
    found = vocabulary.log_sum_exp(same, table, out, temperature)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad((weight * found).sum(), same)
    if out.all():
        assert (gradient == 0).all()
    else:
        (exact,) = torch.autograd.grad((weight * wanted).sum(), student)
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-4)


def test_a_batch_without_tokens_costs_nothing():
    student, ids, mask, table = given()
    loss = classify_tokens(student, ids, torch.zeros_like(mask), table, negatives=0)
    loss.sum().backward()
    assert (loss == 0).all() and (student.grad == 0).all()


@pytest.mark.parametrize("negatives", [None, 10])
def test_gradients_reach_the_student_alone(negatives):
    student, ids, mask, table = given()
    table.requires_grad_()
    mask[1, 2:] = False
    options = dict(loss="classify", token_id=ids, table=table, negatives=negatives)
    state = torch.get_rng_state()
    transfer_loss(student, torch.zeros_like(student), mask, **options).sum().backward()
    assert (student.grad.abs().sum(-1) > 0).equal(mask) and table.grad is None
    # what is drawn is drawn aside
    assert torch.get_rng_state().equal(state)


def test_classify_needs_ids_and_a_table():
    student, ids, mask, _ = given()
    with pytest.raises(ValueError, match="needs token_id .* and the teacher's table"):
        transfer_loss(student, torch.zeros_like(student), mask, loss="classify", token_id=ids)


def test_a_token_that_is_learnt_costs_nothing_under_autocast_either():
    torch.manual_seed(0)
    table = torch.randn(200, 32)
    ids = torch.arange(8)[None]
    student = (table[ids] * 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = classify_tokens(student, ids, torch.ones_like(ids, dtype=torch.bool), table, temperature=0.02)
    loss.sum().backward()
    assert (loss.abs() < 1e-3).all() and (student.grad.abs() < 1e-3).all()


def test_a_second_derivative_is_refused():
    student, ids, mask, table = given()
    loss = classify_tokens(student, ids, mask, table).sum()
    with pytest.raises(RuntimeError, match="no second derivative; drop create_graph=True"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_texts_without_tokens_and_nothing_drawn():
    student, nothing = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)
    assert classify_tokens(student, nothing, nothing.bool(), torch.randn(9, 4), negatives=0).shape == (2, 0)
