"""Settings of a training run; every field is a flag of `python -m experiments.<method>.train`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from experiments.program.run_folder import Existing
from experiments.program.weights_and_biases import WandbMode, check_wandb_project

Variant = Literal["aware", "blind"]
Preset = Literal["default", "notes"]
Device = Literal["cpu", "cuda", "auto"]
Config = TypeVar("Config", bound="TrainConfig")

# Fields that go to `MultiTaskDQN` under their own names; a test holds their defaults equal.
AGENT_FIELDS = (
    "learning_rate",
    "learning_rate_decay",
    "buffer_size",
    "learning_starts",
    "batch_size",
    "tau",
    "gamma",
    "n_step",
    "train_freq",
    "gradient_steps",
    "target_update_interval",
    "target_update_unit",
    "exploration_fraction",
    "exploration_initial_eps",
    "exploration_final_eps",
    "exploration_diversity",
    "exploration_decay",
    "double_q",
    "td_loss",
    "huber_delta",
    "max_grad_norm",
    "guidance_share",
    "conflict_interval",
    "on_nonfinite",
    "stats_window_size",
    "seed",
    "device",
)

# What the notes of earlier experiments prescribe, in this project's terms: 500 episodes per task on one environment
# each, epsilon and target network by the episode, one update per step. 1,500,000 steps can't be exceeded: 500 episodes
# of each task end within them.
NOTES: dict[str, Any] = {
    "preset": "notes",
    "total_steps": 1_500_000,
    "episodes_per_task": 500,
    "envs_per_task": 1,
    "log_interval": 10,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 6_000,
    "learning_rate": 5e-4,
    "learning_rate_decay": 0.0,
    "gamma": 0.99,
    "n_step": 1,
    "gradient_steps": 1,
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.01,
    "exploration_diversity": 0.0,
    "exploration_decay": 0.995,
    "tau": 1.0,
    "target_update_interval": 10,
    "target_update_unit": "episodes",
    "embedding_dim": 8,
    "hidden_dims": (256, 128),
    "layer_norm": False,
    "huber_delta": 1.0,
}


@dataclass(frozen=True)
class TrainConfig:
    """What every method shares: the tasks, the budget and the agent."""

    method: ClassVar[str]
    balancer: ClassVar[str] = "equal"
    agent: ClassVar[str] = "MultiTaskDQN"

    preset: Preset = "default"
    """Where defaults come from: `default`, or `notes` for the numbers of the notes that this project grew from
    (500 episodes per task, epsilon times 0.995 per episode, target copy every 10 episodes)."""

    variant: Variant = "aware"
    """`aware`: observations end with a one-hot of the task; `blind`: the 8 state values alone."""

    seed: int = 0
    """Seed of everything random."""

    tasks: tuple[str, ...] = ("Standard", "Windy", "Heavy")
    """Names of the tasks, in the order of the one-hot."""

    total_steps: int = 600_000
    """Environment steps over all tasks."""

    episodes_per_task: int | None = None
    """Stop when every task has finished this many episodes, even if steps are left."""

    envs_per_task: int = 4
    """Copies of each task that are stepped side by side."""

    results_dir: Path = Path("results/runs")
    """The run goes to `<results-dir>/<method>[_blind]/seed_<k>/`."""

    existing: Existing = "continue"
    """What to do with the run in that place. `continue`: go on with an unfinished run, which then ends as if it had
    never been interrupted, bit for bit; settings must be the same. `restart`: throw an unfinished run away. Both refuse
    a finished run. `replace`: throw the run away, finished or not."""

    checkpoint_interval: float = 60.0
    """Seconds between checkpoints, from which an interrupted run continues; more where writing one takes so long that
    it would cost over 3 % of the time. 0 for none."""

    step_timeout: float = 60.0
    """Seconds after which an environment that does not answer is given up; 0 for never."""

    quiet: bool = False
    """No live display."""

    tensorboard: bool = True
    """Write TensorBoard event files to `tensorboard/` in the run's folder."""

    wandb: WandbMode = "disabled"
    """Show the run in Weights & Biases (extra `wandb`): `offline` below the run's folder, to be uploaded later with
    `wandb sync`, or `online`, which needs `wandb login` first."""

    wandb_project: str = "mtrl"
    """Project in Weights & Biases."""

    wandb_entity: str | None = None
    """User or team in Weights & Biases. Default: that of the login."""

    log_interval: int = 10
    """Finished episodes between lines in metrics.jsonl."""

    eval_interval: int = 20_000
    """Environment steps between greedy evaluations for the learning curves; 0 for none."""

    eval_episodes: int = 5
    """Episodes per task in each of these."""

    final_episodes: int = 20
    """Episodes per task in the final evaluation, which goes to evaluation.json."""

    device: Device = "cpu"
    """Where the network is trained. At these sizes a CPU core is faster than a GPU."""

    learning_rate: float = 5e-4
    """Step size of Adam."""

    learning_rate_decay: float = 0.25
    """Share of training, at its end, over which the learning rate falls linearly to 0; 0 keeps it constant."""

    buffer_size: int = 480_000
    """Transitions kept, over all tasks; each task has its equal share."""

    learning_starts: int = 6_000
    """Environment steps of random play before the first update."""

    batch_size: int = 64
    """Transitions of each task in one update."""

    tau: float = 0.005
    """Share of the online network that goes into the target network at each target update; 1 copies it."""

    gamma: float = 0.99
    """Discount per step."""

    n_step: int = 3
    """Rewards in a transition before the bootstrapped value."""

    train_freq: int = 1
    """Steps of all environments between training phases."""

    gradient_steps: int = 2
    """Updates per training phase."""

    target_update_interval: int = 1
    """Updates (see --target-update-unit) between target updates."""

    target_update_unit: Literal["updates", "episodes"] = "updates"
    """What the target update interval counts."""

    exploration_fraction: float = 0.1
    """Share of training over which epsilon falls linearly."""

    exploration_initial_eps: float = 1.0
    """First epsilon: the probability of a random action."""

    exploration_final_eps: float = 0.1
    """Last epsilon of each task's first environment."""

    exploration_diversity: float = 2.0
    """How much more greedily the task's other environments act, as in Ape-X: the last epsilon of environment i of K is
    exploration_final_eps ** (1 + exploration_diversity * i / (K - 1)). 0 gives all the same."""

    exploration_decay: float | None = None
    """If given, epsilon is multiplied by this after each episode instead of falling linearly."""

    double_q: bool = True
    """Double Q-learning: the online network chooses the next action, the target network values it."""

    td_loss: Literal["huber", "mse"] = "huber"
    """Loss of the temporal-difference error."""

    huber_delta: float = 10.0
    """Error up to which the Huber loss is quadratic, in units of returns; beyond it is linear."""

    max_grad_norm: float | None = None
    """If given, the combined gradient is scaled down to this norm."""

    guidance_share: float = 0.1
    """Share of transitions held out as AIM's guidance set; without effect for other methods."""

    conflict_interval: int = 250
    """Updates between measurements of how much the task gradients conflict."""

    on_nonfinite: Literal["raise", "skip"] = "raise"
    """What to do where an observation, reward, loss, gradient or weight is NaN or infinite: `raise` an error that names
    it and keep the last checkpoint, or `skip` that step or update and count it in the logs."""

    stats_window_size: int = 20
    """Finished episodes per task that the reported training returns average over."""

    embedding_dim: int = 8
    """Size of the learned task embedding (aware only)."""

    hidden_dims: tuple[int, ...] = (256, 128)
    """Widths of the hidden layers."""

    layer_norm: bool = True
    """Normalise each hidden layer before its ReLU, without learned parameters."""

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("total_steps", 1),
            ("log_interval", 1),
            ("eval_interval", 0),
            ("eval_episodes", 1),
            ("final_episodes", 1),
            ("train_freq", 1),
            ("gradient_steps", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 1 <= self.envs_per_task <= 1_000:
            raise ValueError(f"envs_per_task is {self.envs_per_task}; it must be between 1 and 1000")
        for name in ("checkpoint_interval", "step_timeout"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        if self.episodes_per_task is not None and self.episodes_per_task < 1:
            raise ValueError(f"episodes_per_task is {self.episodes_per_task}; it must be at least 1")
        check_wandb_project(self.wandb_project)

    @property
    def run_method(self) -> str:
        """The method's name in the results; a method that stands for several adds which."""
        return self.method

    @property
    def run_name(self) -> str:
        """`<method>` or `<method>_blind`."""
        return run_name(self.run_method, self.variant)

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return run_dir(self.results_dir, self.run_method, self.variant, self.seed)

    @property
    def agent_kwargs(self) -> dict[str, Any]:
        """Arguments of the agent."""
        kwargs = {name: getattr(self, name) for name in AGENT_FIELDS}
        kwargs |= {"balancer": self.balancer_name, "balancer_kwargs": self.balancer_kwargs}
        return kwargs | {"policy_kwargs": self.policy_kwargs}

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of the network."""
        return {"embedding_dim": self.embedding_dim, "net_arch": list(self.hidden_dims), "layer_norm": self.layer_norm}

    @property
    def balancer_name(self) -> str:
        """The balancer, as `mtrl.make_balancer` knows it."""
        return self.balancer

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of the balancer; a method with settings of its own overrides this."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """Every field, as JSON holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def presets(config_type: type[Config], without: Sequence[str] = ()) -> dict[str, Config]:
    """What `--preset` chooses from: the defaults of the fields, and the notes' numbers, save for those in `without`."""
    notes = {name: value for name, value in NOTES.items() if name not in without}
    return {"default": config_type(), "notes": config_type(**notes)}


@dataclass(frozen=True)
class EvaluateConfig:
    """Play a trained agent greedily and print its returns per task."""

    episodes: int = 20
    """Episodes per task."""

    task: str = "all"
    """One task's name, or `all` that the model was trained on."""

    variant: Variant = "aware"
    """Which of the method's two runs."""

    seed: int = 0
    """Which run: the seed it was trained with."""

    results_dir: Path = Path("results/runs")
    """Where runs are kept."""

    render: bool = False
    """Show the episodes in a window."""

    video_dir: Path | None = None
    """Write one mp4 per task into this folder, with task, step and return so far on every frame."""

    grid: bool = False
    """Write `grid.mp4` there, too: all tasks side by side, episode by episode."""

    video_episodes: int = 3
    """How many of the episodes go into each video."""

    picture: Path | None = None
    """Write a PNG that shows each task's first successful episode, the craft at several moments of its descent."""

    def __post_init__(self) -> None:
        for name in ("episodes", "video_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.render and (self.video_dir is not None or self.picture is not None):
            raise ValueError("render can't be combined with video_dir or picture: choose one")
        if self.grid and self.video_dir is None:
            raise ValueError("grid needs video_dir: the folder for its film")

    def run_method(self, method: str) -> str:
        """The method's name in the results."""
        return method

    @property
    def train_flags(self) -> str:
        """What `train` has to be given to make this run."""
        return f"--variant {self.variant} --seed {self.seed}"


def run_name(method: str, variant: str) -> str:
    """`<method>` for the aware variant, `<method>_blind` for the blind one."""
    return method if variant == "aware" else f"{method}_{variant}"


def run_dir(results_dir: Path, method: str, variant: str, seed: int) -> Path:
    """`<results_dir>/<method>[_blind]/seed_<seed>`."""
    return results_dir / run_name(method, variant) / f"seed_{seed}"
