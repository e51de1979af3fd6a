"""Every aggregator and weighting of TorchJD as a balancer: `make_balancer("torchjd:UPGrad", num_tasks=3)`."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.balancers.base import Balance, Scale
from mtrl.balancers.random_balancer import RandomBalancer
from mtrl.files import one_line
from mtrl.gradients import JacobianNotHeldError, TaskGradients
from mtrl.gradients.rows import in_range
from mtrl.states import Like, check_form

PREFIX = "torchjd:"
# Arguments without a default in TorchJD take the value of the paper or of the authors' code, and where there
# is none, the smallest that has an effect.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},  # the authors' code for MT10 and for the toy problem
    "FairGrad": {"alpha": 2.0},  # the paper's choice for NYUv2 and Cityscapes
    "Krum": {"n_byzantine": 1},
    "MoDoWeighting": {"gamma": 1e-3},  # the authors' code
    "TrimmedMean": {"trim_number": 1},
}
# These methods estimate the rank of the Gramian by the precision of its dtype, so they get the rows' own precision.
RANK = ("AlignedMTL", "IMTLG", "PCD")
REPETITIONS = ("max_iters", "n_iter", "optim_niter")  # the time of a call is proportional to these arguments
WEIGHTING = "Weighting"


def torchjd_names() -> tuple[str, ...]:
    """The names that may follow `torchjd:`. A class that is both aggregator and weighting in TorchJD is listed once.

    Raises:
        ValueError: TorchJD is not installed.
    """
    library = _library()
    bases = (library.Aggregator, library.WeightedAggregator, library.GramianWeightedAggregator, library.Weighting)
    known = [name for name in library.__all__ if getattr(library, name) not in bases]
    return tuple(name for name in known if not (name.endswith(WEIGHTING) and name.removesuffix(WEIGHTING) in known))


class TorchJD(RandomBalancer):
    r"""An aggregator or weighting of TorchJD (https://torchjd.org), by name.

    An aggregator of TorchJD maps the Jacobian to an update. Most of them weigh the rows by a function of the Gramian;
    then only that function runs, on the Gramian in float64 that is known already. There are four cases:

    * An aggregator that is based on the Gramian (UPGrad, CAGrad, MGDA, AlignedMTL, ...), or a weighting without an
      aggregator (MoDoWeighting and SDMGradWeighting; their authors use two batches, here they get one), gives weights
      computed from the Gramian.
    * Another weighted aggregator (Mean, Constant, NashMTL, ExcessMTL, ...) gives weights computed from the Jacobian.
    * An aggregator without weights (ConFIG, GradDrop, TrimmedMean) works coordinate by coordinate or on the whole
      Jacobian. Its update is the `direction` of the balance, and the coefficients are 0.
    * CRMOGMWeighting smooths another weighting; give that one by name, as in `weighting="UPGrad"`.

    `UPGradWeighting` is the same as `UPGrad`. Vectors (`pref_vector`, `weights`, `leak`) may be any sequence of
    numbers. Random choices (the order of PCGrad and GradVac, Random, GradDrop) are drawn with a seed from the
    balancer's own generator, and torch's global generator keeps its state. `state_dict` holds everything that a method
    remembers between calls. Losses are not used and may have any sign.

    Args:
        num_tasks: T; for NashMTL also the argument `n_tasks`.
        aggregator: the name of the class in `torchjd.aggregation`, with or without the prefix `torchjd:`.
        seed: see `RandomBalancer`. Default 0.
        scale: `"sum"` keeps TorchJD's own scale, which for some methods is that of a sum over tasks (PCGrad, GradVac)
            and for others that of a mean (UPGrad, MGDA); `"mean"` divides it by T.
        kwargs: the aggregator's own arguments. Those that TorchJD asks for have defaults here: c = 0.5 of CAGrad, alpha
            = 2 of FairGrad, gamma = 0.001 of MoDoWeighting, n_byzantine = 1 of Krum, trim_number = 1 of TrimmedMean.

    Diagnostics: `weight` (T,), if the method has weights.

    Raises:
        ValueError: TorchJD, or another package that the aggregator needs, is not installed; the name or an argument is
            unknown, missing or out of range; or the aggregator does not work with T tasks.
    """

    def __init__(
        self, num_tasks: int, aggregator: str, /, *, seed: int = 0, scale: Scale = "sum", **kwargs: Any
    ) -> None:
        super().__init__(num_tasks, seed=seed, scale=scale)
        self.aggregator = aggregator.removeprefix(PREFIX)
        kwargs = DEFAULTS.get(self.aggregator, {}) | kwargs
        takes_tasks = "n_tasks" in _parameters(self.aggregator)
        if takes_tasks and (given := kwargs.setdefault("n_tasks", num_tasks)) != num_tasks:
            raise ValueError(f"{PREFIX}{self.aggregator}: n_tasks is {given!r}; there are {num_tasks} tasks")
        self._kwargs = {name: _vector(value) for name, value in kwargs.items()}
        # With a vector among the arguments, everything is computed in float64 on the CPU.
        self._has_vectors = any(isinstance(value, Tensor) for value in self._kwargs.values())
        self._held = self._make()
        self._rehearse(num_tasks)
        self._restored: dict[str, Any] = {}

    def reset(self) -> None:
        """Clear the memory of the method, and start the random choices again from the seed."""
        super().reset()
        self._held = self._make()
        self._restored = {}

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Answer as TorchJD does.

        Raises:
            ValueError: TorchJD raised an error; the message quotes it.
            FloatingPointError: the answer is not finite.
        """
        seed = int(self.generator.integers(2**63))
        if self._restored:
            # TorchJD drops its state at the first call, so it gets a call before it gets the restored state.
            self._answer(gradients, seed)
            self._recall(self._restored)
            self._restored = {}
        try:
            answer = self._answer(gradients, seed)
        except JacobianNotHeldError:
            raise
        except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined] # torch's own omission
            raise ValueError(f"{PREFIX}{self.aggregator}: {one_line(error)}") from error
        # Finite weights may be so large that the update is not.
        lengths = gradients.gramian.diagonal().sqrt().cpu() if self._on_gramian else 1.0
        if not (answer * lengths).abs().sum().item() <= torch.finfo(gradients.dtype).max:
            raise FloatingPointError(f"{PREFIX}{self.aggregator} gave an update that is not finite")
        if self._has_weights:
            weight = answer.to(gradients.device)
            return Balance(weight, diagnostics={"weight": weight})
        weight = torch.zeros(gradients.num_tasks, dtype=gradients.dtype, device=gradients.device)
        return Balance(weight, direction=answer.to(gradients.jacobian))

    @contextmanager
    def only(self, mask: Sequence[bool]) -> Iterator[None]:
        """See `Balancer.only`.

        Raises:
            ValueError: the method has a memory or an argument that holds something for each task.
        """
        if self._remembers or self._has_vectors or "n_tasks" in self._kwargs:
            missing = ", ".join(str(task) for task, there in enumerate(mask) if not there)
            raise ValueError(f"{PREFIX}{self.aggregator} needs all tasks in every batch; missing: {missing}")
        yield

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the generator and the memory of the method."""
        return {"generator": super().get_extra_state(), "memory": copy.deepcopy(self._restored or self._memory())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_extra_state` returned."""
        check_form(f"{PREFIX}{self.aggregator}", state, {"generator": dict, "memory": dict})
        super().set_extra_state(state["generator"])
        if state["memory"]:  # it is empty before the first call
            self._check_memory(state["memory"])
        self._held = self._make()
        self._restored = copy.deepcopy(state["memory"])

    def check_state(self, size: int) -> None:
        """See `Balancer.check_state`. What a method remembers is of the tasks' Gramian or of their rows."""
        super().check_state(size)
        for name, value in self._restored.items():
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1:] not in ((self.num_tasks,), (size,)):
                raise ValueError(f"{PREFIX}{self.aggregator}'s memory of {name} has the shape {tuple(value.shape)}")

    # The methods below depend on TorchJD's classes.

    def _make(self) -> tuple[nn.Module]:
        library = _library()
        kwargs = copy.deepcopy(self._kwargs)
        inner = kwargs.get("weighting")
        if isinstance(inner, str):
            _kind(inner)
            inner = kwargs["weighting"] = _construct(inner.removesuffix(WEIGHTING) + WEIGHTING, {})
        method = _construct(self.aggregator, kwargs)
        name = self.aggregator if inner is None else type(inner).__name__
        kind = getattr(library, name.removesuffix(WEIGHTING), None)
        # A weighting without an aggregator also takes the Gramian.
        self._on_gramian = kind is None or issubclass(kind, library.GramianWeightedAggregator)
        if isinstance(method, library.GramianWeightedAggregator):
            method = method.gramian_weighting
        elif isinstance(method, library.WeightedAggregator):
            method = method.weighting
        self._has_weights = isinstance(method, library.Weighting)
        return (method,)  # within a tuple it is no submodule, so `state_dict` and `to` pass over its changing buffers

    def _answer(self, gradients: TaskGradients, seed: int) -> Tensor:
        matrix = gradients.gramian.cpu() if self._on_gramian else gradients.jacobian.detach()
        if self.aggregator in RANK and in_range(gradients.squares, gradients.dtype):
            matrix = matrix.to(gradients.dtype)
        if self._has_vectors:
            matrix = matrix.double().cpu()
        if self.aggregator == "NashMTL" and (len(matrix) == 1 or not matrix.any()):
            return self._nash(matrix)
        with _seeded(seed, matrix.device), torch.device(matrix.device), warnings.catch_warnings(), torch.no_grad():
            # These warnings are about the optimization problems of TorchJD's aggregators; a caller cannot act on them.
            warnings.filterwarnings("ignore", module=r"cvxpy\.")
            warnings.filterwarnings("ignore", message="You are solving a parameterized problem that is not DPP")
            answer: Tensor = self._held[0](matrix)
        return answer.clone()  # some methods return their own state

    def _nash(self, rows: Tensor) -> Tensor:
        """The weights (T,) of NashMTL in two cases where TorchJD has none: one task, and rows (T, D) that are all zero.

        The bargaining solution for one task is 1; the update is then cut to the largest norm that is allowed.
        """
        largest = float(self._kwargs.get("max_norm", _parameters("NashMTL")["max_norm"].default))
        norm = float(torch.linalg.vector_norm(rows.sum(0)))
        return torch.full((len(rows),), min(1.0, largest / norm) if norm > largest > 0 else 1.0, device="cpu").to(rows)

    def _memory(self) -> dict[str, Any]:
        """What the method remembers, as tensors and plain numbers, which load without pickle."""
        modules = dict(self._held[0].named_modules())
        memory = {place: getattr(modules[place[0]], place[1]) for place in self._remembers}
        if all(value is None for value in memory.values()):
            return {}
        return {f"{path}.{name}": _plain(value) for (path, name), value in memory.items()}

    def _check_memory(self, memory: dict[str, Any]) -> None:
        """Check a memory from a file by that of the rehearsal, whose rows and dtype may have been others."""
        form: dict[str, Any] = {}
        for name, known in self._rehearsed.items():
            value = memory.get(name)
            form[name] = Like(known) if isinstance(known, Tensor) else type(known)
            if isinstance(known, Tensor) and isinstance(value, Tensor) and value.ndim == known.ndim:
                form[name] = Like(value.new_zeros((*known.shape[:1], *value.shape[1:])))
        check_form(f"{PREFIX}{self.aggregator}'s memory", memory, form)

    def _recall(self, memory: dict[str, Any]) -> None:
        modules = dict(self._held[0].named_modules())
        for path, name in self._remembers:
            value, here = memory[f"{path}.{name}"], getattr(modules[path], name)
            if isinstance(value, Tensor) and name not in modules[path]._buffers:
                value = value.numpy()
            elif isinstance(value, Tensor) and isinstance(here, Tensor):
                value = value.to(here.device)
            setattr(modules[path], name, value)

    def _rehearse(self, num_tasks: int) -> None:
        """Call the method once, so that a wrong argument fails here, and note the attributes that hold its memory."""
        before = {path: dict(vars(module)) for path, module in self._held[0].named_modules()}
        rows = torch.eye(num_tasks, dtype=torch.float64, device="cpu") + 0.1
        try:
            self._answer(TaskGradients(rows), 0)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{PREFIX}{self.aggregator} with {num_tasks} tasks: {one_line(error)}") from error
        remembers = []
        for path, module in self._held[0].named_modules():
            changed = [
                name
                for name, value in vars(module).items()
                if isinstance(value, int | float | np.ndarray) and before[path].get(name) is not value
            ]
            remembers += [(path, name) for name in (*module._buffers, *changed)]
        self._remembers = remembers
        self._rehearsed = self._memory()
        self._held = self._make()


def _plain(value: Any) -> Any:
    """A NumPy array as a tensor, and a NumPy number as one of Python's; any other value unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _library() -> ModuleType:
    try:
        import torchjd.aggregation  # noqa: PLC0415 - optional, and a second to import
    except ImportError:
        raise ValueError(f"{PREFIX}... needs TorchJD: pip install 'mtrl-balance[torchjd]'") from None
    library: ModuleType = torchjd.aggregation
    return library


def _kind(name: str) -> Any:
    names = torchjd_names()
    kind = getattr(_library(), name, None)
    if kind is None or (name not in names and name.removesuffix(WEIGHTING) not in names):
        raise ValueError(f"unknown TorchJD aggregator {name!r}; aggregators are {', '.join(names)}")
    return kind


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(_kind(name)).parameters)


def _construct(name: str, kwargs: dict[str, Any]) -> nn.Module:
    known = _parameters(name)
    for argument in kwargs:
        if argument not in known:
            has = ", ".join((*known, "seed", "scale"))
            raise ValueError(f"balancer '{PREFIX}{name}' has no argument {argument!r}; it has {has}")
    for argument, parameter in known.items():
        if parameter.default is parameter.empty and argument not in kwargs:
            raise ValueError(f"balancer '{PREFIX}{name}' needs the argument {argument!r}")
        if argument in REPETITIONS and isinstance(kwargs.get(argument), int) and kwargs[argument] > 10**4:
            raise ValueError(f"{PREFIX}{name}: {argument} is {kwargs[argument]}; it must be at most 10000")
    try:
        method: nn.Module = _kind(name)(**kwargs)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"{PREFIX}{name}: {one_line(error)}") from error
    return method


def _vector(value: Any) -> Any:
    """A tensor or a sequence of numbers as a float64 tensor; any other value unchanged."""
    if isinstance(value, Tensor):
        return value.detach().double().cpu()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    return value


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context in which torch's global generators, of the CPU and `device`, start from `seed`; it restores them."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device.index] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
