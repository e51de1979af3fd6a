"""Three tasks of different shape in one agent: CartPole, Acrobot and MountainCar.

    python examples/different_tasks.py

They have four, six and two numbers in an observation, and two, three and three actions. With `pad=True` zeros follow
the shorter observations, and CartPole's third action is neither taken nor valued. docs/learning-runs.md has the runs.
"""

import argparse

import gymnasium
import torch

from mtrl.rl import MultiTaskDQN, Task, evaluate_tasks, make_task_vec_env


def make_car(render_mode: str | None) -> gymnasium.Env:
    """MountainCar with position and velocity from -1 to 1; as they come, velocities are at most 0.07."""
    return gymnasium.wrappers.RescaleObservation(gymnasium.make("MountainCar-v0", render_mode=render_mode), -1, 1)


TASKS = ["CartPole-v1", "Acrobot-v1", Task("MountainCar-v0", make_car)]  # solved from 475, -100 and -110


def main() -> None:
    """Train, then play greedy episodes of each task with the last model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps over all tasks")
    parser.add_argument("--episodes", type=int, default=100, help="greedy episodes of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = MultiTaskDQN(
        "MlpPolicy",
        make_task_vec_env(TASKS, envs_per_task=4, seed=args.seed, pad=True),
        policy_kwargs={"heads": "per_task"},
        memory_angle=0,
        learning_rate_decay=0.5,
        learning_starts=min(6_000, args.steps // 2),
        exploration_fraction=0.2,
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps)
    columns = make_task_vec_env(TASKS, envs_per_task=10, seed=args.seed + 1_000, pad=True)
    for name, found in evaluate_tasks(model, columns, args.episodes).items():
        print(f"{name}: return {found.mean:.1f} +- {found.deviation:.1f}, success {found.success:.0%}")


if __name__ == "__main__":
    main()
