"""The memory of past updates against its formula, behind balancers and agents; and the control that is made of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtrl import DirectionMemory, checkpoint, make_balancer
from mtrl.balancers import MemoryBalancer, NormalisedGradients, StaticWeights
from mtrl.gradients import TaskGradients


def updates(count: int, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drift = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [(drift + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(count)]


def unit(v: Any) -> Any:
    return v / np.linalg.norm(v)


def by_the_formula(gradients: list[Tensor], angle: float, decay: float) -> list[Any]:
    """Every step as the docstring writes it, in NumPy."""
    turned, d = [], None
    for g in (gradient.double().numpy() for gradient in gradients):
        y = unit(g)
        d = y if d is None else unit(decay * d + (1 - decay) * y)
        rest = d - (d @ y) * y
        a = min(angle, math.acos(np.clip(d @ y, -1, 1)))
        w = unit(rest) if np.linalg.norm(rest) > 1e-7 else 0 * y
        turned.append(np.linalg.norm(g) * (math.cos(a) * y + math.sin(a) * w) if np.any(w) else g)
    return turned


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)], ids=str)
@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8, math.pi / 2])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
def test_every_turn_is_that_of_the_formula(dtype: torch.dtype, tolerance: float, angle: float, decay: float) -> None:
    memory = DirectionMemory(angle, decay)
    gradients = updates(40, 30, dtype=dtype)
    for g, expected in zip(gradients, by_the_formula(gradients, angle, decay), strict=True):
        turned = memory.turn_(g.clone())
        np.testing.assert_allclose(turned.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, math.pi / 2), st.floats(0, 0.999), st.floats(-20, 20))
def test_an_update_keeps_its_length_and_turns_by_at_most_the_angle(
    seed: int, angle: float, decay: float, size: float
) -> None:
    memory = DirectionMemory(angle, decay)
    for g in updates(6, 12, seed=seed):
        scaled = 10**size * g
        turned = memory.turn_(scaled.clone())
        assert memory.direction is not None
        y, v, d = unit(scaled.numpy()), unit(turned.numpy()), memory.direction.numpy()
        assert np.linalg.norm(turned.numpy()) == pytest.approx(np.linalg.norm(scaled.numpy()), rel=1e-6)
        assert np.linalg.norm(d) == pytest.approx(1)
        assert math.acos(np.clip(v @ y, -1, 1)) <= angle + 1e-4
        assert v @ d >= y @ d - 1e-9  # towards the memory


def test_the_scale_of_an_update_changes_nothing_about_its_turn() -> None:
    one, other = DirectionMemory(), DirectionMemory()
    for index, g in enumerate(updates(10, 8)):
        factor = 10.0 ** (index % 5 - 2)
        torch.testing.assert_close(one.turn_(g.clone()) * factor, other.turn_(g * factor))


def test_a_constant_gradient_is_not_turned() -> None:
    memory, g = DirectionMemory(), torch.randn(50, generator=torch.Generator().manual_seed(0))
    for _ in range(1000):
        torch.testing.assert_close(memory.turn_(g.clone()), g)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_row_without_a_direction_is_neither_turned_nor_remembered(bad: float) -> None:
    memory = DirectionMemory()
    for g in updates(3, 6):
        memory.turn_(g)
    before = {name: part.clone() for name, part in memory.state_dict().items()}
    row = torch.full((6,), bad, dtype=torch.float64)
    torch.testing.assert_close(memory.turn_(row.clone()), row, equal_nan=True)
    assert torch.equal(memory.state_dict()["direction"], before["direction"])


def test_rows_have_memories_of_their_own() -> None:
    together, apart = DirectionMemory(), [DirectionMemory() for _ in range(3)]
    for step, rows in enumerate(updates(12, 3, 7)):
        rows[step % 3] *= step > 5  # rows that are zero begin later
        expected = torch.stack([one.turn_(row.clone()) for one, row in zip(apart, rows, strict=True)])
        torch.testing.assert_close(together.turn_(rows.clone()), expected)


def test_what_is_saved_goes_on_as_if_nothing_had_happened(tmp_path: Any) -> None:
    memory, gradients = DirectionMemory(), updates(20, 9, dtype=torch.float32)
    for g in gradients[:10]:
        memory.turn_(g.clone())
    checkpoint.save(tmp_path / "memory.zip", memory.state_dict())
    again = DirectionMemory()
    again.turn_(torch.ones(4))  # of another model
    again.load_state_dict(checkpoint.load(tmp_path / "memory.zip"))
    again.check(9)
    for g in gradients[10:]:
        assert torch.equal(memory.turn_(g.clone()), again.turn_(g.clone()))


def test_arguments_and_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"angle is 2"):
        DirectionMemory(2)
    with pytest.raises(ValueError, match=r"decay is 1"):
        DirectionMemory(decay=1)
    memory = DirectionMemory()
    memory.turn_(torch.ones(3))
    with pytest.raises(ValueError, match=r"the memory has 3 numbers and the update 4; call reset\(\)"):
        memory.turn_(torch.ones(4))
    with pytest.raises(ValueError, match=r"the memory has 3 numbers, and there are 5 parameters"):
        memory.check(5)
    memory.direction = torch.tensor([math.nan, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"a direction in the memory has length nan"):
        memory.check(3)


# ---------------------------------------------------------------------------------------------- behind balancers


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.heads = nn.Linear(5, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def losses(self, x: Tensor) -> list[Tensor]:
        return [(head(self.encoder(x).tanh()) - task).square().mean() for task, head in enumerate(self.heads)]


@pytest.mark.parametrize("name", ["equal", "pcgrad", "rgb", "normalised"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_backward_turns_the_shared_gradient_and_leaves_heads_alone(name: str, low_memory: bool) -> None:
    plain, turned, memory = Shared(), Shared(), DirectionMemory()
    balancers, reference = [make_balancer(name, 3) for _ in range(2)], DirectionMemory()
    for step in range(5):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        for model in (plain, turned):
            model.zero_grad()
        balancers[0].backward(plain.losses(x), plain.encoder.parameters(), low_memory=low_memory)
        balancers[1].backward(turned.losses(x), turned.encoder.parameters(), low_memory=low_memory, memory=memory)
        flat = [torch.cat([p.grad.flatten() for p in model.encoder.parameters()]) for model in (plain, turned)]  # type: ignore[union-attr]
        torch.testing.assert_close(flat[1], reference.turn_(flat[0].clone()))
        for one, other in zip(plain.heads.parameters(), turned.heads.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(one.grad, other.grad)


# ---------------------------------------------------------------------------------------------- the controls


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_the_memory_balancer_is_normalised_gradients_with_a_memory(num_tasks: int) -> None:
    balancer, normalised, memory = MemoryBalancer(num_tasks), NormalisedGradients(num_tasks), DirectionMemory()
    for rows in updates(30, num_tasks, 15):
        losses = torch.ones(num_tasks, dtype=torch.float64)
        expected = memory.turn_(normalised.combine(rows, losses))
        torch.testing.assert_close(balancer.combine(rows, losses), expected)


def test_normalised_gradients_are_rgb_that_never_rotates() -> None:
    normalised, rgb = NormalisedGradients(4), make_balancer("rgb", 4, update_interval=10**9)
    for rows in updates(5, 4, 10):
        losses = torch.ones(4, dtype=torch.float64)
        torch.testing.assert_close(normalised.combine(rows, losses), rgb.combine(rows, losses))


def test_normalised_gradients_have_one_length_and_together_that_of_the_sum() -> None:
    (rows,) = updates(1, 3, 10)
    rows = rows * torch.tensor([[0.01], [1.0], [100.0]])
    weights = NormalisedGradients()(TaskGradients(rows), torch.ones(3)).coefficients
    lengths = weights * rows.norm(dim=1)
    torch.testing.assert_close(lengths, rows.norm(dim=1).mean().expand(3))


def test_static_weights_are_those_that_were_given() -> None:
    (rows,) = updates(1, 3, 10)
    balancer = StaticWeights(weights=[0.5, 0, 2.5])
    torch.testing.assert_close(balancer.combine(rows, torch.ones(3)), 0.5 * rows[0] + 2.5 * rows[2])
    missing = balancer(TaskGradients(rows[1:], mask=[False, True, True]), torch.ones(2))
    assert missing.coefficients.tolist() == [0, 0, 2.5]
    equal = make_balancer("equal", 3).combine(rows, torch.ones(3))
    assert torch.equal(StaticWeights().combine(rows, torch.ones(3)), equal)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "got 2 weights for 3 tasks"),
        ([1, -1, 1], r"weights\[1\] is -1"),
        ([1, math.nan, 1], r"weights\[1\] is nan"),
        ([0, 0, 0], "weights are all 0"),
    ],
)
def test_bad_static_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticWeights(3, weights=weights)
