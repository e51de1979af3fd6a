"""Two tasks whose rewards differ by a factor of 1,000 in one agent: CartPole, and CartPole with every reward x 1,000.

Returns are printed as they are. These are the two ways to scale; `--reward-scaling none` alone does without:
    python examples/sb3_reward_scales.py
    python examples/sb3_reward_scales.py --reward-scaling none --value-normalization popart
"""

import argparse

import gymnasium
import torch

from mtrl.rl import MultiTaskDQN, Task, evaluate_tasks, make_task_vec_env


def pole(factor: float) -> Task:
    """CartPole with every reward multiplied by `factor`."""

    def make(render_mode: str | None) -> gymnasium.Env:
        env = gymnasium.make("CartPole-v1", render_mode=render_mode)
        return gymnasium.wrappers.TransformReward(env, lambda reward: factor * float(reward))

    return Task(f"x{factor:g}", make, solved_at=475 * factor)


def main() -> None:
    """Train, then play 20 greedy episodes of each task, whose full returns are 500 and 500,000."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reward-scaling", default="return", choices=["none", "return"])
    parser.add_argument("--value-normalization", default="none", choices=["none", "popart"])
    parser.add_argument("--balancer", default="equal")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [pole(1), pole(1000)]
    model = MultiTaskDQN(
        "MlpPolicy",
        make_task_vec_env(tasks, envs_per_task=4, seed=args.seed),
        balancer=args.balancer,
        reward_scaling=args.reward_scaling,
        value_normalization=args.value_normalization,
        learning_starts=min(2_000, args.steps // 2),
        learning_rate=2.5e-4,
        learning_rate_decay=0.5,
        n_step=5,
        gradient_steps=4,
        memory_angle=0,
        seed=args.seed,
        device="cpu",
    )
    model.learn(args.steps)
    fresh = make_task_vec_env(tasks, envs_per_task=4, seed=args.seed + 1)
    for name, found in evaluate_tasks(model, fresh, n_eval_episodes=20).items():
        print(f"{name}: mean return {found.mean:.0f}")


if __name__ == "__main__":
    main()
