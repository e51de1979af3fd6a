"""RGB in Gramian form against its formulas on the gradients themselves."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtrl import checkpoint
from mtrl.balancers import RGB, make_balancer
from mtrl.balancers.rgb import angle_gradient, plane_products
from mtrl.conflict import conflict_share
from mtrl.gradients import TaskGradients


def rows(num_tasks: int, seed: int, size: int = 40, common: float = 0.0) -> Tensor:
    """Rows with about the cosine `common^2 / (1 + common^2)`, of norms over two decades."""
    generator = torch.Generator().manual_seed(seed)
    private = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
    shared = torch.randn(size, generator=generator, dtype=torch.float64)
    return (private + common * shared) * torch.logspace(-1, 1, num_tasks, dtype=torch.float64)[:, None]


def normalise(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def objective(angles: Tensor, u: Tensor, w: Tensor, lambd: float) -> Tensor:
    """F(a)."""
    T = len(u)
    r = angles.cos()[:, None] * u + angles.sin()[:, None] * w
    pairs = sum((1 - r[i] @ r[j] for i in range(T) for j in range(i + 1, T)), torch.zeros((), dtype=torch.float64))
    return pairs / (T * (T - 1)) + lambd / (4 * T) * ((r - u) ** 2).sum()


@dataclass
class FullRGB:
    """RGB on full gradients, with autograd for the angles."""

    mu: float = 0.9
    lambd: float = 1.0
    alpha_steps: int = 3
    lr_inner: float = 0.2
    factor: float = 1.0
    align_threshold: float = 1.0
    d: Tensor | None = None
    angles: Tensor | None = None
    rotated: Tensor = field(default_factory=lambda: torch.zeros(0))

    def plane(self, u: Tensor) -> Tensor:
        assert self.d is not None
        return torch.stack([normalise(self.d - (row @ self.d) * row) for row in u])

    def step(self, jacobian: Tensor) -> Tensor:
        u = torch.stack([normalise(row) for row in jacobian])
        y = normalise(u.mean(0))
        self.d = y if self.d is None else normalise(self.mu * self.d + (1 - self.mu) * y)
        w = self.plane(u)
        angles = torch.zeros(len(u), dtype=torch.float64) if self.angles is None else self.angles
        turns = (u @ self.d).abs() <= self.align_threshold
        angles = angles * turns
        for _ in range(self.alpha_steps):
            angles = angles.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(angles, u, w, self.lambd), angles)
            angles = (angles - self.lr_inner * self.factor * gradient * turns).detach().clamp(0, math.pi / 2 - 1e-6)
        self.angles = angles
        self.rotated = angles.cos()[:, None] * u + angles.sin()[:, None] * w
        return self.rotated.mean(0)


@pytest.mark.parametrize("num_tasks", [2, 3, 6])
@pytest.mark.parametrize(
    ("kwargs", "invariant"),
    [
        ({}, False),
        ({}, True),
        ({"mu": 0.0, "lambd": 0.0, "lr_inner": 2.0, "alpha_steps": 5}, False),  # reaches the bound pi/2
        ({"mu": 0.5, "lambd": 4.0, "alpha_steps": 1}, True),
    ],
)
def test_its_steps_are_those_on_full_gradients(num_tasks: int, kwargs: dict[str, Any], invariant: bool) -> None:
    reference = FullRGB(**kwargs, factor=num_tasks - 1 if invariant else 1)
    balancer = RGB(num_tasks, **kwargs, invariant_steps=invariant, magnitude="unit")
    for seed in range(20):
        jacobian = rows(num_tasks, seed, common=0.4)
        expected = reference.step(jacobian)
        gradients = TaskGradients(jacobian)
        answer = balancer(gradients, torch.ones(num_tasks))
        assert (answer.update(gradients) - expected).norm() <= 1e-9 * expected.norm()
        assert reference.angles is not None
        torch.testing.assert_close(answer.diagnostics["angle"], reference.angles, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(balancer.consensus, reference.d, rtol=1e-9, atol=1e-12)
        assert reference.d is not None
        cosine = jacobian @ reference.d / jacobian.norm(dim=1)
        torch.testing.assert_close(answer.diagnostics["consensus_cosine"], cosine, rtol=1e-9, atol=1e-12)


def test_published_is_the_public_original_also_where_tasks_align() -> None:
    num_tasks = 4
    reference, balancer = FullRGB(align_threshold=0.999), RGB.published(num_tasks)
    ours, longer = RGB(num_tasks, magnitude="unit", invariant_steps=False), RGB.published(magnitude="sum_norm")
    assert longer.magnitude == "sum_norm"
    apart, aligned = 0.0, 0
    for step in range(50):
        jacobian = rows(num_tasks, 0, common=100.0) if 10 <= step < 45 else rows(num_tasks, step, common=0.4)
        expected = reference.step(jacobian)
        gradients = TaskGradients(jacobian)
        update = balancer(gradients, torch.ones(num_tasks)).update(gradients)
        assert (update - expected).norm() <= 1e-9 * expected.norm()
        torch.testing.assert_close(torch.tensor(balancer.angles), reference.angles, rtol=1e-9, atol=1e-12)
        assert reference.d is not None
        aligned += int(((jacobian @ reference.d).abs() > 0.999 * jacobian.norm(dim=1)).sum())
        other = ours(gradients, torch.ones(num_tasks)).update(gradients)
        apart = max(apart, float((other - expected).norm() / expected.norm()))
    assert aligned > num_tasks
    assert apart > 0.01  # what the threshold is for
    assert make_balancer("rgb", num_tasks, **RGB.PUBLISHED).magnitude == "unit"


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize("lambd", [0.0, 1.0, 3.0])
def test_the_angle_gradient_is_autograds(num_tasks: int, lambd: float) -> None:
    u = nn.functional.normalize(rows(num_tasks, 1), dim=1)
    d = normalise(torch.randn(u.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    reference = FullRGB(d=d)
    angles = torch.linspace(0, 1.5, num_tasks, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(objective(angles, u, reference.plane(u), lambd), angles)
    c = (u @ d).numpy()
    products = plane_products((u @ u.T).numpy(), c, 1 / np.sqrt(1 - c**2))
    w = reference.plane(u)
    torch.testing.assert_close(torch.from_numpy(products), torch.cat((u, w)) @ torch.cat((u, w)).T)
    gradient = angle_gradient(angles.detach().numpy(), products, lambd, num_tasks)
    torch.testing.assert_close(torch.from_numpy(gradient), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_it_lowers_pairwise_conflict(num_tasks: int) -> None:
    before, after = 0.0, 0.0
    balancer, reference = RGB(num_tasks), FullRGB(factor=num_tasks - 1 if num_tasks > 3 else 1)
    for seed in range(20):
        jacobian = rows(num_tasks, seed, size=20)
        if num_tasks == 2:
            jacobian[1] -= jacobian[0] * jacobian[1].norm() / jacobian[0].norm()
        balancer.combine(jacobian, torch.ones(num_tasks))
        reference.step(jacobian)  # the same rotation, with the rotated rows at hand
        rotated = reference.rotated
        before += conflict_share(jacobian @ jacobian.T).item()
        after += conflict_share(rotated @ rotated.T).item()
        cosine, turned = (nn.functional.normalize(x, dim=1) for x in (jacobian, rotated))
        assert (turned @ turned.T).sum() > (cosine @ cosine.T).sum()
        torch.testing.assert_close(torch.from_numpy(balancer.angles), reference.angles, rtol=1e-9, atol=1e-12)
    assert after < 0.7 * before


def mean_angle(num_tasks: int, common: float, calls: int, **kwargs: Any) -> float:
    balancer = RGB(num_tasks, **kwargs)
    for seed in range(calls):
        answer = balancer(TaskGradients(rows(num_tasks, seed, size=4000, common=common)), torch.ones(num_tasks))
    return answer.diagnostics["angle"].mean().item()


def test_published_steps_vanish_as_the_number_of_tasks_grows_and_invariant_ones_do_not() -> None:
    published = {T: mean_angle(T, 0.0, 1, invariant_steps=False) for T in (2, 10, 50)}
    assert published[2] == pytest.approx(0.27, abs=0.03)
    assert published[10] == pytest.approx(0.02, abs=0.003)
    assert published[50] == pytest.approx(0.0016, abs=0.0003)
    # Tasks that are as similar (here of pairwise cosine 0.3) turn as far, whatever their number.
    similar = {T: mean_angle(T, 0.65, 1, invariant_steps=True) for T in (2, 4, 10, 50)}
    assert similar[2] == mean_angle(2, 0.65, 1, invariant_steps=False)
    for angle in similar.values():
        assert angle == pytest.approx(similar[2], rel=0.15)
    # Unrelated tasks: the mean of T directions has length 1/sqrt(T), and that is all that slows the first call, ...
    for T in (10, 50):
        assert mean_angle(T, 0.0, 1, invariant_steps=True) > published[2] * math.sqrt(2 / T)
    # ... and the warm start makes up for it.
    settled = {T: mean_angle(T, 0.0, 20, invariant_steps=True) for T in (2, 10, 50)}
    for angle in settled.values():
        assert angle == pytest.approx(settled[2], rel=0.1)
    assert mean_angle(50, 0.0, 20, invariant_steps=False) < 0.01


def test_invariant_steps_are_the_default_above_three_tasks() -> None:
    for num_tasks, invariant in ((2, False), (3, False), (4, True), (9, True)):
        assert mean_angle(num_tasks, 0.3, 2) == mean_angle(num_tasks, 0.3, 2, invariant_steps=invariant)


def test_between_rotations_the_update_is_the_mean_of_unit_gradients_while_the_consensus_moves_on() -> None:
    balancer, always = RGB(3, update_interval=3, magnitude="unit"), RGB(3, magnitude="unit")
    for call in range(1, 10):
        jacobian = rows(3, call)
        gradients = TaskGradients(jacobian)
        answer = balancer(gradients, torch.ones(3))
        always.combine(jacobian, torch.ones(3))
        torch.testing.assert_close(balancer.consensus, always.consensus)
        plain = nn.functional.normalize(jacobian, dim=1).mean(0)
        turned = answer.diagnostics["angle"]
        if call % 3:
            torch.testing.assert_close(answer.update(gradients), plain)
            assert turned.tolist() == [0, 0, 0]
        else:
            assert not torch.allclose(answer.update(gradients), plain, rtol=1e-3)
            assert (turned > 0).any()


def test_magnitudes() -> None:
    jacobian = rows(3, 0)
    unit, mean, total = (
        RGB(3, magnitude=m).combine(jacobian, torch.ones(3)) for m in ("unit", "mean_norm", "sum_norm")
    )
    norms = jacobian.norm(dim=1)
    assert unit.norm() <= 1
    torch.testing.assert_close(mean, norms.mean() * unit)
    torch.testing.assert_close(total, norms.sum() * unit)
    assert torch.equal(RGB(3).combine(jacobian, torch.ones(3)), total)
    scaled = RGB(3, magnitude="unit").combine(1e6 * jacobian, torch.ones(3))
    torch.testing.assert_close(scaled, unit)
    one = rows(1, 0)
    torch.testing.assert_close(RGB(1, magnitude="unit").combine(one, torch.ones(1)), one[0] / one.norm())


# ---------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposed_tasks_give_zero_at_first_and_keep_the_consensus_later(dtype: torch.dtype) -> None:
    u = rows(1, 0)[0].to(dtype)
    opposed = torch.stack((u, -2 * u))
    balancer = RGB(2, magnitude="unit")
    answer = balancer(TaskGradients(opposed), torch.ones(2))
    assert answer.update(TaskGradients(opposed)).norm() < 1e-6
    assert balancer.consensus is None
    assert "consensus_cosine" not in answer.diagnostics
    balancer.combine(rows(2, 1).to(dtype), torch.ones(2))
    before = balancer.consensus.clone()
    update = balancer.combine(opposed, torch.ones(2))
    assert torch.equal(balancer.consensus, before)
    assert update @ before > 0  # both turn towards it
    assert (update @ u).abs() < 0.5 * update.norm() * u.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_task_along_the_consensus_or_against_it_is_not_turned(dtype: torch.dtype, sign: int) -> None:
    balancer = RGB(2, magnitude="unit")
    d = normalise(rows(1, 0)[0]).to(dtype)
    balancer.consensus = d.clone()
    gradients = TaskGradients(torch.stack((sign * 3 * d, sign * 5 * d)))
    answer = balancer(gradients, torch.ones(2))
    assert answer.diagnostics["angle"].tolist() == [0, 0]
    torch.testing.assert_close(answer.diagnostics["consensus_cosine"].abs(), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(answer.update(gradients), sign * d)
    torch.testing.assert_close(balancer.consensus, d)


def test_a_task_along_the_consensus_stays_while_others_turn() -> None:
    d = torch.eye(4, dtype=torch.float64)[0]
    balancer = RGB(3)
    angles = balancer.rotate([0.0] * 3, torch.eye(3).tolist(), [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], 3)
    assert angles[0] == 0
    assert min(angles[1:]) > 0
    # As the third of three tasks whose mean is along d = u_0.
    jacobian = torch.stack((d, d + torch.eye(4)[1], d - torch.eye(4)[1]))
    answer = balancer(TaskGradients(jacobian), torch.ones(3))
    assert answer.diagnostics["angle"][0] == 0
    assert bool((answer.diagnostics["angle"][1:] > 0).all())


def test_a_mean_against_the_consensus_cancels_at_half_and_leaves_it() -> None:
    balancer = RGB(2, mu=0.5)
    jacobian = rows(1, 0).expand(2, -1)
    balancer.combine(jacobian, torch.ones(2))
    before = balancer.consensus.clone()
    assert bool(balancer.combine(-jacobian, torch.ones(2)).isfinite().all())
    assert torch.equal(balancer.consensus, before)


def test_a_consensus_that_the_gradients_oppose_for_long_stays_a_unit_vector() -> None:
    balancer = RGB(2)
    jacobian = rows(1, 0).expand(2, -1).float()
    balancer.combine(jacobian, torch.ones(2))
    for _ in range(300):
        balancer.combine(-jacobian, torch.ones(2))
        assert balancer.consensus.norm().item() == pytest.approx(1, abs=1e-5)


def test_zero_rows_are_as_if_they_were_not_there() -> None:
    with_zero, without = RGB(4, invariant_steps=True), RGB(3, invariant_steps=True)
    for seed in range(5):
        jacobian = rows(3, seed)
        padded = torch.cat((jacobian[:1], torch.zeros(1, 40, dtype=torch.float64), jacobian[1:]))
        answer = with_zero(TaskGradients(padded), torch.ones(4))
        expected = without.combine(jacobian, torch.ones(3))
        torch.testing.assert_close(answer.update(TaskGradients(padded)), expected)
        assert answer.coefficients[1] == answer.diagnostics["angle"][1] == 0


def test_a_task_keeps_its_angle_while_its_gradient_is_zero() -> None:
    balancer = RGB(3)
    for seed in range(3):
        balancer.combine(rows(3, seed), torch.ones(3))
    before = balancer.angles.copy()
    absent = rows(3, 3)
    absent[1] = 0
    balancer.combine(absent, torch.ones(3))
    assert balancer.angles[1] == before[1] > 0
    assert balancer.angles[0] != before[0]


def test_a_lone_task_is_not_turned_although_the_consensus_is_elsewhere() -> None:
    balancer = RGB(2)
    balancer.combine(rows(2, 0), torch.ones(2))
    jacobian = rows(2, 1)
    jacobian[1] = 0
    torch.testing.assert_close(balancer.combine(jacobian, torch.ones(2)), jacobian[0])


# ---------------------------------------------------------------------------------------------- state


def test_the_first_call_says_how_many_tasks_there_are(tmp_path: Any) -> None:
    balancer = RGB()
    for seed in range(5):
        balancer.combine(rows(3, seed), torch.ones(3))
    with pytest.raises(ValueError, match=r"^this balancer was made for 3 tasks and got 4$"):
        balancer.combine(rows(4, 0), torch.ones(4))
    with pytest.raises(
        ValueError, match=r"^RGB's consensus has 40 numbers and the gradients have 7: give the same `parameters`"
    ):
        balancer.combine(rows(3, 0, size=7), torch.ones(3))
    checkpoint.save(tmp_path / "state.zip", balancer.state_dict())
    used = RGB()
    used.combine(rows(2, 0, size=7), torch.ones(2))
    for other in (RGB(), used):
        other.load_state_dict(checkpoint.load(tmp_path / "state.zip"))
    expected = [balancer.combine(rows(3, seed), torch.ones(3)) for seed in range(5, 10)]
    assert torch.equal(used.combine(rows(3, 5), torch.ones(3)), expected[0])
    balancer.load_state_dict(RGB().state_dict())  # the state before the first call
    assert balancer.consensus is None
    balancer.combine(rows(4, 0), torch.ones(4))


def test_the_consensus_is_part_of_the_state_and_follows_the_gradients_dtype() -> None:
    balancer = RGB()
    assert "consensus" not in balancer.state_dict()
    balancer.combine(rows(3, 0).float(), torch.ones(3))
    assert balancer.state_dict()["consensus"].dtype == torch.float32
    balancer.to(torch.float64)
    assert balancer.combine(rows(3, 1).float(), torch.ones(3)).dtype == torch.float32
    assert balancer.combine(rows(3, 1), torch.ones(3)).dtype == torch.float64


def test_three_lines_in_any_loop() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x, optimizer, rgb = torch.randn(20, 5), torch.optim.SGD(model.parameters(), 0.05), RGB()
    losses = [(model(x)[:, task] - task).pow(2).mean() for task in range(3)]
    weights = rgb.backward(losses)
    optimizer.step()
    assert weights.shape == (3,)
    after = sum((model(x)[:, task] - task).pow(2).mean() for task in range(3))
    assert after < sum(losses)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mu": 1.0}, "mu is 1.0; it must be at least 0 and below 1"),
        ({"mu": math.nan}, "mu is nan"),
        ({"lambd": -1.0}, "lambd is -1.0; it must be at least 0"),
        ({"alpha_steps": 0}, "alpha_steps is 0; it must be between 1 and 10000"),
        ({"lr_inner": 0.0}, "lr_inner is 0.0; it must be above 0"),
        ({"update_interval": 0}, "update_interval is 0; it must be at least 1"),
        ({"align_threshold": 1.5}, "align_threshold is 1.5; it must be above 0 and at most 1"),
        ({"magnitude": "norm"}, "unknown magnitude 'norm'; choose from unit, mean_norm, sum_norm"),
    ],
)
def test_it_refuses_values_out_of_range(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        RGB(2, **kwargs)


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_plain_numbers_and_arrays_turn_alike(num_tasks, monkeypatch):
    rng = np.random.default_rng(num_tasks)
    rows = rng.standard_normal((num_tasks, 20))
    d = rng.standard_normal(20)
    rows, d = rows / np.linalg.norm(rows, axis=1, keepdims=True), d / np.linalg.norm(d)
    C, c, angles = rows @ rows.T, rows @ d, rng.uniform(0, 1, num_tasks)
    inverse_s = 1 / np.sqrt(1 - c * c)
    inverse_s[0] = 0  # a task without a plane to turn in
    balancer = RGB(num_tasks, alpha_steps=7, lr_inner=0.5)
    arguments = (angles.tolist(), C.tolist(), c.tolist(), inverse_s.tolist(), num_tasks)
    few = balancer.rotate(*arguments)
    monkeypatch.setattr("mtrl.balancers._few_tasks.FEW", 0)
    np.testing.assert_allclose(few, balancer.rotate(*arguments), rtol=1e-12, atol=1e-14)
    assert not np.allclose(few, angles)
