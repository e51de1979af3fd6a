"""The state of an agent in training: what a checkpoint holds of it, and how the training goes on from one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mtrl.states import PCG64, AtLeast, Each, Like, Number, Whole, check_adam, check_form

if TYPE_CHECKING:
    from mtrl.rl.algorithm import MultiTaskAlgorithm


def training_state(agent: MultiTaskAlgorithm) -> dict[str, Any]:
    """See `MultiTaskAlgorithm.training_state`."""
    assert agent.ep_info_buffer is not None
    assert agent.ep_success_buffer is not None
    state = {
        **agent.saved_state(),
        **agent.update.training_state(),
        "replay": agent.replay_buffer.state_dict(),
        "n_step": agent._n_step_returns.state_dict(),
        "exploration": agent.exploration_generator_state,
        "last_observations": agent._last_obs,
        "last_episode_starts": agent._last_episode_starts,
        "episode_stats": [list(episodes) for episodes in agent._episode_stats],
        "episode_infos": list(agent.ep_info_buffer),
        "episode_successes": list(agent.ep_success_buffer),
        "loss_sum": agent._loss_sum,
        "loss_count": agent._loss_count,
        "diagnostics": {**agent.update.conflict, **agent.update.diagnostics},
        "skipped": dict(agent.guard.skipped),
        "elapsed_ns": agent.elapsed_ns,
    }
    if agent.guidance_buffer is not None:
        state |= {
            "guidance": agent.guidance_buffer.state_dict(),
            "held_out": dict(agent._held_out_generator.bit_generator.state),
        }
    return state


def set_training_state(agent: MultiTaskAlgorithm, state: Mapping[str, Any]) -> None:
    """See `MultiTaskAlgorithm.set_training_state`."""
    check_training_state(agent, state)
    agent.load_saved_state(state)
    agent.update.check_balancers()
    agent.replay_buffer.load_state_dict(state["replay"])
    agent._n_step_returns.load_state_dict(state["n_step"])
    agent.exploration_generator.bit_generator.state = state["exploration"]
    agent._last_obs = state["last_observations"]
    agent._last_episode_starts = state["last_episode_starts"]
    agent._episode_stats = [deque(episodes, agent._stats_window_size) for episodes in state["episode_stats"]]
    agent.ep_info_buffer = deque(state["episode_infos"], agent._stats_window_size)
    agent.ep_success_buffer = deque(state["episode_successes"], agent._stats_window_size)
    agent._loss_sum = state["loss_sum"].to(agent.device)
    agent._loss_count = state["loss_count"]
    agent.update.conflict, agent.update.diagnostics = dict(state["diagnostics"]), {}
    agent.guard.skipped.clear()
    agent.guard.skipped.update(state["skipped"])
    agent._begun_ns = time.monotonic_ns() - state["elapsed_ns"]
    agent.update.set_training_state(state)
    if agent.guidance_buffer is not None:
        agent.guidance_buffer.load_state_dict(state["guidance"])
        agent._held_out_generator.bit_generator.state = state["held_out"]
        agent.update.guide()  # an update at a learning rate of 0 sets no guidance of its own, and goes by this one


def check_training_state(agent: MultiTaskAlgorithm, state: Mapping[str, Any]) -> None:
    """Check that an agent whose `learn` has begun can go on from a training state. Nothing is changed.

    The balancer, the replays and the update check their own parts when they take them over.

    Raises:
        ValueError: a part is missing or unknown, has another form than that of this agent, or is not finite.
    """
    own = agent.training_state()
    columns, num_tasks = agent.n_envs, len(agent.task_names)
    observations, flags = own["last_observations"], np.zeros(columns, np.bool_)
    size = agent.replay_buffer.action_size
    no_actions = np.zeros(columns, np.int64) if size is None else np.zeros((columns, size), np.float32)
    step: list[Any] = [observations, observations, no_actions, Any, flags, flags]
    progress = {name: Whole() if kind is int else Number(-1e30, 1) for name, kind in agent.progress.items()}
    progress |= {k: Like(part, least=0) for k, part in own["progress"].items() if isinstance(part, np.ndarray)}
    fixed = (
        *("agent", "policy_class", "policy_name", "task_names", "one_hot_size", "one_hot_places"),
        *("num_actions", "first_action", "actions_of_tasks", "action_low", "action_high"),
    )
    form = {
        **dict.fromkeys(own, Any),
        **{name: own[name] for name in fixed if name in own},
        "settings": dict,
        "progress": progress,
        "policy": {name: part if isinstance(part, Tensor) else Any for name, part in own["policy"].items()},
        "optimizer": dict,
        "balancer": dict,
        "n_step": {"steps": Each(step)},
        "exploration": PCG64,
        "last_observations": Like(observations, finite=False),
        "last_episode_starts": Like(own["last_episode_starts"]),
        "episode_stats": [Each((Number(), Number()))] * num_tasks,
        "episode_infos": Each(AtLeast(r=Number(), l=Number())),
        "episode_successes": Each(Number()),
        "loss_sum": Like(own["loss_sum"], finite=False),
        "loss_count": Whole(),
        "diagnostics": Each(Tensor, dict),
        "skipped": Each(Whole(), dict),
        "elapsed_ns": Whole(),
        **({"held_out": PCG64} if "held_out" in own else {}),
    }
    check_form("agent", dict(state), form)
    for memory in ("memory", "actor_memory"):
        if memory in own and not state[memory] and state["progress"]["_n_updates"]:
            raise ValueError(f"agent[{memory!r}] is empty, although there have been updates to remember")
    check_adam("agent['optimizer']", state["optimizer"], agent.policy.optimizer)
    agent.update.check_training_state(state)
    for number, (_, _, actions, rewards, _, _) in enumerate(state["n_step"]["steps"]):
        name = f"agent['n_step']['steps'][{number}]"
        if not isinstance(rewards, np.ndarray) or rewards.dtype.kind != "f" or rewards.shape != (columns,):
            raise ValueError(f"{name} has no reward for each of {columns} columns")
        if size is not None and not (np.abs(actions) <= 1).all():
            raise ValueError(f"{name} has an action that is not between -1 and 1")
        if size is None and not all(0 <= action < own["num_actions"] for action in actions):
            raise ValueError(f"{name} has an action that is none of Discrete({own['num_actions']})")
    for name, numbers in state["diagnostics"].items():
        if numbers.shape not in ((), (num_tasks,), (num_tasks, num_tasks)):
            raise ValueError(f"agent['diagnostics'][{name!r}] has the shape {tuple(numbers.shape)}")
