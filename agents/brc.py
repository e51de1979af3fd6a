"""BRC: bigger, regularized, categorical value functions for many tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from agents.settings import BRCSettings
from mtrl.limits import (
    LARGEST_EMBEDDING,
    MOST_LAYERS,
    WIDEST_LAYER,
    check_integer,
    check_parameters,
    perceptron_parameters,
)
from mtrl.rl.dqn import MultiTaskDQN
from mtrl.rl.optimizer import FlatAdam
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch
from mtrl.rl.settings import ReplaySettings
from mtrl.rl.update import SharedUpdate
from mtrl.states import Each, Like, Number, check_form

if TYPE_CHECKING:
    from typing import Unpack

    from stable_baselines3.common.type_aliases import GymEnv

    from agents.settings import BRCOptions
    from mtrl.balancers import Balancer


class BroNet(nn.Module):
    """The residual network of BRC: action-value distributions of all tasks, as logits over bins of equal width.

    The layers are Dense-LN-ReLU, then `depth` residual blocks x + LN(Dense(ReLU(LN(Dense(x))))), then Dense. In the
    aware variant the input is the state and a learned task embedding of Euclidean norm 1. Weights start orthogonal with
    gain sqrt(2).

    Args:
        observation_size: O; in the aware variant the last `num_tasks` of them are the task's one-hot.
        num_actions: A.
        num_tasks: tasks in the one-hot, 0 for the blind variant.
        embedding_dim: size of the task embedding. Default 32.
        width: width of every hidden layer. The default 128 suits a CPU core; the paper goes up to 4096.
        depth: residual blocks. Default 2.
        num_bins: bins of the distribution. Default 101.
        v_max: the bins range over [-v_max, v_max]. Default 10.

    Raises:
        ValueError: a size is below 1 or too large, `num_bins` is below 2 or above 100,000, `v_max` is not above 0, or
            there would be over 100,000,000 parameters. Nothing has been allocated then.
    """

    support: Tensor  # (bins,), the centres of the bins

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int = 0,
        embedding_dim: int = 32,
        width: int = 128,
        depth: int = 2,
        num_bins: int = 101,
        v_max: float = 10.0,
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("embedding_dim", embedding_dim, 1, LARGEST_EMBEDDING),
            ("width", width, 1, WIDEST_LAYER),
            ("depth", depth, 1, MOST_LAYERS),
            ("num_bins", num_bins, 2, 10**5),
        ):
            check_integer(name, value, low, high)
        if not 0 < v_max < math.inf:
            raise ValueError(f"v_max is {v_max}; it must be above 0 and finite")
        self.num_tasks = num_tasks
        self.num_actions = num_actions
        size = observation_size + (embedding_dim - num_tasks if num_tasks else 0)
        blocks = depth * perceptron_parameters(width, width, width)
        norms = (1 + 2 * depth) * 2 * width
        ends = perceptron_parameters(size, width, num_actions * num_bins)
        check_parameters(num_tasks * embedding_dim + blocks + norms + ends)
        if num_tasks:
            self.embedding = nn.Embedding(num_tasks, embedding_dim)
            # The vectors start at about the length 1, to which they are normalised. Longer ones would turn more slowly.
            nn.init.normal_(self.embedding.weight, std=embedding_dim**-0.5)
        self.first = nn.Sequential(nn.Linear(size, width), nn.LayerNorm(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width)
            )
            for _ in range(depth)
        )
        self.last = nn.Linear(width, num_actions * num_bins)
        self.register_buffer("support", torch.linspace(-v_max, v_max, num_bins))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, math.sqrt(2))
                nn.init.zeros_(module.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the weights. The bins are no weights: they follow from the arguments."""
        support = state_dict.get(f"{prefix}support")
        if isinstance(support, Tensor) and not torch.equal(support.to(self.support), self.support):
            raise ValueError("the network's support is not that of its bins")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def last_shared_layer(self) -> nn.Module:
        """The last hidden layer. Methods that balance norms measure the gradients of its weights."""
        block = self.blocks[-1]
        assert isinstance(block, nn.Sequential)
        return block[3]

    def logits(self, observations: Tensor) -> Tensor:
        """Logits (N, A, bins) of every action's distribution for observations (N, O)."""
        x = observations
        if self.num_tasks:
            embedded = F.normalize(self.embedding(x[:, -self.num_tasks :].argmax(1)), dim=1)
            x = torch.cat((x[:, : -self.num_tasks], embedded), 1)
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.last(x)
        return logits.view(len(x), self.num_actions, -1)

    def forward(self, observations: Tensor) -> Tensor:
        """Action values (N, A) for observations (N, O): the means of the distributions, in normalised returns."""
        return self.logits(observations).softmax(2) @ self.support


class BRCPolicy(MultiTaskQPolicy):
    """Acts greedily on the means of the distributions of a `BroNet`; policy_kwargs are the arguments of `BroNet`."""

    make_network = BroNet  # type: ignore[assignment] # a class in place of a method, with other arguments
    takes_vectors_only = True


class ReturnScale:
    """Keeps the largest absolute discounted return of each task, by which the task's rewards are divided.

    Returns are taken from every step of a finished episode to its end. An episode that its time limit cut off is
    assumed to go on at its mean reward for the effective horizon 1 / (1 - gamma).

    Args:
        num_tasks: T.
        gamma: discount, below 1.

    Attributes:
        largest: the largest absolute return of each task so far, (T,).
        unfinished: the rewards of the unfinished episode of each column.
    """

    def __init__(self, num_tasks: int, gamma: float) -> None:
        self.gamma = gamma
        self.largest = np.zeros(num_tasks)  # (T,)
        self.unfinished: list[list[float]] = []

    def add(
        self,
        rewards: NDArray[np.float32],
        dones: NDArray[np.bool_],
        terminals: NDArray[np.bool_],
        task_of_column: NDArray[np.int64],
    ) -> None:
        """Add one step of N columns, given the number of each column's task. Each argument has the shape (N,)."""
        if len(self.unfinished) != len(rewards):
            self.unfinished = [[] for _ in rewards]
        for column, reward in enumerate(rewards.tolist()):
            self.unfinished[column].append(reward)
        for column in np.flatnonzero(dones).tolist():
            episode, self.unfinished[column] = self.unfinished[column], []
            value = 0.0 if terminals[column] else float(np.mean(episode)) / (1 - self.gamma)
            for received in reversed(episode):
                value = received + self.gamma * value
                task = task_of_column[column]
                self.largest[task] = max(self.largest[task], abs(value))

    def forget_unfinished(self) -> None:
        """Drop the rewards of unfinished episodes, because the environments have been reset."""
        self.unfinished = []

    @property
    def divisors(self) -> NDArray[np.float64]:
        """The number (T,) to divide each task's rewards by, so that no return so far exceeds 1; 1 before the first."""
        return np.where(self.largest > 0, self.largest, 1.0)


def project(next_probabilities: Tensor, targets: Tensor, support: Tensor) -> Tensor:
    """Project the distribution of `targets` onto the bins (Bellemare et al. 2017, https://arxiv.org/abs/1707.06887).

    Args:
        next_probabilities: the probabilities of the values `targets`, (N, bins).
        targets: the values r + gamma z that the bins z of the next step lead to, (N, bins). A value beyond the support
            counts as the end of the support.
        support: the centres of the bins, (bins,), equally spaced.

    Returns:
        Probabilities (N, bins). Each target's probability is divided between the two bins beside it, more to the nearer
        one, so that the mean stays the same if all targets lie inside the support.
    """
    bins = len(support)
    step = (support[-1] - support[0]) / (bins - 1)
    position = ((targets.clamp(support[0], support[-1]) - support[0]) / step).clamp(0, bins - 1)
    lower = position.floor().clamp(max=bins - 2)
    upper_share = position - lower
    index = lower.long()
    projected = torch.zeros_like(next_probabilities)
    projected.scatter_add_(1, index, next_probabilities * (1 - upper_share))
    projected.scatter_add_(1, index + 1, next_probabilities * upper_share)
    return projected


class CategoricalUpdate(SharedUpdate):
    """The update of BRC: a `SharedUpdate` with categorical targets and losses, and AdamW.

    Attributes:
        return_scale: what rewards are divided by.
    """

    settings: BRCSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.return_scale = ReturnScale(self.num_tasks, self.settings.gamma)

    def make_optimizer(self, vector: nn.Parameter, learning_rate: float) -> FlatAdam:
        """AdamW over the weights."""
        options = {"weight_decay": self.settings.weight_decay, **self._policy.optimizer_kwargs}
        return FlatAdam(vector, learning_rate, **options)

    def targets(self, batch: TaskBatch) -> Tensor:
        """Distributions of the bootstrapped, normalised returns, (T * B, bins)."""
        network: Any = self.target_network
        support = network.support
        probabilities = network.logits(batch.next_observations).softmax(2)  # (T * B, A, bins)
        chooser = self.network(batch.next_observations) if self.settings.double_q else probabilities @ support
        if self._policy.own_actions is not None:
            chooser = self._policy.own_actions.only(chooser, batch.next_observations)
        rows = torch.arange(len(chooser), device=chooser.device)
        best = probabilities[rows, chooser.argmax(1)]  # (T * B, bins)
        unit = torch.as_tensor(self.return_scale.divisors / float(support[-1]), dtype=torch.float32, device=rows.device)
        by_task = batch.rewards.view(len(unit), -1)
        self.guard.check("a stored reward", by_task.sum(1).tolist())  # the ends of the bins would hide an infinity
        rewards = (by_task / unit[:, None]).flatten()
        targets = rewards[:, None] + batch.discounts[:, None] * support
        return project(best, targets, support)

    def losses(self, batch: TaskBatch, targets: Tensor) -> Tensor:
        """Mean cross-entropy of each task, (T,)."""
        network: Any = self.network
        logits = network.logits(batch.observations)
        of_action = logits[torch.arange(len(logits), device=logits.device), batch.actions]  # (T * B, bins)
        per_row: Tensor = -(targets * of_action.log_softmax(1)).sum(1)
        return per_row.view(self.num_tasks, -1).mean(1)

    def observe(self, rewards: NDArray[np.float32], dones: NDArray[np.bool_], terminals: NDArray[np.bool_]) -> None:
        """Add the step's rewards to the returns."""
        self.return_scale.add(rewards, dones, terminals, self.task_of_column)

    def forget_unfinished(self) -> None:
        """Drop the rewards of episodes that will not be finished."""
        self.return_scale.forget_unfinished()

    def saved_state(self) -> dict[str, Any]:
        """The largest return of each task, beside what every update saves."""
        return {**super().saved_state(), "largest_returns": self.return_scale.largest}

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore the largest returns.

        Raises:
            ValueError: they are not one number of at least 0 per task.
        """
        super().load_saved_state(state)
        largest = state["largest_returns"]
        check_form("largest_returns", largest, Like(self.return_scale.largest, least=0, finite=False))
        self.return_scale.largest = largest

    def training_state(self) -> dict[str, Any]:
        """The rewards of unfinished episodes."""
        return {"episode_rewards": self.return_scale.unfinished}

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore the rewards of unfinished episodes.

        Raises:
            ValueError: they are not a list of numbers for each column; or there is none, and a step has been taken.
        """
        rewards = state["episode_rewards"]
        check_form("episode_rewards", rewards, Each(Each(Number())))
        if len(rewards) != (len(state["last_observations"]) if state["progress"]["num_timesteps"] else 0):
            raise ValueError(f"there are rewards of {len(rewards)} unfinished episodes")
        self.return_scale.unfinished = rewards


class BRC(MultiTaskDQN):
    """BRC (Nauman et al. 2025, https://arxiv.org/abs/2505.23150) for discrete actions.

    The Q-network of `MultiTaskDQN` is replaced by the paper's critic: `BroNet`, categorical temporal-difference
    learning by cross-entropy, rewards divided per task so that returns fit the bins, and AdamW. Data, batches, number
    of updates and exploration are those of `MultiTaskDQN`. The paper's actor and its temperature have no place in
    Q-learning with discrete actions: each action has its own distribution among the outputs, and double Q-learning
    chooses the next action. The paper averages the distributions of two critics; this agent has one, at half the cost.

    The arguments are those of `MultiTaskDQN`, with these differences: `policy_kwargs` are the arguments of `BroNet`
    (`width`, `depth`, `embedding_dim`, `num_bins`, `v_max`), the settings are the fields of `BRCSettings`, and
    `td_loss` and `huber_delta` have no effect. `reward_scaling` and `value_normalization` must be `"none"`: rewards
    are divided as in the paper.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": BRCPolicy}
    settings_type: ClassVar[type[ReplaySettings]] = BRCSettings
    update_type: ClassVar[type[SharedUpdate]] = CategoricalUpdate

    settings: BRCSettings
    update: CategoricalUpdate

    if TYPE_CHECKING:  # the constructor is that of `MultiTaskDQN`; type checkers need the names of the further settings

        def __init__(
            self,
            policy: str | type[MultiTaskQPolicy],
            env: GymEnv | str | None,
            balancer: str | Balancer = "equal",
            balancer_kwargs: Mapping[str, Any] | None = None,
            *,
            policy_kwargs: dict[str, Any] | None = None,
            tensorboard_log: str | None = None,
            verbose: int = 0,
            seed: int | None = None,
            device: torch.device | str = "auto",
            _init_setup_model: bool = True,
            **settings: Unpack[BRCOptions],
        ) -> None: ...

    @property
    def return_scale(self) -> ReturnScale:
        """What rewards are divided by."""
        return self.update.return_scale
