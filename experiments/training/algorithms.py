"""Settings of the agents that a method can be trained with: every field is a flag of `... .train`.

The settings of `mtrl.rl.settings` are inherited from there. `--algorithm` chooses between the two classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import pi
from typing import Annotated, Any, ClassVar, Literal

import tyro

from experiments.training.config import Algorithm, Count, Preset, TrainConfig
from mtrl.limits import Limits, check_choice
from mtrl.rl.settings import MEMORY_ANGLE, RESUMABLE, DQNSettings, ReplaySettings, SACSettings

# `envs.CONTINUOUS_TASKS`, written out, because `--help` does not load environments.
CONTINUOUS_LANDERS = ("StandardContinuous", "WindyContinuous", "HeavyContinuous")


@dataclass(frozen=True)
class AgentFlags:
    """Settings of both agents that a run sets otherwise than the agent does, and those of the network."""

    learning_rate: Annotated[float, Limits(above=0)] = 5e-4
    """Step size of Adam."""

    # The -1 of `ReplaySettings` would count the steps of a rollout, of which a continued run makes only the missing.
    gradient_steps: Annotated[int, Limits(least=0, most=10_000)] = 2
    """Updates per training phase, at most 10,000."""

    memory_angle: Annotated[float, Limits(least=0, most=pi / 2)] = MEMORY_ANGLE
    """Angle in radians by which every update turns towards what past updates had in common, whatever the balancer; 0
    turns none. The methods rgb and memory have a memory of their own. See `mtrl.DirectionMemory`."""

    embedding_dim: int = 8
    """Size of the learned task embedding (aware only)."""

    hidden_dims: tuple[int, ...] = (256, 128)
    """Widths of the hidden layers."""

    layer_norm: bool = True
    """Normalise each hidden layer before its ReLU, without learned parameters."""

    heads: Literal["shared", "per_task"] = "shared"
    """The last layer: one that all tasks share, or one of each task's own, which is not balanced (aware only)."""

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of the network."""
        return {
            "embedding_dim": self.embedding_dim,
            "net_arch": list(self.hidden_dims),
            "layer_norm": self.layer_norm,
            "heads": self.heads,
        }


@dataclass(frozen=True)
class DQNTrainConfig(AgentFlags, DQNSettings, TrainConfig):
    """A run of `MultiTaskDQN`, or of another agent that learns Q-values of a few actions."""

    agent: ClassVar[str] = "MultiTaskDQN"
    agent_settings: ClassVar[type[ReplaySettings]] = DQNSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        TrainConfig.__post_init__(self)
        check_choice("algorithm", self.algorithm, ("dqn",))

    @property
    def agent_kwargs(self) -> dict[str, Any]:
        """See `TrainConfig.agent_kwargs`."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self.agent_settings)},
            "balancer": self.balancer_name,
            "balancer_kwargs": self.balancer_kwargs,
            "policy_kwargs": self.policy_kwargs,
            "seed": self.seed,
            "device": self.device,
        }


@dataclass(frozen=True)
class SACTrainConfig(AgentFlags, SACSettings, TrainConfig):
    """A run of `MultiTaskSAC`, whose critics have the balancer of the method."""

    agent: ClassVar[str] = "MultiTaskSAC"

    algorithm: Algorithm = "sac"
    """`sac`: soft actor-critic, for tasks whose actions are numbers within bounds; `dqn`: deep Q-learning, for tasks
    with a few actions. Each has flags of its own."""

    # The notes' numbers are those of DQN.
    preset: Annotated[Preset, tyro.conf.Fixed, tyro.conf.Suppress] = field(default="default", metadata=RESUMABLE)

    tasks: tuple[str, ...] = CONTINUOUS_LANDERS
    """The tasks, in the order of the one-hot: names of landers (`WindyContinuous`), of Meta-World's tasks and groups
    (`reach-v3`, `MT10`; extra `metaworld`), ids of Gymnasium (`Pendulum-v1`), and addresses of your own
    (`my_tasks:MOON` is MOON in my_tasks.py in the current folder: a task, a list of tasks, or a function that makes an
    environment)."""

    total_steps: Count = 300_000
    """Environment steps over all tasks."""

    layer_norm: bool = False
    """Normalise each hidden layer before its ReLU, without learned parameters."""

    actor_balancer: Literal["equal", "same"] = "equal"
    """What balances the gradients of the actor: `equal`, which sums them, or `same`, the balancer of the critics with
    the same settings. A balancer that needs positive losses, such as GradNorm's, can balance critics only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        TrainConfig.__post_init__(self)
        check_choice("algorithm", self.algorithm, ("sac",))
        if self.actor_balancer == "same" and self.for_negative_losses is not None:
            raise ValueError(
                f"actor_balancer is 'same', but {self.method} needs positive losses and those of an actor may be "
                f"negative; give {self.for_negative_losses} or --actor-balancer equal"
            )

    @property
    def agent_kwargs(self) -> dict[str, Any]:
        """See `TrainConfig.agent_kwargs`."""
        same = self.actor_balancer == "same"
        return {
            **{field.name: getattr(self, field.name) for field in fields(SACSettings)},
            "critic_balancer": self.balancer_name,
            "critic_balancer_kwargs": self.balancer_kwargs,
            "actor_balancer": self.balancer_name if same else "equal",
            "actor_balancer_kwargs": self.balancer_kwargs if same else {},
            "policy_kwargs": self.policy_kwargs,
            "seed": self.seed,
            "device": self.device,
        }
