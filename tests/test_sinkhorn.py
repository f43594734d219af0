"""Sinkhorn's plan: its marginals, a closed form, its limit, and the rows and scores that could break it."""

import math

import pytest
import torch

from nemo_comat import plan_average, sinkhorn
from nemo_comat.align import SinkhornAligner

SEG_LEN, TEXT_LEN = torch.tensor([9, 6, 2, 1]), torch.tensor([4, 6, 3, 1])


def costs(seed=0, spread=1.0):
    return spread * torch.rand(4, 9, 6, generator=torch.Generator().manual_seed(seed))


def test_marginals_are_uniform_and_padding_is_0():
    plan = sinkhorn(costs(), SEG_LEN, TEXT_LEN)
    for row, (segs, tokens) in enumerate(zip(SEG_LEN.tolist(), TEXT_LEN.tolist())):
        torch.testing.assert_close(plan[row, :segs].sum(1), torch.full((segs,), 1 / segs), atol=1e-4, rtol=0)
        torch.testing.assert_close(plan[row, :, :tokens].sum(0), torch.full((tokens,), 1 / tokens))
        assert (plan[row, segs:] == 0).all() and (plan[row, :, tokens:] == 0).all()
        assert (plan[row, :segs, :tokens] > 0).all()


@pytest.mark.parametrize("cost", [[[0.0, 1.0], [1.0, 0.0]], [[0.3, 0.2], [0.9, 1.1]]])
@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_two_by_two_by_hand(cost, epsilon):
    # with uniform marginals P = [[x, 1/2 - x], [1/2 - x, x]], and scaling rows and columns leaves
    # P11 P22 / (P12 P21) = exp((c12 + c21 - c11 - c22) / epsilon) as it was
    (a, b), (c, d) = cost
    ratio = math.exp((b + c - a - d) / (2 * epsilon))
    x = 0.5 * ratio / (1 + ratio)
    plan = sinkhorn(torch.tensor([cost]), torch.tensor([2]), torch.tensor([2]), epsilon=epsilon)
    torch.testing.assert_close(plan[0], torch.tensor([[x, 0.5 - x], [0.5 - x, x]]), atol=1e-5, rtol=1e-4)


def test_a_small_epsilon_finds_the_permutation():
    order = torch.tensor([2, 0, 3, 1])
    cost = 0.5 + 0.4 * torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1))
    cost[0, torch.arange(4), order] = 0.1
    plan = sinkhorn(cost, torch.tensor([4]), torch.tensor([4]), epsilon=0.01, iterations=200)
    torch.testing.assert_close(plan[0], torch.nn.functional.one_hot(order, 4) / 4, atol=1e-4, rtol=0)


def test_a_ragged_batch_equals_its_rows_alone():
    batch = sinkhorn(costs(), SEG_LEN, TEXT_LEN, epsilon=0.1)
    for row, (segs, tokens) in enumerate(zip(SEG_LEN.tolist(), TEXT_LEN.tolist())):
        one = slice(row, row + 1)
        alone = sinkhorn(costs()[one, :segs, :tokens], SEG_LEN[one], TEXT_LEN[one], epsilon=0.1)
        torch.testing.assert_close(batch[row, :segs, :tokens], alone[0])


@pytest.mark.parametrize("spread", [1e4, -1e4, 1e30, 3e38, -3e38])
def test_extreme_costs_stay_finite(spread):
    plan = sinkhorn(costs(spread=spread), SEG_LEN, TEXT_LEN, epsilon=0.01)
    assert plan.isfinite().all() and (plan >= 0).all() and (plan.sum((1, 2)) < 1.001).all()


def test_rows_that_cannot_be_aligned_are_0_and_harm_no_other():
    clean, cost = sinkhorn(costs(), SEG_LEN, TEXT_LEN), costs()
    cost[1, 2, 3], cost[2, 5, 5] = float("nan"), float("inf")  # the second one lies in padding
    plan = sinkhorn(cost, SEG_LEN, TEXT_LEN)
    assert (plan[1] == 0).all() and all(plan[row].equal(clean[row]) for row in (0, 2, 3))
    cost[0, 0, 0] = float("-inf")
    assert (sinkhorn(cost, torch.tensor([9, 0, 2, 1]), torch.tensor([4, 6, 0, 1]))[:3] == 0).all()


def test_plan_average_by_hand():
    segments = torch.tensor([[[1.0], [5.0], [7.0]]], requires_grad=True)
    plan = torch.tensor([[[0.3, 0.0, 0.0], [0.1, 0.2, 0.0], [0.0, 0.2, 0.0]]])
    mean = plan_average(segments, plan)
    assert mean[0, :, 0].tolist() == pytest.approx([2.0, 6.0, 0.0])
    mean.sum().backward()
    assert segments.grad[0, :, 0].tolist() == pytest.approx([0.75, 0.75, 0.5])


def test_the_aligners_path_is_each_segments_likeliest_token():
    score = torch.tensor([[[0.9, 0.0], [0.8, 0.1], [0.0, 0.9], [5.0, 5.0]], [[0.5, 0.5]] * 4])
    path, plan = SinkhornAligner(epsilon=0.1)(score, torch.tensor([3, 0]), torch.tensor([2, 2]))
    assert path.tolist() == [[0, 0, 1, -1], [-1] * 4] and path.dtype == torch.int32
    torch.testing.assert_close(plan, sinkhorn(1 - score, torch.tensor([3, 0]), torch.tensor([2, 2]), epsilon=0.1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": 0}, "epsilon must be above 0 and iterations 1 or more, got 0 and 50"),
        ({"iterations": 0}, "got 0.05 and 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(costs(), SEG_LEN, TEXT_LEN, **options)
    with pytest.raises(ValueError, match=r"cost must be \[B, S, N\], got \(2, 2\)"):
        sinkhorn(torch.zeros(2, 2), SEG_LEN, TEXT_LEN)


def test_no_gradient_goes_through_a_plan():
    plan = sinkhorn(torch.rand(1, 3, 2, requires_grad=True), torch.tensor([3]), torch.tensor([2]))
    assert not plan.requires_grad
    given = plan.clone().requires_grad_()
    plan_average(torch.ones(1, 3, 4, requires_grad=True), given).sum().backward()
    assert given.grad is None
