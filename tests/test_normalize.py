"""Statistics of the teacher's vectors, and vectors normalised by them."""

import pytest
import torch

from nemo_comat.transfer.normalize import (
    TeacherNormalization,
    VectorStatistics,
    normalize_vectors,
    vector_statistics,
)


def test_statistics_in_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    whole = 100 + torch.randn(50, 4) * torch.tensor([1.0, 3.0, 0.1, 0.0])
    found = vector_statistics(whole.split([1, 0, 20, 29]))
    torch.testing.assert_close(found.mean, whole.double().mean(0).float())
    torch.testing.assert_close(found.deviation, whole.double().std(0, unbiased=False).float(), atol=1e-7, rtol=1e-6)
    assert found.number == 50 and found.deviation[3] == 0


def test_a_single_vector_and_vectors_that_are_not_finite():
    found = vector_statistics([torch.tensor([[2.0, float("nan")], [2.0, 4.0]])])
    assert found.mean.tolist() == [2.0, 4.0] and found.deviation.tolist() == [0.0, 0.0] and found.number == 1
    # a deviation of zero shifts and divides nothing
    assert normalize_vectors(torch.tensor([[5.0, 4.0]]), *found[:2]).tolist() == [[3.0, 0.0]]
    with pytest.raises(ValueError, match="no finite vector"):
        vector_statistics([torch.zeros(0, 2)])


@pytest.mark.parametrize("method, wanted", [("center", [[2.0, -3.0]]), ("standardize", [[0.5, -3.0]])])
def test_by_hand(method, wanted):
    norm = TeacherNormalization(2, method)
    assert norm(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]
    norm.keep(VectorStatistics(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 0.0]), 7))
    assert norm(torch.tensor([[3.0, 0.0]])).tolist() == wanted
    assert set(norm.state_dict()) == {"mean", "deviation", "number", "source"} and norm.number == 7
    assert not list(norm.parameters())


def test_another_width_and_another_word_are_refused():
    with pytest.raises(ValueError, match="width 3, the model's teacher has 2"):
        TeacherNormalization(2).keep(VectorStatistics(torch.zeros(3), torch.ones(3), 1))
    with pytest.raises(ValueError, match="must be one of center, standardize; got 'whiten'"):
        TeacherNormalization(2, "whiten")
