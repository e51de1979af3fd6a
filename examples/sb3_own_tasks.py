"""Tasks of your own in a project that uses Stable-Baselines3: CartPole, with a weak motor, and with a heavy pole.

    python examples/sb3_own_tasks.py

A task is a name and a way to make its environment. Callbacks, loggers, `predict`, `save` and `load` are those of
Stable-Baselines3; `TaskEvalCallback` and `evaluate_tasks` take the places of its `EvalCallback` and `evaluate_policy`.
"""

import argparse
from pathlib import Path

import gymnasium

from mtrl.rl import MultiTaskDQN, Task, TaskEvalCallback, evaluate_tasks, make_task_vec_env


def pole(name: str, force: float = 10.0, mass: float = 0.1) -> Task:
    """CartPole with a motor of `force` newtons and a pole of `mass` kilograms."""

    def make(render_mode: str | None) -> gymnasium.Env:
        env = gymnasium.make("CartPole-v1", render_mode=render_mode)
        physics = env.unwrapped
        physics.force_mag, physics.masspole = force, mass
        physics.total_mass, physics.polemass_length = mass + physics.masscart, mass * physics.length
        return env

    return Task(name, make, solved_at=475)


TASKS = [pole("standard"), pole("weak", force=5.0), pole("heavy", mass=0.5)]


def main() -> None:
    """Train, keep the model that is best in its worst task, and play it in two of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps over all tasks")
    parser.add_argument("--folder", type=Path, default=Path("results/examples"), help="where the best model goes")
    args = parser.parse_args()

    callback = TaskEvalCallback(
        make_task_vec_env(TASKS, envs_per_task=2, seed=1),
        eval_freq=max(args.steps // 120, 1),
        best_model_save_path=args.folder,
        best_by="worst",
        verbose=1,
    )
    env = make_task_vec_env(TASKS, envs_per_task=4, seed=0)
    model = MultiTaskDQN("MlpPolicy", env, balancer="pcgrad", learning_starts=min(2_000, args.steps // 2), seed=0)
    model.learn(args.steps, callback)

    best = MultiTaskDQN.load(args.folder / "best_model.zip")
    columns = make_task_vec_env(TASKS, envs_per_task=2, seed=2)
    for name, found in evaluate_tasks(best, columns, tasks=["weak", "heavy"]).items():
        print(f"{name}: return {found.mean:.0f} +- {found.deviation:.0f}, success {found.success:.0%}")


if __name__ == "__main__":
    main()
