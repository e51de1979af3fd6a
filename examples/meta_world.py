"""Three tasks of Meta-World's robot arm, learned by one soft actor-critic (extra `metaworld`).

    python -m examples.meta_world

It runs from the root of a checkout, where the package `envs` has the tasks. docs/learning-runs.md has what this prints.
"""

import argparse

import torch

import envs  # noqa: F401 - makes MT3, MT10, MT50 and Meta-World's own names known
from mtrl.rl import MultiTaskSAC, evaluate_tasks, make_task_vec_env


def main() -> None:
    """Train with the one-hot of the task in the observations, then play greedy episodes with goals of their own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["MT3"], help="names of tasks or groups, such as MT10 or push-v3")
    parser.add_argument("--steps", type=int, default=600_000, help="environment steps over all tasks")
    parser.add_argument("--episodes", type=int, default=50, help="greedy episodes of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = make_task_vec_env(args.tasks, envs_per_task=4, seed=args.seed)
    model = MultiTaskSAC(
        "MlpPolicy",
        env,
        value_normalization="popart",  # an episode returns up to 5,000
        n_step=1,
        tau=0.005,
        gradient_steps=6,  # for every 12 steps of the environments
        learning_rate_decay=0.25,
        memory_angle=0,
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps)
    columns = make_task_vec_env(args.tasks, envs_per_task=5, seed=args.seed + 10_000)
    for name, found in evaluate_tasks(model, columns, args.episodes).items():
        print(f"{name}: return {found.mean:.0f} +- {found.deviation:.0f}, success {found.success:.0%}")


if __name__ == "__main__":
    main()
