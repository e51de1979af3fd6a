"""Properties of every balancer on the kinds of matrices that TorchJD's own tests use.

The kinds, ranks and sizes are those that TorchJD publishes (https://github.com/TorchJD/torchjd, tests of its
aggregators); the matrices are drawn here. A Jacobian J is *weakly stationary* if v^T J = 0 for some v >= 0 other than
0, and *strongly stationary* if v^T J = 0 for some v > 0. An update that is 0 where J is not strongly stationary would
stop the training at a point that is no optimum.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchjd.aggregation as library
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from mtrl.balancers import RGB, Balancer, RandomBalancer, make_balancer, names, torchjd_names
from mtrl.gradients import TaskGradients

Array = NDArray[np.float64]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:RuntimeWarning"),
]

TYPICAL_SIZES = ((1, 1, 1), (4, 3, 1), (4, 3, 2), (4, 3, 3), (9, 11, 5), (9, 11, 9))  # (rows, columns, rank)
ZERO_SIZES = ((1, 1), (4, 3), (9, 11))
STATIONARY_SIZES = ((20, 10, 10), (20, 10, 5), (20, 10, 1), (20, 100, 1), (20, 100, 19))
FACTORS = (0.0, 1e-10, 1e3, 1e5, 1e10, 1e15)  # of whole matrices


def orthonormal(rng: np.random.Generator, size: int, given: Array | None = None) -> Array:
    """A random orthonormal basis (size, size) that begins with the orthonormal columns `given` (size, k)."""
    given = np.zeros((size, 0)) if given is None else given
    rest = rng.standard_normal((size, size - given.shape[1]))
    for _ in range(2):  # once more for what rounding leaves
        rest = np.linalg.qr(rest - given @ (given.T @ rest))[0]
    return np.hstack([given, rest])


def with_left_vectors(rng: np.random.Generator, left: Array, columns: int, rank: int) -> Array:
    """A matrix of this rank, with the first columns of `left` (rows, >= rank) as its left singular vectors."""
    right = orthonormal(rng, columns)[:, :rank]
    return (left[:, :rank] * np.abs(rng.standard_normal(rank))) @ right.T


def normal(rng: np.random.Generator, rows: int, columns: int, rank: int) -> Array:
    """Random singular vectors, and singular values that are the sizes of normal numbers."""
    return with_left_vectors(rng, orthonormal(rng, rows), columns, rank)


def strongly_stationary(rng: np.random.Generator, rows: int, columns: int, rank: int) -> Array:
    """All columns are orthogonal to one positive vector."""
    positive = np.abs(rng.standard_normal((rows, 1)))
    left = orthonormal(rng, rows, positive / np.linalg.norm(positive))
    return with_left_vectors(rng, left[:, 1:], columns, rank)


def only_weakly_stationary(rng: np.random.Generator, rows: int, columns: int, rank: int) -> Array:
    """All columns are orthogonal to a vector v >= 0; where v is 0, a positive left singular vector forbids w > 0."""
    order, cut = rng.permutation(rows), int(rng.integers(1, rows))
    positive, pair = np.abs(rng.standard_normal(rows)), np.zeros((rows, 2))
    for column, part in enumerate((order[:cut], order[cut:])):
        pair[part, column] = positive[part] / np.linalg.norm(positive[part])
    return with_left_vectors(rng, orthonormal(rng, rows, pair)[:, 1:], columns, rank)


def not_stationary(rng: np.random.Generator, rows: int, columns: int, rank: int) -> Array:
    """A left singular vector is positive, so that no v >= 0 gives v^T J = 0."""
    positive = np.abs(rng.standard_normal((rows, 1)))
    return with_left_vectors(rng, orthonormal(rng, rows, positive / np.linalg.norm(positive)), columns, rank)


def draw() -> dict[str, dict[str, Array]]:
    """Matrices by kind and name."""
    rng = np.random.default_rng(0)

    def each(kind: Callable[..., Array], sizes: tuple[tuple[int, int, int], ...]) -> dict[str, Array]:
        return {f"{kind.__name__} {m}x{n} rank {rank}": kind(rng, m, n, rank) for m, n, rank in sizes}

    typical = each(normal, TYPICAL_SIZES)
    row = rng.standard_normal(11)
    return {
        "normal": typical,
        "zero": {f"zero {m}x{n}": np.zeros((m, n)) for m, n in ZERO_SIZES},
        "strong": each(strongly_stationary, STATIONARY_SIZES),
        "weak": each(only_weakly_stationary, STATIONARY_SIZES),
        "not stationary": each(not_stationary, STATIONARY_SIZES),
        "scaled": {f"{factor:g} x {name}": factor * J for factor in FACTORS for name, J in typical.items()},
        "equal rows": {
            "identical rows 4x11": np.tile(row, (4, 1)),
            "opposed rows 4x11": np.outer([1.0, -1.0, 1.0, -1.0], row),
            "opposed rows 2x11": np.outer([1.0, -1.0], row),
        },
        "rows of many sizes": {
            "row norms 1e-3 to 1e3, 4x11": np.logspace(-3, 3, 4)[:, None] * orthonormal(rng, 11)[:4],
            "row norms 1e-3 to 1e3, 9x11 rank 5": np.logspace(-3, 3, 9)[:, None] * normal(rng, 9, 11, 5),
        },
    }


KINDS = draw()
TYPICAL = {
    name: J for kind in ("zero", "normal", "strong", "weak", "not stationary") for name, J in KINDS[kind].items()
}
NOT_STRONG = KINDS["weak"] | KINDS["not stationary"]
SCALED = KINDS["scaled"]
SPECIAL = KINDS["equal rows"] | KINDS["rows of many sizes"]
DTYPES = (torch.float32, torch.float64)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "torchjd:CAGrad": {"c": 0.5},
    "torchjd:CRMOGMWeighting": {"weighting": "UPGrad"},
    "torchjd:FairGrad": {"alpha": 2.0},
    "torchjd:Krum": {"n_byzantine": 1},
    "torchjd:MoDoWeighting": {"gamma": 0.001},
    "torchjd:TrimmedMean": {"trim_number": 1},
}
SLOW = ("torchjd:FairGrad", "torchjd:NashMTL")  # seconds a call with 20 tasks
LEAST_TASKS = {"torchjd:Krum": 4, "torchjd:TrimmedMean": 3}
OURS = names()
THEIRS = tuple(f"torchjd:{name}" for name in torchjd_names())
EVERY = OURS + THEIRS

# The answer does not depend on the order of the tasks. Methods that make random choices are left out, and those whose
# authors single out a task (PCD) or choose one (Krum). Frank-Wolfe and the convex solvers stop before the exact answer.
WITHOUT_ORDER = (
    *("equal", "gradnorm", "rgb", "aim"),
    *("torchjd:AlignedMTL", "torchjd:ConFIG", "torchjd:DualProj", "torchjd:IMTLG", "torchjd:Mean", "torchjd:MGDA"),
    *("torchjd:Sum", "torchjd:TrimmedMean", "torchjd:UPGrad"),
)
# No task gets worse, to first order.
NO_CONFLICT: dict[str, dict[str, Any]] = {
    "torchjd:UPGrad": {},
    "torchjd:DualProj": {},
    "torchjd:MGDA": {},
    "torchjd:CAGrad": {"c": 1.0},
}
# A(diag(c) J) is linear in c.
LINEAR = ("equal", "torchjd:Sum", "torchjd:Mean", "torchjd:Constant", "torchjd:ConFIG", "torchjd:UPGrad")
# The update is 0 only where J is strongly stationary.
STOPS_ONLY_THERE = (
    *("equal", "random", "torchjd:Sum", "torchjd:Mean", "torchjd:Constant", "torchjd:Random"),
    *("torchjd:UPGrad", "torchjd:DualProj"),
)


def arguments(name: str, num_tasks: int) -> dict[str, Any]:
    return {"weights": [1 / num_tasks] * num_tasks} if name == "torchjd:Constant" else ARGUMENTS.get(name, {})


def make(name: str, num_tasks: int, **kwargs: Any) -> Balancer:
    return make_balancer(name, num_tasks, **{**arguments(name, num_tasks), **kwargs})


def update(name: str, J: Array, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Tensor:
    return make(name, len(J), **kwargs).combine(torch.from_numpy(J).to(dtype), torch.ones(len(J), dtype=dtype))


def fits(name: str, J: Array) -> bool:
    return LEAST_TASKS.get(name, 1) <= len(J) <= (9 if name in SLOW else 20)


def size_of(J: Array) -> float:
    """The norm of the longest row: the unit in which updates are compared."""
    return max(float(np.linalg.norm(J, axis=1).max()), 1e-300)


# ----------------------------------------------------------------------------------------------------- matrices


def test_the_matrices_are_of_the_kinds_that_their_names_say() -> None:
    for sizes, kind in ((TYPICAL_SIZES, "normal"), (STATIONARY_SIZES, "strong"), (STATIONARY_SIZES, "weak")):
        for (rows, columns, rank), J in zip(sizes, KINDS[kind].values(), strict=True):
            assert J.shape == (rows, columns)
            assert np.linalg.matrix_rank(J) == rank
    linprog = pytest.importorskip("scipy.optimize").linprog

    def stationary(J: Array, least: float) -> bool:
        """Whether v^T J = 0 for some v with a sum of 1 and all v_i >= least."""
        system = np.vstack([J.T, np.ones(len(J))])
        right = np.append(np.zeros(J.shape[1]), 1.0)
        return bool(linprog(np.zeros(len(J)), A_eq=system, b_eq=right, bounds=(least, None)).status == 0)

    assert all(stationary(J, 1e-6) for J in KINDS["strong"].values())
    assert all(stationary(J, 0.0) and not stationary(J, 1e-6) for J in KINDS["weak"].values())
    assert not any(stationary(J, 0.0) for J in KINDS["not stationary"].values())


# ---------------------------------------------------------------------------------------------- every balancer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_the_update_is_finite_and_of_the_rows_dtype(name: str, dtype: torch.dtype) -> None:
    for case, J in (TYPICAL | SCALED | SPECIAL).items():
        answer = update(name, J, dtype)
        assert answer.shape == J.shape[1:], case
        assert answer.dtype == dtype, case
        assert bool(answer.isfinite().all()), case


@pytest.mark.parametrize("name", OURS)
def test_the_update_of_single_precision_is_that_of_double_precision(name: str) -> None:
    """Where the method is continuous: RGB's unit vectors have no direction where rows cancel."""
    for case, J in (TYPICAL | SPECIAL).items():
        if name == "rgb" and ("opposed" in case or "strongly" in case):
            continue
        wide, narrow = update(name, J), update(name, J, torch.float32)
        assert torch.allclose(narrow.double(), wide, rtol=1e-3, atol=1e-4 * size_of(J)), case


@pytest.mark.parametrize("name", EVERY)
def test_a_zero_jacobian_gives_a_zero_update(name: str) -> None:
    for case, J in KINDS["zero"].items():
        if fits(name, J):
            assert not update(name, J).any(), case


@pytest.mark.parametrize("name", WITHOUT_ORDER)
def test_the_order_of_the_tasks_does_not_matter(name: str) -> None:
    rng = np.random.default_rng(1)
    for case, J in (TYPICAL | SPECIAL).items():
        if not fits(name, J):
            continue
        straight = update(name, J)
        for _ in range(3):
            permuted = update(name, J[rng.permutation(len(J))])
            assert torch.allclose(permuted, straight, rtol=1e-4, atol=1e-4 * size_of(J)), case


@pytest.mark.parametrize("name", NO_CONFLICT)
def test_no_task_gets_worse_where_the_method_promises_it(name: str) -> None:
    for case, J in (TYPICAL | SPECIAL).items():
        change: Array = J @ update(name, J, **NO_CONFLICT[name]).numpy()  # (T,), the rates at which the losses fall
        harm = float(np.linalg.norm(change.clip(max=0.0)))
        # The solvers regularise, so that a little harm is left; TorchJD bounds what it adds to the norm.
        whole = float(np.linalg.norm(change))
        assert whole - np.sqrt(max(whole**2 - harm**2, 0.0)) <= 4e-4 * (size_of(J) ** 2 + whole), case


@pytest.mark.parametrize("name", ["pcgrad", "torchjd:PCGrad"])
@pytest.mark.parametrize("cosine", [-1.0, -0.99, -0.3, 0.0, 0.7, 1.0])
def test_pcgrad_of_two_tasks_harms_neither(name: str, cosine: float) -> None:
    J = np.array([[1.0, 0.0, 0.0], [100 * cosine, 100 * np.sqrt(1 - cosine**2), 0.0]])
    assert (J @ update(name, J).numpy()).min() >= -1e-9


@pytest.mark.parametrize("name", LINEAR)
def test_the_update_is_linear_in_the_sizes_of_the_rows(name: str) -> None:
    rng = np.random.default_rng(2)
    for case, J in TYPICAL.items():
        for _ in range(3):
            first, second = rng.random((2, len(J), 1))
            a, b = rng.random(2)
            parts = a * update(name, first * J) + b * update(name, second * J)
            # UPGrad regularises its quadratic programs, which costs it exact linearity; TorchJD tests it to 0.06.
            tolerance = 6e-2 if name == "torchjd:UPGrad" else 1e-6
            whole = update(name, (a * first + b * second) * J)
            assert torch.allclose(whole, parts, rtol=tolerance, atol=tolerance), case


@pytest.mark.parametrize("name", STOPS_ONLY_THERE)
def test_only_a_strongly_stationary_jacobian_stops_the_training(name: str) -> None:
    for case, J in NOT_STRONG.items():
        assert update(name, J).norm() > 3e-3, case


def test_mgda_stops_at_weakly_stationary_jacobians() -> None:
    for case, J in (KINDS["weak"] | KINDS["strong"]).items():
        answer = update("torchjd:MGDA", J, epsilon=1e-4, max_iters=300)
        assert answer.norm() <= 0.02 * size_of(J), case


# ------------------------------------------------------------------------------------------------ TorchJD's own


@cache
def theirs(name: str, case: str, dtype: torch.dtype) -> Tensor | None:
    """What TorchJD answers to the matrix in this precision, without this project between; None where it raises."""
    J = (TYPICAL | SCALED | SPECIAL)[case]
    kind = name.removeprefix("torchjd:")
    matrix = torch.from_numpy(J).to(dtype)
    options = dict(arguments(name, len(J)))
    if kind == "NashMTL":
        options["n_tasks"] = len(J)
    if kind == "Constant":
        options["weights"] = torch.tensor(options["weights"], dtype=matrix.dtype)
    if kind == "CRMOGMWeighting":
        options["weighting"] = library.UPGradWeighting()
    method = getattr(library, kind)(**options)
    if isinstance(method, library.Weighting):
        method = library.GramianWeightedAggregator(method)
    torch.manual_seed(int(RandomBalancer().generator.integers(2**63)))  # as the adapter does at its first call
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            answer: Tensor = method(matrix)
    except (ValueError, TypeError, RuntimeError, ArithmeticError):
        return None
    return answer.double()


def near(answer: Tensor, expected: Tensor | None, size: float, tolerance: float) -> bool:
    """Whether the answer is the expected one, within a share of its norm or of the longest row."""
    if expected is None or not bool(expected.isfinite().all()):
        return False
    return bool((answer - expected).norm() <= tolerance * max(float(expected.norm()), 1e-3 * size))


def is_a_tie(name: str, J: Array) -> bool:
    """Whether Krum has two best rows, but for rounding: TorchJD then takes either, by its last digit."""
    if name != "torchjd:Krum":
        return False
    distances = np.sort(np.linalg.norm(J[:, None] - J, axis=-1), axis=1)
    scores = np.sort(distances[:, 1 : len(J) - 2].sum(1))  # over the nearest len(J) - n_byzantine - 2 rows
    return bool(scores[1] - scores[0] <= 1e-5 * size_of(J))


def differing(name: str, dtype: torch.dtype, cases: dict[str, Array], tolerance: float) -> list[str]:
    """The matrices for which the balancer's answer is not TorchJD's own in the same precision.

    Where TorchJD's own answer depends on the precision, its answer to the unrounded matrix in float64 is as good.
    """
    found = []
    for case, J in cases.items():
        if not fits(name, J) or is_a_tie(name, J):
            continue
        own, double = theirs(name, case, dtype), theirs(name, case, torch.float64)
        if own is None or not bool(own.isfinite().all()):
            continue  # TorchJD has no answer to compare with
        try:
            answer = update(name, J, dtype).double()
        except (ValueError, TypeError, FloatingPointError) as error:
            found.append(f"{case}: {type(error).__name__}: {error}")
            continue
        if not any(near(answer, expected, size_of(J), tolerance) for expected in (own, double)):
            gap = (answer - own).norm() / max(float(own.norm()), 1e-300)
            found.append(f"{case}: {gap:.1e} of TorchJD's own update away from it")
    return found


@pytest.mark.parametrize("name", THEIRS)
def test_the_adapter_gives_torchjds_own_update_in_double_precision(name: str) -> None:
    assert not differing(name, torch.float64, TYPICAL | SPECIAL, 1e-6)


@pytest.mark.parametrize("name", THEIRS)
def test_the_adapter_gives_torchjds_own_update_in_single_precision(name: str) -> None:
    assert not differing(name, torch.float32, TYPICAL | SPECIAL, 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in THEIRS if name != "torchjd:NashMTL"])  # it fails at extreme scales
def test_the_adapter_gives_torchjds_own_update_for_tiny_and_huge_matrices(name: str, dtype: torch.dtype) -> None:
    assert not differing(name, dtype, SCALED, 1e-2 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [0.5, 20.0])
def test_nash_mtl_of_one_task_is_its_gradient_up_to_max_norm(dtype: torch.dtype, factor: float) -> None:
    """With one task G a = 1/a, for a Gramian divided by its norm, has the solution a = 1; then comes the clipping."""
    J = factor * np.array([[0.6, 0.0, 0.8]])
    expected = torch.from_numpy(J[0] * min(1.0, 1.0 / factor))
    assert_close(update("torchjd:NashMTL", J, dtype).double(), expected, rtol=1e-2, atol=1e-3)


# ----------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in EVERY if name != "torchjd:GradDrop"])
def test_half_precision_gives_the_update_of_the_rounded_rows(name: str, dtype: torch.dtype) -> None:
    """The answer to rows in half precision is the answer to the same numbers in float64, to the rows' own rounding."""
    for case in ("normal 4x3 rank 3", "normal 9x11 rank 9"):
        rounded = torch.from_numpy(TYPICAL[case]).to(dtype).double().numpy()
        answer, expected = update(name, rounded, dtype).double(), update(name, rounded)
        assert (answer - expected).norm() <= 0.03 * max(float(expected.norm()), 0.1 * size_of(rounded)), case


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rgb_turns_in_half_precision_as_in_double(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    halves, doubles = RGB(3), RGB(3)
    for _ in range(4):
        rows = torch.randn(3, 20, generator=generator).to(dtype)
        half, double = (
            balancer(TaskGradients(J), torch.ones(3)) for balancer, J in ((halves, rows), (doubles, rows.double()))
        )
        assert_close(half.diagnostics["angle"].double(), double.diagnostics["angle"], rtol=0.05, atol=1e-3)
    assert doubles.balance(TaskGradients(rows.double()), torch.ones(3)).diagnostics["angle"].max() > 0.05
