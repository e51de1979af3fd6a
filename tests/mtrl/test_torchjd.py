"""TorchJD's aggregators by name: its own answers, reproducibly, with errors of one line."""

import copy
import sys
from typing import Any

import pytest
import torch
import torchjd.aggregation as library
from torch import Tensor

from mtrl import checkpoint
from mtrl.balancers import TorchJD, make_balancer, torchjd_names
from mtrl.balancers.torchjd import DEFAULTS
from mtrl.gradients import TaskGradients

T, D = 4, 30
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "CRMOGMWeighting": {"weighting": "UPGrad"},
    "Constant": {"weights": [0.1, 0.2, 0.3, 0.4]},
    "FairGrad": {"alpha": 2.0},
    "Krum": {"n_byzantine": 1},
    "MoDoWeighting": {"gamma": 0.001},  # so small that it stays inside the simplex
    "TrimmedMean": {"trim_number": 1},
}
RANDOM = {"GradDrop", "GradVac", "PCGrad", "Random"}
STATEFUL = {"CRMOGMWeighting", "ExcessMTL", "GradVac", "MoDoWeighting", "NashMTL", "PCD", "SDMGradWeighting"}
COORDINATES = {"ConFIG", "GradDrop", "TrimmedMean"}
every_aggregator = pytest.mark.parametrize("name", torchjd_names())


def make(name: str, **kwargs: Any) -> TorchJD:
    balancer = make_balancer(f"torchjd:{name}", T, **{**ARGUMENTS.get(name, {}), **kwargs})
    assert isinstance(balancer, TorchJD)
    return balancer


def problem(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(T, D, generator=generator, dtype=torch.float64)
    return (jacobian * torch.tensor([[0.5], [1.0], [2.0], [4.0]])).to(dtype)


def run(balancer: TorchJD, seeds: range) -> Tensor:
    return torch.stack([balancer.combine(problem(seed), torch.ones(T)) for seed in seeds])


def own(name: str) -> Any:
    """TorchJD's object, as its documentation builds it, as a function of the Jacobian."""
    if name == "NashMTL":
        return library.NashMTL(n_tasks=T)
    if name == "Constant":
        return library.Constant(torch.tensor(ARGUMENTS[name]["weights"], dtype=torch.float64))
    if name == "CRMOGMWeighting":
        return library.GramianWeightedAggregator(library.CRMOGMWeighting(library.UPGradWeighting()))
    method = getattr(library, name)(**ARGUMENTS.get(name, {}))
    return library.GramianWeightedAggregator(method) if isinstance(method, library.Weighting) else method


def test_every_class_of_torchjd_is_there() -> None:
    abstract = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Weighting"}
    names = set(torchjd_names())
    assert names | {name for name in library.__all__ if name.removesuffix("Weighting") in names} == (
        set(library.__all__) - abstract
    )
    assert RANDOM | STATEFUL | COORDINATES | ARGUMENTS.keys() <= names


@every_aggregator
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
def test_the_update_is_torchjds_own(name: str) -> None:
    balancer, reference = make(name), own(name)
    for seed in range(4):  # the state of both moves along
        jacobian = problem(seed)
        generator = copy.deepcopy(balancer.generator)
        update = balancer.combine(jacobian, torch.ones(T))
        torch.manual_seed(int(generator.integers(2**63)))
        torch.testing.assert_close(update, reference(jacobian), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "Krum", "ExcessMTL", "PCD"])
def test_a_weighting_is_its_aggregator(name: str) -> None:
    arguments = ARGUMENTS.get(name, {})
    balancer = make_balancer(f"torchjd:{name}Weighting", T, **arguments)
    assert isinstance(balancer, TorchJD)
    assert torch.equal(run(balancer, range(4)), run(make(name), range(4)))


@every_aggregator
def test_coefficients_or_a_direction(name: str) -> None:
    gradients = TaskGradients(problem(0))
    answer = make(name)(gradients, torch.ones(T))
    if name in COORDINATES:
        assert not answer.coefficients.any()
        assert answer.direction is not None
        assert answer.diagnostics == {}
    else:
        assert answer.direction is None
        assert torch.equal(answer.diagnostics["weight"], answer.coefficients)


@every_aggregator
def test_single_precision_and_the_scale_of_a_mean(name: str) -> None:
    double = make(name).combine(problem(0), torch.ones(T))
    single = make(name).combine(problem(0, torch.float32), torch.ones(T))
    assert single.dtype == torch.float32
    if name != "GradDrop":  # it draws other numbers in single precision
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)
    mean = make(name, scale="mean").combine(problem(0), torch.ones(T))
    torch.testing.assert_close(mean, double / T, rtol=1e-12, atol=1e-15)


@every_aggregator
def test_runs_are_reproducible_and_leave_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = run(make(name, seed=3), range(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(run(make(name, seed=3), range(4)), first)
    assert torch.equal(run(make(name, seed=4), range(4)), first) == (name not in RANDOM)


@every_aggregator
def test_reset_restores_the_initial_behaviour(name: str) -> None:
    balancer = make(name)
    first = run(balancer, range(3))
    balancer.reset()
    assert torch.equal(run(balancer, range(3)), first)


@every_aggregator
def test_state_dict_carries_all_that_the_next_steps_depend_on(name: str, tmp_path: Any) -> None:
    original = make(name)
    run(original, range(4))
    checkpoint.save(tmp_path / "state.zip", original.state_dict())
    restored, from_file, twin = make(name), make(name), copy.deepcopy(original)
    restored.load_state_dict(original.state_dict())
    from_file.load_state_dict(checkpoint.load(tmp_path / "state.zip"))
    again = make(name)
    again.load_state_dict(restored.state_dict())  # before it has been called
    expected = run(original, range(4, 8))  # the copies must not follow
    for balancer in (restored, from_file, twin, again):
        assert torch.equal(run(balancer, range(4, 8)), expected)
    fresh = make(name)
    fresh.generator.bit_generator.state = twin.generator.bit_generator.state
    if name in STATEFUL - {"NashMTL"}:  # NashMTL's start hardly shows in its answer
        assert not torch.equal(run(fresh, range(8, 9)), run(twin, range(8, 9)))


def test_vectors_may_be_sequences_in_any_precision() -> None:
    preference = [0.7, 0.1, 0.1, 0.1]
    for name in ("UPGrad", "AlignedMTL", "ConFIG"):
        expected = getattr(library, name)(pref_vector=torch.tensor(preference, dtype=torch.float64))(problem(0))
        for vector in (preference, tuple(preference), torch.tensor(preference, dtype=torch.float64)):
            for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
                update = make(name, pref_vector=vector).combine(problem(0, dtype), torch.ones(T))
                torch.testing.assert_close(update.double(), expected, rtol=rtol, atol=1e-3 * rtol)


@pytest.mark.parametrize(
    ("name", "tasks", "kwargs", "message"),
    [
        ("UPgrad", 3, {}, "unknown TorchJD aggregator 'UPgrad'; aggregators are AlignedMTL, .*UPGrad$"),
        ("", 3, {}, "unknown TorchJD aggregator ''; aggregators are"),
        ("Weighting", 3, {}, "unknown TorchJD aggregator 'Weighting'"),
        ("Aggregator", 3, {}, "unknown TorchJD aggregator 'Aggregator'"),
        ("Constant", 3, {}, "balancer 'torchjd:Constant' needs the argument 'weights'$"),
        ("CAGrad", 3, {"x": 1}, "balancer 'torchjd:CAGrad' has no argument 'x'; it has c, norm_eps, seed, scale$"),
        ("UPGrad", 3, {"aggregator": "MGDA"}, "balancer 'torchjd:UPGrad' has no argument 'aggregator'; it has"),
        ("CAGrad", 3, {"c": -1.0}, "torchjd:CAGrad: c must be non-negative"),
        ("CAGrad", 3, {"c": "much"}, "torchjd:CAGrad: "),
        ("Krum", 2, {"n_byzantine": 1}, "torchjd:Krum with 2 tasks: .*at least 4 rows"),
        ("UPGrad", 3, {"pref_vector": [1.0, 2.0]}, "torchjd:UPGrad with 3 tasks: "),
        ("CRMOGMWeighting", 3, {"weighting": "Up"}, "unknown TorchJD aggregator 'Up'; aggregators are"),
        (
            "CRMOGMWeighting",
            3,
            {"weighting": "ConFIG"},
            "unknown TorchJD aggregator 'ConFIGWeighting'; aggregators are",
        ),
        ("UPGrad", 0, {}, "num_tasks is 0; it must be at least 1"),
        ("UPGrad", 3, {"scale": "max"}, "unknown scale 'max'; choose from sum, mean"),
        ("UPGrad", 3, {"seed": -1}, "seed is -1; it must be at least 0"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(name: str, tasks: int, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        make_balancer(f"torchjd:{name}", tasks, **kwargs)
    assert "\n" not in str(error.value)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    for call in (torchjd_names, lambda: make("UPGrad")):
        with pytest.raises(ValueError, match=r"needs TorchJD: pip install 'mtrl-balance\[torchjd\]'$"):
            call()
    monkeypatch.undo()
    monkeypatch.setattr(library.CAGradWeighting, "_REQUIRED_DEPS", ["no_such_solver"])
    with pytest.raises(ValueError, match=r"^torchjd:CAGrad: .*no_such_solver.* pip install"):
        make("CAGrad")


def test_an_update_that_is_not_finite_is_an_error() -> None:
    balancer = make("AlignedMTL")
    balancer._held = (torch.nn.Threshold(1e30, float("nan")),)
    with pytest.raises(FloatingPointError, match="torchjd:AlignedMTL gave an update that is not finite"):
        run(balancer, range(1))


@pytest.mark.parametrize("name", DEFAULTS)
def test_arguments_that_torchjd_asks_for_have_defaults(name: str) -> None:
    rows, losses = torch.randn(5, 7, dtype=torch.float64), torch.ones(5)
    by_default = make_balancer(f"torchjd:{name}", 5).combine(rows, losses)
    spelt_out = make_balancer(f"torchjd:{name}", 5, **DEFAULTS[name]).combine(rows, losses)
    assert torch.equal(by_default, spelt_out)
    assert bool(by_default.any())
