"""Every setting of the multi-task agents, once: name, type, default, limits and help.

The dataclasses are what an agent checks, keeps and saves, and what the command line is made of. The typed dictionaries
repeat the names and types, because type checkers and editors cannot read keyword arguments from a dataclass; a test
holds both equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, pi
from typing import Annotated, Any, Literal, TypedDict

from mtrl.limits import LARGEST_REPLAY, Limits, check_fields, check_number

__all__ = ["MEMORY_ANGLE", "RESUMABLE", "DQNOptions", "DQNSettings", "ReplayOptions", "ReplaySettings", "Schedule"]

RESUMABLE: dict[str, Any] = {"resumable": True}
"""Metadata of a field that may differ when an interrupted run is continued: it does not change what was learned."""

MEMORY_ANGLE = 0.8
"""The default of `memory_angle`, in radians, for a balancer without a memory of its own. With it, equal weights earn a
mean of 270 over three landers, which they do not without it; the search is in benchmarks/README.md."""

Schedule = Callable[[float], float]
"""A function of the remaining share of training, which falls from 1 to 0."""

Share = Annotated[float, Limits(least=0, most=1)]
Count = Annotated[int, Limits(least=1)]
Transitions = Annotated[int, Limits(least=1, most=LARGEST_REPLAY)]
TargetUnit = Literal["updates", "episodes"]
TDLossName = Literal["huber", "mse"]
OnNonFinite = Literal["raise", "skip"]
RewardScaling = Literal["none", "return"]
ValueNormalization = Literal["none", "popart"]


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of every agent that learns from one replay per task.

    Raises:
        ValueError: a setting has the wrong type or is out of its limits.
    """

    learning_rate: Annotated[float, Limits(least=0)] | Schedule = 5e-4
    """Step size of Adam: a number, or a function of the remaining share of training."""

    learning_rate_decay: Share = 0.25
    """Share of training, at its end, over which a learning rate given as a number falls linearly to 0; 0 keeps it
    constant. Without decay the last weights, which are the ones that count, swing."""

    buffer_size: Transitions = 480_000
    """Transitions kept, over all tasks; every task has an equal share."""

    learning_starts: Annotated[int, Limits(least=0)] = 6_000
    """Environment steps of random play before the first update."""

    batch_size: Transitions = 64
    """Transitions of each task in one update."""

    tau: Share = 0.005
    """Share of the online network that goes into the target network at each target update; 1 copies it."""

    gamma: Share = 0.99
    """Discount per step."""

    n_step: Annotated[int, Limits(least=1, most=1_000)] = 3
    """Rewards in a transition before the bootstrapped value, at most 1,000."""

    reward_scaling: RewardScaling = "none"
    """What rewards are divided by when they are learned from: `none` leaves them as they are; `return` divides those of
    each task by a running deviation of its discounted return, so that tasks with rewards of different sizes count
    alike. The replay holds rewards as they came, and returns are always reported so. See
    `mtrl.rl.RewardScales`."""

    value_normalization: ValueNormalization = "none"
    """How values are learned: `none` learns them as they are; `popart` learns those of each task in units of a running
    mean and deviation of the task's targets, and keeps all values when these change, so that tasks whose values differ
    in size count alike. It can't be changed when a model is loaded. See `mtrl.rl.ValueScales`."""

    train_freq: Count = 1
    """Steps of all environments between training phases."""

    gradient_steps: Annotated[int, Limits(least=-1, most=10_000)] = 2
    """Updates per training phase, at most 10,000; -1 makes as many updates as there were environment steps."""

    max_grad_norm: Annotated[float, Limits(above=0, most=inf)] | None = None
    """If given, the combined gradient is scaled down to this norm."""

    memory_angle: Annotated[float, Limits(least=0, most=pi / 2)] | None = None
    """Angle in radians by which every update turns towards what past updates had in common, whatever the balancer; 0
    turns none. Default: 0.8, but 0 for RGB and `memory`, which have a memory of their own; RGB does worse with two.
    See `mtrl.DirectionMemory`."""

    memory_decay: Annotated[float, Limits(least=0, below=1)] = 0.9
    """Share of that memory that is kept at every update."""

    guidance_share: Annotated[float, Limits(above=0, below=1)] = 0.1
    """Share of each task's transitions that is held out as the guidance set of AIM and never trained on. It has no
    effect with a balancer that needs no guidance."""

    conflict_interval: Count = 250
    """Updates between measurements of how much the task gradients conflict."""

    on_nonfinite: OnNonFinite = field(default="raise", metadata=RESUMABLE)
    """What to do when an observation, reward, loss, gradient or weight is NaN or infinite: `raise` an error that names
    it, or `skip` that step or update and count it in the logs. After an error the last checkpoint is kept, and the run
    may be continued with `skip`."""

    stats_window_size: Annotated[int, Limits(least=1, most=1_000_000)] = 20
    """Finished episodes per task that the reported training returns average over."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DQNSettings(ReplaySettings):
    """Settings of `MultiTaskDQN`."""

    target_update_interval: Count = 1
    """Updates or episodes (see `target_update_unit`) between target updates."""

    target_update_unit: TargetUnit = "updates"
    """What the target update interval counts: updates, or finished episodes."""

    exploration_fraction: Share = 0.1
    """Share of training over which epsilon falls linearly."""

    exploration_initial_eps: Share = 1.0
    """First epsilon: the probability of a random action."""

    exploration_final_eps: Share = 0.1
    """Last epsilon of the first environment of each task."""

    exploration_diversity: Annotated[float, Limits(least=0)] = 2.0
    """How much more greedily the other environments of a task act, as in Ape-X (Horgan et al. 2018): the last epsilon
    of environment i of K is exploration_final_eps ** (1 + exploration_diversity * i / (K - 1)), and a single
    environment takes the middle. Some keep exploring while others show what a greedy policy earns. 0 gives all
    environments the same epsilon."""

    exploration_decay: Annotated[float, Limits(above=0, most=1)] | None = None
    """If given, epsilon is multiplied by this after each episode instead of falling linearly."""

    double_q: bool = True
    """Double Q-learning (van Hasselt et al. 2016): the online network chooses the next action, and the target network
    values it."""

    td_loss: TDLossName = "huber"
    """Loss of the temporal-difference error, averaged over the batch of a task."""

    huber_delta: Annotated[float, Limits(above=0, most=inf)] = 10.0
    """Error up to which the Huber loss is quadratic, in units of returns; beyond it the loss is linear. With
    `reward_scaling`, returns are in units of their deviation, and with `value_normalization` errors are in units of the
    deviation of the task's targets."""


@dataclass(frozen=True)
class SACSettings(ReplaySettings):
    """Settings of `MultiTaskSAC`."""

    n_step: Annotated[int, Limits(least=1, most=1_000)] = 3
    """Rewards in a transition before the bootstrapped value, at most 1,000. The entropy of the actions in between does
    not count. With 1, as in the paper, the landers learned more slowly; see docs/learning-runs.md."""

    tau: Share = 0.01
    """Share of the critics that goes into the target critics at each target update; 1 copies them."""

    target_update_interval: Count = 1
    """Updates between target updates."""

    ent_coef: Annotated[float, Limits(least=0)] | str = "auto"
    """The temperature: the weight of the entropy of the actions, in units of the rewards, also with
    `value_normalization`. `auto` learns one for each
    task, and `auto_0.1` begins at 0.1; a number keeps it, for all tasks alike."""

    target_entropy: Annotated[float, Limits()] | str = "auto"
    """The entropy of the actions that learned temperatures aim at; `auto` is minus the size of an action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        first_temperature(self.ent_coef)
        if self.target_entropy != "auto":
            entropy = _number("target_entropy", self.target_entropy, "a finite number or 'auto'")
            object.__setattr__(self, "target_entropy", entropy)


def first_temperature(ent_coef: float | str) -> float:
    """The temperature of every task before the first update.

    Raises:
        ValueError: it is neither a number of at least 0 nor `auto`, alone or followed by a number above 0.
    """
    rule = "a finite number of at least 0, 'auto', or 'auto_' and a finite number above 0"
    if not isinstance(ent_coef, str):
        return float(_number("ent_coef", ent_coef, rule, least=0))
    return 1.0 if ent_coef == "auto" else float(_number("ent_coef", ent_coef, rule, "auto_", above=0))


def _number(name: str, value: Any, rule: str, begin: str = "", **limits: Any) -> Any:
    """The number that `value` is, or that its text gives after `begin`. An error names the value and the rule."""
    try:
        number = value
        if isinstance(value, str):
            number = float(value.removeprefix(begin)) if value.startswith(begin) else None
        return check_number(name, number, **limits)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; it must be {rule}") from None


class ReplayOptions(TypedDict, total=False):
    """The fields of `ReplaySettings` as keyword arguments, for type checkers and editors."""

    learning_rate: float | Schedule
    learning_rate_decay: float
    buffer_size: int
    learning_starts: int
    batch_size: int
    tau: float
    gamma: float
    n_step: int
    reward_scaling: RewardScaling
    value_normalization: ValueNormalization
    train_freq: int
    gradient_steps: int
    max_grad_norm: float | None
    memory_angle: float | None
    memory_decay: float
    guidance_share: float
    conflict_interval: int
    on_nonfinite: OnNonFinite
    stats_window_size: int


class DQNOptions(ReplayOptions, total=False):
    """The fields of `DQNSettings` as keyword arguments, for type checkers and editors."""

    target_update_interval: int
    target_update_unit: TargetUnit
    exploration_fraction: float
    exploration_initial_eps: float
    exploration_final_eps: float
    exploration_diversity: float
    exploration_decay: float | None
    double_q: bool
    td_loss: TDLossName
    huber_delta: float


class SACOptions(ReplayOptions, total=False):
    """The fields of `SACSettings` as keyword arguments, for type checkers and editors."""

    target_update_interval: int
    ent_coef: float | str
    target_entropy: float | str
