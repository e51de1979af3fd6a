"""The cases of `python -m benchmarks.update --algorithm sac`: one update of a soft actor-critic.

Every case updates two critics and an actor (256 and 128 hidden units, the task's embedding among the inputs, no layer
norm) on batches of the same size, with Adam:

* "sb3_sac": `stable_baselines3.SAC.train` with a batch of the same T * B transitions, without balancing. It also draws
  its batch, and it has no task embedding;
* "torchjd_pcgrad": `benchmarks.training_sac.TorchJDSAC`, which is the same with one loss per task. TorchJD's PCGrad
  combines them in the fastest way that TorchJD offers for these losses;
* the names of balancers: the update of `mtrl.rl.MultiTaskSAC` with the balancer for critics and actor, or, where it
  needs positive losses, for the critics alone (its name ends with "_critics"). AIM updates its policy every 10 updates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from benchmarks.common import has_torchjd
from benchmarks.noise import EMBEDDING, HIDDEN, LEARNING_RATE, environment, sb3_update
from benchmarks.training_sac import TorchJDSAC
from mtrl.balancers import make_balancer, names
from mtrl.rl import MultiTaskSAC

THROTTLES = spaces.Box(-1.0, 1.0, (2,))


def balanced_update(tasks: int, batch_size: int, device: str, critic: str, actor: str) -> Callable[[], None]:
    """The update of `MultiTaskSAC` with these balancers."""
    agent = MultiTaskSAC(
        "MlpPolicy",
        environment(tasks, THROTTLES),
        critic,
        {"policy_interval": 10} if critic == "aim" else None,
        actor,
        learning_rate=LEARNING_RATE,
        learning_rate_decay=0,
        memory_angle=0.0,  # Stable-Baselines3 has none
        batch_size=batch_size,
        learning_starts=10**9,
        guidance_share=0.5,
        policy_kwargs={"embedding_dim": EMBEDDING, "net_arch": HIDDEN, "layer_norm": False},
        device=device,
        seed=0,
    )
    agent.set_logger(Logger(None, []))
    agent.learn(400 * tasks)  # fills the replays without an update
    batch = agent.replay_buffer.sample(batch_size)
    if agent.guidance_buffer is not None:
        agent.update.guide()

    def update() -> None:
        agent.update(batch, agent._n_updates % agent.settings.conflict_interval == 0)
        agent._n_updates += 1
        agent.update.update_target(agent.tau)

    return update


def make_cases(tasks: int, batch_size: int, device: str) -> dict[str, Callable[[], None]]:
    """All cases that take turns. The first one is "sb3_sac"."""
    torch.set_num_threads(1)
    cases = {"sb3_sac": sb3_update(SAC, THROTTLES, tasks, batch_size, device)}
    if has_torchjd():
        of_tasks = partial(TorchJDSAC, tasks=tasks)
        cases["torchjd_pcgrad"] = sb3_update(of_tasks, THROTTLES, tasks, batch_size, device)
    for name in names():
        if make_balancer(name, tasks).needs_positive_losses:
            cases[f"{name}_critics"] = balanced_update(tasks, batch_size, device, name, "equal")
        else:
            cases[name] = balanced_update(tasks, batch_size, device, name, name)
    return cases
