"""Continuous actions: soft actor-critic on Gymnasium's Pendulum, with a heavy pendulum, and on another planet.

    python examples/sb3_continuous.py

Critics and actor have a balancer each. `MultiTaskSAC` is a Stable-Baselines3 algorithm, as `MultiTaskDQN` is.
"""

import argparse

import gymnasium

from mtrl.rl import MultiTaskSAC, Task, evaluate_tasks, make_task_vec_env


def pendulum(name: str, mass: float = 1.0, gravity: float = 10.0) -> Task:
    """Pendulum with a rod of `mass` kilograms, where things fall with `gravity` metres per second squared."""

    def make(render_mode: str | None) -> gymnasium.Env:
        env = gymnasium.make("Pendulum-v1", render_mode=render_mode, g=gravity)
        env.unwrapped.m = mass
        return env

    return Task(name, make, solved_at=-200)


TASKS = [pendulum("standard"), pendulum("heavy", mass=1.3), pendulum("mars", gravity=3.7)]


def main() -> None:
    """Train on all three, and play each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps over all tasks")
    parser.add_argument("--seed", type=int, default=0, help="the seed of everything random")
    args = parser.parse_args()

    env = make_task_vec_env(TASKS, envs_per_task=1, seed=args.seed)
    model = MultiTaskSAC(
        "MlpPolicy",
        env,
        critic_balancer="pcgrad",
        actor_balancer="equal",
        learning_rate=1e-3,
        learning_starts=min(1_000, args.steps // 2),
        gradient_steps=1,
        policy_kwargs={"net_arch": [64, 64]},
        seed=args.seed,
    )
    model.learn(args.steps)
    for name, found in evaluate_tasks(model, make_task_vec_env(TASKS, envs_per_task=2, seed=100), 20).items():
        print(f"{name}: return {found.mean:.0f} +- {found.deviation:.0f}, success {found.success:.0%}")


if __name__ == "__main__":
    main()
