"""Whatever finite rows a balancer is given, its answer and its state stay finite; whatever is not finite is refused."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers import AIM, Balancer, make_balancer, names, torchjd_names
from mtrl.gradients import NonFiniteGradientError, TaskGradients

Array = NDArray[np.float64]
CALLS = 6  # one balancer object sees so many batches in a row
SEQUENCES = 2_400  # of each balancer: 7 * 2,400 * 6 = 100,800 Jacobians
MASKED = 0.15  # share of batches in which tasks are missing

# Ordinary settings, and such as a user could give that make every step as large as it can be.
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "gradnorm": (
        {"warmup_steps": 1},
        {"warmup_steps": 2, "lr": 1e3, "weight_floor": 0.0},
        {"warmup_steps": 1, "lr": 0.5, "alpha": 50.0, "initial_loss_floor": 1e-300},
        {"warmup_steps": 1, "lr": 0.5, "progress": "return", "return_range": (-200.0, 200.0)},
        {},
    ),
    "rgb": (
        {},
        {"magnitude": "mean_norm", "update_interval": 2},
        {"magnitude": "unit", "mu": 0.5},
        {"mu": 0.0, "lr_inner": 1e6, "lambd": 0.0},
        {"invariant_steps": False, "lambd": 1e6, "scale": "mean"},
    ),
    "aim": (
        {},
        {"tau": "scalar", "lr": 10.0},
        {"k": 1e6, "lr": 1e3},
        {"magnitude_weight": 1e6, "progress_weight": 0.0},
        {"gate": True, "lr": 1.0, "guidance_loss": "log_sum"},
    ),
}
SETTINGS["gradnorm_pcgrad"] = SETTINGS["gradnorm"]
TORCHJD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "CRMOGMWeighting": {"weighting": "UPGrad"},
    "FairGrad": {"alpha": 2.0},
    "Krum": {"n_byzantine": 1},
    "MoDoWeighting": {"gamma": 0.001},
    "TrimmedMean": {"trim_number": 1},
}
LEAST_TASKS = {"Krum": 4, "NashMTL": 2, "TrimmedMean": 3}  # with fewer these say so when they are made


def shapes(rng: np.random.Generator) -> tuple[int, int]:
    """T and D, small for the most part: what goes wrong with 64 tasks goes wrong with 5, as a rule."""
    num_tasks = int(rng.integers(1, 7)) if rng.random() < 0.93 else int(rng.integers(7, 65))
    size = int(rng.integers(1, 33)) if rng.random() < 0.98 else int(rng.integers(33, 400))
    return num_tasks, size


def jacobians(rng: np.random.Generator, calls: int, T: int, D: int) -> Array:
    """Jacobians (calls, T, D) of one kind, entries of about 1e-30 to 1e30, ranks 0 to T."""
    kind = rng.integers(8)
    if kind == 0:  # a rank of its own
        rank = int(rng.integers(0, min(T, D) + 1))
        J = rng.standard_normal((calls, T, rank)) @ rng.standard_normal((calls, rank, D))
    elif kind == 1:  # duplicates and exactly opposed rows
        J = rng.standard_normal((calls, 1, D)) * rng.choice([-1.0, 1.0], (calls, T, 1))
    elif kind == 2:  # one-hot
        J = np.zeros((calls, T, D))
        hot = rng.integers(D, size=(calls, T, 1))
        np.put_along_axis(J, hot, rng.choice([-1.0, 1.0], (calls, T, 1)), axis=2)
    elif kind == 3:  # nearly collinear, nearly opposed
        J = rng.standard_normal((calls, 1, D)) * rng.choice([-1.0, 1.0], (calls, T, 1))
        J = J + 10.0 ** rng.uniform(-17, -2) * rng.standard_normal((calls, T, D))
    elif kind == 4:  # summing to zero, at first or always
        J = rng.standard_normal((calls, T, D))
        J[:, -1] = -J[:, :-1].sum(1)
    elif kind == 5:  # the same batch again, mirrored at every other call
        J = rng.standard_normal((1, T, D)) * np.where(np.arange(calls) % 2, -1.0, 1.0)[:, None, None]
    elif kind == 6:  # entries of all scales in one row
        J = rng.choice([-1.0, 1.0], (calls, T, D)) * 10.0 ** rng.uniform(-30, 30, (calls, T, D))
    else:
        J = rng.standard_normal((calls, T, D))
    if kind != 6:
        J = J * scales(rng, calls, T)
    if rng.random() < 0.2:
        J = J * (rng.random((calls, T, 1)) < 0.5)  # zero rows
    clipped: Array = np.clip(J, -1e31, 1e31)
    return clipped


def scales(rng: np.random.Generator, calls: int, T: int) -> Array:
    """Factors that broadcast to (calls, T, 1): for each row, for each batch, for all, of two extremes, or none."""
    kind = rng.integers(5)
    if kind == 4:
        return np.ones((1, 1, 1))
    if kind == 3:
        return rng.choice([1e-30, 1.0, 1e30], (calls, T, 1))
    shape = ((calls, T, 1), (calls, 1, 1), (1, 1, 1))[kind]
    return np.asarray(10.0 ** rng.uniform(-30, 30, shape))


def loss_values(rng: np.random.Generator, calls: int, T: int) -> Array:
    """Losses (calls, T), of 0 to 1e30."""
    kind = rng.integers(5)
    if kind == 0:
        return rng.random((calls, T))
    if kind == 1:
        return 10.0 ** rng.uniform(-30, 30, (calls, T))
    if kind == 2:
        return rng.choice([0.0, 1e-30, 1.0, 1e30], (calls, T))
    if kind == 3:
        return rng.choice([0.0, 5e-324, 1e-310, 1e30], (calls, T))  # subnormal numbers among them
    return np.zeros((calls, T))


def sequences(seed: int, count: int) -> Iterator[tuple[np.random.Generator, Tensor, Tensor]]:
    """Jacobians (CALLS, T, D) and losses (CALLS, T), and a generator to go on with."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        T, D = shapes(rng)
        dtype = (torch.float32, torch.float64)[int(rng.integers(2))]
        J, losses = jacobians(rng, CALLS, T, D), loss_values(rng, CALLS, T)
        yield rng, torch.from_numpy(J).to(dtype), torch.from_numpy(losses).to(dtype)


def mask_of(rng: np.random.Generator, T: int) -> list[bool] | None:
    """Which tasks are in a batch; None for all."""
    if T == 1 or rng.random() >= MASKED:
        return None
    mask = rng.random(T) < 0.6
    mask[rng.integers(T)] = True
    return [bool(there) for there in mask]


def extreme_guidance(rng: np.random.Generator, jacobian: Tensor) -> Any:
    """A guidance gradient, finite at any step: of the scale of a row, zero, or along the step."""
    kind = int(rng.integers(3))
    h = jacobian[0].clone() if kind == 0 else torch.zeros_like(jacobian[0])
    return torch.sign if kind == 2 else (lambda step: h)


def state_of(balancer: Balancer) -> dict[str, Any]:
    return copy.deepcopy(balancer.state_dict())


def same(left: Any, right: Any) -> bool:
    """Whether two states are the same, where NaN is NaN."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Tensor):
        return left.shape == right.shape and bool(torch.allclose(left, right, rtol=0, atol=0, equal_nan=True))
    return bool(np.array_equal(left, right))


def finite(state: Any) -> bool:
    """Whether a state holds no NaN and no infinity; returns that nobody has recorded are NaN on purpose."""
    if isinstance(state, dict):
        return all(finite(value) for key, value in state.items() if not key.endswith("returns"))
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    if isinstance(state, list):
        return all(map(finite, state))
    return not isinstance(state, float) or math.isfinite(state)


def ask(balancer: Balancer, rng: np.random.Generator, jacobian: Tensor, losses: Tensor) -> None:
    """One call, perhaps with tasks missing; the answer must be finite and in proportion to the rows."""
    mask, T = mask_of(rng, len(losses)), len(losses)
    if mask is not None:
        there = torch.tensor(mask)
        jacobian, losses = jacobian[there], losses[there]
    gradients = TaskGradients(jacobian, mask=mask)
    if rng.random() < 0.1:
        balancer.record_returns(torch.from_numpy(rng.choice([math.nan, -1e30, 0.0, 1e30], T)))
    answer = balancer(gradients, losses)
    update = answer.update(gradients)
    assert update.dtype == jacobian.dtype
    assert update.shape == jacobian.shape[1:]
    # No method makes a task more than T times as long, and each takes part in at most T tasks' gradients; the published
    # RGB gives lengths of at most 1. Infinity and NaN are beyond any bound.
    rows = torch.linalg.vector_norm(jacobian, dim=1, dtype=torch.float64).sum().item()
    bound = T * rows * (1 + 1e-3) + 1.001 * (getattr(balancer, "magnitude", None) == "unit")
    assert torch.linalg.vector_norm(update, dtype=torch.float64).item() <= bound + 1e-35
    assert answer.coefficients.isfinite().all()
    for name, value in answer.diagnostics.items():
        known = value
        if mask is not None and value.ndim:
            known = value[np.ix_(*(np.flatnonzero(mask),) * value.ndim)]
        assert known.isfinite().all(), name
        if name == "cosine":
            assert known.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("name", names())
@torch.no_grad()
def test_any_finite_rows_give_a_finite_answer_and_a_finite_state(name: str) -> None:
    """Over 100,000 Jacobians in all: random and adversarial, of any rank, in float32 and float64, tasks missing."""
    settings = SETTINGS.get(name, ({},))
    for number, (rng, rows, losses) in enumerate(sequences(names().index(name), SEQUENCES)):
        balancer = make_balancer(name, rows.shape[1], **settings[number % len(settings)])
        if isinstance(balancer, AIM):
            balancer.set_guidance(extreme_guidance(rng, rows[0]), eta=float(10.0 ** rng.uniform(-6, 1)))
        for call in range(CALLS):
            try:
                ask(balancer, rng, rows[call], losses[call])
            except Exception as error:
                raise AssertionError(f"sequence {number}, call {call}: {rows[call]}, {losses[call]}") from error
        assert finite(balancer.state_dict()), f"sequence {number}"


@pytest.mark.parametrize("name", names())
@torch.no_grad()
def test_a_row_or_loss_that_is_not_finite_is_refused_by_name_and_the_state_stays(name: str) -> None:
    for number, (rng, rows, losses) in enumerate(sequences(100 + names().index(name), 150)):
        T, D = rows.shape[1:]
        settings = SETTINGS.get(name, ({},))
        balancer = make_balancer(name, T, **settings[number % len(settings)])
        for call in range(int(rng.integers(3))):
            ask(balancer, rng, rows[call], losses[call])
        before = state_of(balancer)
        task, bad = int(rng.integers(T)), (math.nan, math.inf, -math.inf)[number % 3]
        spoilt = rows[-1].clone()
        spoilt[task, rng.integers(D)] = bad
        with pytest.raises(NonFiniteGradientError, match=rf"^the gradient of task {task} is not finite$"):
            balancer(TaskGradients(spoilt), losses[-1])
        assert same(balancer.state_dict(), before)
        if T > 1:  # counted among all tasks, those that are missing included
            mask = [other != (task + 1) % T for other in range(T)]
            with pytest.raises(NonFiniteGradientError, match=rf"^the gradient of task {task} is not finite$"):
                balancer(TaskGradients(spoilt[torch.tensor(mask)], mask=mask), losses[-1][torch.tensor(mask)])
            assert same(balancer.state_dict(), before)
        if balancer.needs_positive_losses:
            wrong = losses[-1].clone()
            wrong[task] = bad
            with pytest.raises(ValueError, match=rf"needs finite losses >= 0; task {task} has "):
                balancer(TaskGradients(rows[-1]), wrong)
            assert same(balancer.state_dict(), before)


@torch.no_grad()
def test_guidance_that_is_not_finite_is_refused_and_the_state_stays() -> None:
    for number, (rng, rows, losses) in enumerate(sequences(200, 50)):
        balancer = make_balancer("aim", rows.shape[1], **SETTINGS["aim"][number % 5])
        ask(balancer, rng, rows[0], losses[0])
        before = state_of(balancer)
        balancer.set_guidance(lambda step: torch.full_like(step, math.nan))
        with pytest.raises(NonFiniteGradientError, match="guidance"):
            balancer(TaskGradients(rows[1]), losses[1])
        assert same(balancer.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@torch.no_grad()
def test_products_that_leave_the_range_of_the_rows_are_those_of_float64(dtype: torch.dtype) -> None:
    """Squares that overflow or fade away, coefficients beyond the dtype: the answer is that of the rows in float64."""
    rng = np.random.default_rng(0)
    exponent = 30.0 if dtype != torch.float16 else 4.0
    for _ in range(200):
        scale = 10.0 ** rng.uniform(-exponent, exponent, (3, 1))
        rows = torch.from_numpy(rng.standard_normal((3, 16)) * scale).to(dtype)
        narrow, wide = TaskGradients(rows), TaskGradients(rows.double())
        norms = wide.layer_norms
        assert torch.allclose(narrow.layer_norms, norms, rtol=0.1)
        assert ((narrow.gramian - wide.gramian).abs() <= 0.1 * norms * norms[:, None]).all()
        coefficients = norms.sum() / norms  # up to 1e60
        expected, got = wide.combine(coefficients), narrow.combine(coefficients).double()
        assert torch.linalg.vector_norm(got - expected) <= 0.1 * norms.sum()


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning", "ignore:Solution may be inaccurate:UserWarning")
@pytest.mark.parametrize("name", torchjd_names())
@torch.no_grad()
def test_torchjd_answers_with_finite_numbers_or_one_clear_line(name: str) -> None:
    """Its methods are its own: what they can't take they may refuse, but in words and by name."""
    refused = []
    for number, (_, rows, losses) in enumerate(sequences(300, 40)):
        T = rows.shape[1]
        if not LEAST_TASKS.get(name, 1) <= T <= 6:
            continue
        arguments = {"weights": [1.0] * T} if name == "Constant" else TORCHJD_ARGUMENTS.get(name, {})
        balancer = make_balancer(f"torchjd:{name}", T, **arguments)
        for J, values in zip(rows[:3], losses, strict=False):
            try:
                assert balancer.combine(J, values).isfinite().all(), f"sequence {number}"
            except (ValueError, FloatingPointError) as error:
                refused.append(str(error))
    assert all(text.startswith(f"torchjd:{name}") and len(text.splitlines()) == 1 for text in refused), refused
    if name not in ("ExcessMTL", "GradVac", "NashMTL"):  # which multiply or solve for numbers of their own
        assert not refused
