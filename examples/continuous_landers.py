"""Three landers with continuous throttles, learned by one soft actor-critic.

    python -m examples.continuous_landers

It runs from the root of a checkout, where the package `envs` has the landers. docs/learning-runs.md has what it prints.
"""

import argparse

import torch

from envs import CONTINUOUS_TASKS
from mtrl.rl import MultiTaskSAC, evaluate_tasks, make_task_vec_env


def main() -> None:
    """Train without telling the networks the task, then play greedy episodes of each task with the last model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps over all tasks")
    parser.add_argument("--episodes", type=int, default=20, help="greedy episodes of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = make_task_vec_env(CONTINUOUS_TASKS, 4, args.seed, "blind")
    model = MultiTaskSAC("MlpPolicy", env, seed=args.seed, device="cpu")
    model.learn(args.steps)
    columns = make_task_vec_env(CONTINUOUS_TASKS, 5, args.seed + 10_000, "blind")
    for name, found in evaluate_tasks(model, columns, args.episodes).items():
        print(f"{name}: return {found.mean:.1f} +- {found.deviation:.1f}, success {found.success:.0%}")


if __name__ == "__main__":
    main()
