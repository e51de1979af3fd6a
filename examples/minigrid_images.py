"""Three MiniGrid tasks in one agent that sees the 7 x 7 cells before it (extra `minigrid`).

What this prints, and after how long, is in docs/learning-runs.md:
    python examples/minigrid_images.py
"""

import argparse
from functools import partial

import gymnasium
import torch
from minigrid.wrappers import ImgObsWrapper
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from mtrl.rl import MultiTaskDQN, Task, evaluate_tasks, make_task_vec_env


class Cells(BaseFeaturesExtractor):
    """Features of the cells: each has a kind, a colour and a state, integers from 0 to 10 that become one-hots."""

    def __init__(self, space: gymnasium.Space, features_dim: int = 128) -> None:
        super().__init__(space, features_dim)
        layers = (nn.Conv2d(33, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
        self.layers = nn.Sequential(*layers, nn.Linear(800, features_dim), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Features (N, F) of images (N, 3, 7, 7)."""
        one_hots = image[:, :, None] == torch.arange(11, device=image.device)[:, None, None]
        return self.layers(one_hots.float().flatten(1, 2))


def make(name: str, render_mode: str | None) -> gymnasium.Env:
    """A task of MiniGrid, with images of 7 x 7 x 3. The goal pays 1 - 0.9 * steps / limit, and nothing else pays."""
    return ImgObsWrapper(gymnasium.make(f"MiniGrid-{name}-v0", render_mode=render_mode))


TASKS = [Task(name, partial(make, name), solved_at=0.05) for name in ("Empty-8x8", "DoorKey-5x5", "Unlock")]


def main() -> None:
    """Train, then play greedy episodes of each task with the last model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps over all tasks")
    parser.add_argument("--episodes", type=int, default=100, help="greedy episodes of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = {"features_extractor_class": Cells, "normalize_images": False, "net_arch": (128,)}
    settings = {"gamma": 0.95, "learning_rate_decay": 0.5, "exploration_fraction": 0.3, "memory_angle": 0}
    env = make_task_vec_env(TASKS, envs_per_task=8, seed=args.seed)
    model = MultiTaskDQN("CnnPolicy", env, policy_kwargs=policy, seed=args.seed, device="cpu", **settings)
    model.learn(args.steps)
    for name, found in evaluate_tasks(model, make_task_vec_env(TASKS, 8, args.seed + 1_000), args.episodes).items():
        print(f"{name}: return {found.mean:.3f} +- {found.deviation:.3f}, success {found.success:.0%}")


if __name__ == "__main__":
    main()
