"""Conflict metrics of a Gramian against their definitions on the gradients."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from mtrl.conflict import conflict_metrics, conflict_share, cosines, magnitude_similarity, norm_ratio
from mtrl.gradients import TaskGradients


def rows(num_tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, num_tasks, dtype=torch.float64)
    return torch.randn(num_tasks, 15, generator=generator, dtype=torch.float64) * scale[:, None]


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_their_definitions(num_tasks: int, seed: int) -> None:
    J = rows(num_tasks, seed)
    metrics = conflict_metrics(TaskGradients(J).gramian)
    norms, pairs = J.norm(dim=1), list(combinations(range(num_tasks), 2))
    for i in range(num_tasks):
        for j in range(num_tasks):
            cosine = (J[i] @ J[j] / (norms[i] * norms[j])).item()
            assert metrics["cosine"][i, j].item() == pytest.approx(cosine, rel=1e-9)
            similarity = (2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2)).item()
            assert metrics["magnitude_similarity"][i, j].item() == pytest.approx(similarity, rel=1e-9)
    share = sum(bool(J[i] @ J[j] < 0) for i, j in pairs) / max(len(pairs), 1)
    assert metrics["conflict_share"].item() == pytest.approx(share)
    assert metrics["norm_ratio"].item() == pytest.approx((norms.max() / norms.min()).item())
    assert {name: tuple(value.shape) for name, value in metrics.items()} == {
        "cosine": (num_tasks, num_tasks),
        "conflict_share": (),
        "norm_ratio": (),
        "magnitude_similarity": (num_tasks, num_tasks),
    }


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_common_scale_changes_nothing(scale: float) -> None:
    plain, scaled = (conflict_metrics(TaskGradients(s * rows(4, 0)).gramian) for s in (1, scale))
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value)


def test_zero_gradients_have_no_direction_and_no_part_in_the_ratio() -> None:
    J = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-3.0, 0.0], [0.0, 0.0]])
    gramian = TaskGradients(J).gramian
    assert cosines(gramian).tolist() == [[1, 0, -1, 0], [0, 0, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    assert conflict_share(gramian).item() == pytest.approx(1 / 6)
    assert norm_ratio(gramian).item() == pytest.approx(3)
    similarity = magnitude_similarity(gramian)
    assert similarity[0, 2].item() == pytest.approx(0.6)
    assert similarity[0, 1] == similarity[1, 3] == similarity[1, 1] == 0
    nothing = conflict_metrics(torch.zeros(3, 3, dtype=torch.float64))
    assert nothing["norm_ratio"].item() == 1
    assert all(bool((value == 0).all()) for name, value in nothing.items() if name != "norm_ratio")


def test_cosines_stay_within_their_range() -> None:
    J = torch.full((3, 7), math.pi) * torch.tensor([[1.0], [-3.0], [1e-7]])
    cosine = cosines(TaskGradients(J).gramian)
    assert cosine.abs().max() <= 1
    torch.testing.assert_close(cosine.abs(), torch.ones(3, 3, dtype=torch.float64), rtol=1e-6, atol=0)
