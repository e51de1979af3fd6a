"""PCGrad in Gramian form against Algorithm 1 of its paper on the gradients themselves."""

import copy
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from mtrl.balancers import PCGrad, RandomLossWeighting
from mtrl.gradients import TaskGradients


def conflicting(num_tasks: int, seed: int, size: int = 30) -> Tensor:
    """Rows of which about half the pairs conflict, with norms over two decades."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
    return rows * torch.logspace(-1, 1, num_tasks, dtype=torch.float64)[:, None]


def algorithm_1(jacobian: Tensor, order: list[list[int]]) -> tuple[Tensor, list[int]]:
    """The update (D,) on full gradients, and how often each was projected."""
    update, counts = torch.zeros_like(jacobian[0]), []
    for i, others in enumerate(order):
        g = jacobian[i].clone()
        count = 0
        for j in others:
            inner = g @ jacobian[j]
            if inner < 0:
                g = g - inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
                count += 1
        update += g
        counts.append(count)
    return update, counts


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7, 20])
def test_it_is_algorithm_1_with_the_same_order(num_tasks: int) -> None:
    balancer = PCGrad(num_tasks, seed=3)
    for seed in range(20):
        jacobian = conflicting(num_tasks, seed)
        order = copy.deepcopy(balancer).draw_order(num_tasks)
        assert all(sorted([*others, i]) == list(range(num_tasks)) for i, others in enumerate(order))
        expected, counts = algorithm_1(jacobian, order)
        gradients = TaskGradients(jacobian)
        answer = balancer(gradients, torch.ones(num_tasks))
        assert (answer.update(gradients) - expected).norm() <= 1e-9 * expected.norm()
        assert answer.diagnostics["conflicts"].tolist() == counts
        cosine = torch.nn.functional.cosine_similarity(jacobian[:, None], jacobian[None], dim=2)
        torch.testing.assert_close(answer.diagnostics["cosine"], cosine)


def test_the_order_is_drawn_anew_for_each_task_and_call_and_all_orders_are_equally_likely() -> None:
    balancer = PCGrad(4)
    draws = [balancer.draw_order(4) for _ in range(3000)]
    for i in range(4):
        seen = [tuple(order[i]) for order in draws]
        for others in permutations(j for j in range(4) if j != i):
            assert seen.count(others) == pytest.approx(500, abs=100)
    # Two tasks' orders are independent: each pair of first partners is as likely as any other.
    firsts = [(order[0][0], order[1][0]) for order in draws]
    for pair in product((1, 2, 3), (0, 2, 3)):
        assert firsts.count(pair) == pytest.approx(3000 / 9, abs=80)


def test_the_average_over_orders_permutes_with_the_tasks() -> None:
    jacobian, permutation = conflicting(4, 1), torch.tensor([2, 0, 3, 1])
    gradients, permuted = TaskGradients(jacobian), TaskGradients(jacobian[permutation])
    balancer, losses = PCGrad(4), torch.ones(4)
    mean = torch.stack([balancer(gradients, losses).coefficients for _ in range(4000)]).mean(0)
    other = torch.stack([balancer(permuted, losses).coefficients for _ in range(4000)]).mean(0)
    torch.testing.assert_close(other, mean[permutation], rtol=0.02, atol=0)


@pytest.mark.parametrize("seed", range(50))
def test_for_two_tasks_the_update_conflicts_with_none(seed: int) -> None:
    jacobian = conflicting(2, seed)
    if seed % 2:
        jacobian[1] -= 3 * jacobian[0]
    update = PCGrad(2).combine(jacobian, torch.ones(2))
    assert bool((jacobian @ update >= -1e-12 * jacobian.norm(dim=1) * update.norm()).all())


def test_without_conflict_it_is_the_sum() -> None:
    jacobian = torch.rand(5, 10, dtype=torch.float64)
    answer = PCGrad(5)(TaskGradients(jacobian), torch.ones(5))
    assert answer.coefficients.tolist() == [1] * 5
    assert answer.diagnostics["conflicts"].tolist() == [0] * 5


def test_a_zero_row_and_a_row_whose_square_underflows_conflict_with_none() -> None:
    jacobian = conflicting(3, 0)
    jacobian[1] = 0
    jacobian[2] = -jacobian[0] * 1e-160
    answer = PCGrad(3)(TaskGradients(jacobian), torch.ones(3))
    assert answer.coefficients.tolist() == [1, 1, 1]


def test_the_seed_decides_the_order() -> None:
    same, other = PCGrad(5, seed=0).draw_order(5), PCGrad(5, seed=1).draw_order(5)
    assert PCGrad(5).draw_order(5) == same != other
    with pytest.raises(ValueError, match=r"^seed is -1; it must be at least 0$"):
        PCGrad(3, seed=-1)


# ---------------------------------------------------------------------------------------------- random loss weighting


def test_random_weights_are_a_softmax_of_normal_draws_times_the_number_of_tasks() -> None:
    balancer = RandomLossWeighting(4, seed=5)
    gradients, losses = TaskGradients(torch.eye(4)), torch.tensor([-1.0, 0.0, 2.0, 1e6])
    weights = torch.stack([balancer(gradients, losses).coefficients for _ in range(4000)])
    torch.testing.assert_close(weights.sum(1), torch.full((4000,), 4.0, dtype=torch.float64))
    assert bool((weights > 0).all())
    torch.testing.assert_close(weights.mean(0), torch.ones(4, dtype=torch.float64), rtol=0.05, atol=0)
    ratios = (weights[:, 0] / weights[:, 1]).log()  # the difference of two standard normal draws
    assert ratios.mean().item() == pytest.approx(0, abs=0.1)
    assert ratios.var().item() == pytest.approx(2, rel=0.1)
