"""Values that differ by a factor of 1,000 in one actor-critic: Pendulum, and Pendulum with every reward x 1,000.

    python examples/sb3_value_scales.py
    python examples/sb3_value_scales.py --value-normalization none

Critics learn the values of each task in units of a running deviation of its targets. Returns are printed as they are.
"""

import argparse

import gymnasium
import torch

from mtrl.rl import MultiTaskSAC, Task, evaluate_tasks, make_task_vec_env


def pendulum(factor: float) -> Task:
    """Pendulum with every reward multiplied by `factor`."""

    def make(render_mode: str | None) -> gymnasium.Env:
        env = gymnasium.make("Pendulum-v1", render_mode=render_mode)
        return gymnasium.wrappers.TransformReward(env, lambda reward: factor * float(reward))

    return Task(f"x{factor:g}", make, solved_at=-200 * factor)


def main() -> None:
    """Train, then play 20 greedy episodes of each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--value-normalization", default="popart", choices=["none", "popart"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [pendulum(1), pendulum(1000)]
    model = MultiTaskSAC(
        "MlpPolicy",
        make_task_vec_env(tasks, envs_per_task=1, seed=args.seed),
        value_normalization=args.value_normalization,
        learning_rate=1e-3,
        learning_starts=min(1_000, args.steps // 2),
        gradient_steps=1,
        policy_kwargs={"net_arch": [64, 64]},
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps)
    found = evaluate_tasks(model, make_task_vec_env(tasks, envs_per_task=2, seed=args.seed + 100), n_eval_episodes=20)
    for name, of_task in found.items():
        print(f"{name}: mean return {of_task.mean:.0f}")


if __name__ == "__main__":
    main()
