"""Settings of a training run; every field is a flag of `python -m experiments.<method>.train`.

The settings of the agent are those of `mtrl.rl.settings`, and are inherited from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import pi
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from experiments.program.run_folder import MODEL_FILE, Existing
from experiments.program.weights_and_biases import WandbMode, check_wandb_project
from experiments.training.search import SHARED, Space
from mtrl.limits import Limits, check_fields, check_number
from mtrl.rl.settings import MEMORY_ANGLE, RESUMABLE, DQNSettings

PRETRAINED_DIR = Path("results/models")  # a file for each run, which `experiments.archive --models-dir` writes

Variant = Literal["aware", "blind"]
Preset = Literal["default", "notes", "notes-literal"]
Device = Literal["cpu", "cuda", "auto"]
Config = TypeVar("Config", bound="TrainConfig")
Count = Annotated[int, Limits(least=1)]
Whole = Annotated[int, Limits(least=0)]
Seconds = Annotated[float, Limits(least=0)]

# The numbers of the notes that this project grew from, in the terms of this project: 500 episodes per task on one
# environment each, epsilon and target network by the episode, one update per step. The 1,500,000 steps are no limit,
# because 500 episodes of each task end before.
NOTES_PRESET: dict[str, Any] = {
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
    "memory_angle": 0.0,
}
LITERAL_PRESET: dict[str, Any] = {
    "preset": "notes-literal",
    "tasks": ("Standard", "WindyUngated", "Heavy"),
    "double_q": False,
}


@dataclass(frozen=True)
class RunSettings:
    """What every training run shares beside its agent: the tasks, the budget, and where results go."""

    preset: Preset = field(default="default", metadata=RESUMABLE)
    """Where defaults come from: `default`, or `notes` for the numbers of the notes that this project grew from
    (500 episodes per task, epsilon times 0.995 per episode, target copy every 10 episodes), or `notes-literal` for
    their experiment as they describe it: the same numbers, gusts that never stop (WindyUngated), no double Q-learning,
    and GradNorm by their pseudocode, without warm-up and floors."""

    settings: Path | None = field(default=None, metadata=RESUMABLE)
    """A JSON file of settings by name, such as {"learning_rate": 0.001}, as `experiments.tune` writes it. Flags that
    are given beside it take precedence."""

    variant: Variant = "aware"
    """`aware`: observations end with a one-hot of the task; `blind`: they are as the environment gives them."""

    seed: Whole = 0
    """Seed of everything random."""

    label: str = ""
    """A word that is added to the method's name in the results, to compare runs of one method with different settings:
    `--label slow` makes `rgb-slow` of `rgb`. At most 40 letters, digits, `_` and `.`."""

    tasks: tuple[str, ...] = ("Standard", "Windy", "Heavy")
    """The tasks, in the order of the one-hot: names of landers (`Windy`), ids of Gymnasium (`CartPole-v1`), and
    addresses of your own (`my_tasks:MOON` is MOON in my_tasks.py in the current folder: a task, a list of tasks, or a
    function that makes an environment)."""

    pad: bool = False
    """Whether tasks may differ in the length of their observations and in their number of actions. Zeros then follow
    shorter observations, and actions that a task lacks are neither taken nor valued."""

    total_steps: Count = 600_000
    """Environment steps over all tasks."""

    episodes_per_task: Count | None = None
    """Stop when every task has finished this many episodes, even if steps are left."""

    envs_per_task: Annotated[int | tuple[int, ...], tyro.conf.arg(metavar="INT")] = 4
    """Copies of each task that are stepped side by side, at most 1,000: one number, or one for each task."""

    results_dir: Path = field(default=Path("results/runs"), metadata=RESUMABLE)
    """The folder in which the run goes to `<method>[-<label>][_blind]/seed_<k>/`."""

    existing: Existing = field(default="continue", metadata=RESUMABLE)
    """What to do with the run in its folder. `continue` goes on with an unfinished run, which then ends as if it had
    never been interrupted, bit for bit; its settings must be the same. `restart` throws an unfinished run away. Both
    refuse a finished run. `replace` throws the run away, whether it is finished or not."""

    checkpoint_interval: Seconds = field(default=60.0, metadata=RESUMABLE)
    """Seconds between checkpoints, from which an interrupted run continues. If writing one takes so long that it would
    cost over 3 % of the time, the interval is longer. 0 writes no checkpoints."""

    step_timeout: Seconds = field(default=60.0, metadata=RESUMABLE)
    """Seconds after which a run ends because an environment does not answer; 0 waits for ever."""

    quiet: bool = field(default=False, metadata=RESUMABLE)
    """Show no live display and no table, only one line at the end that says where the results are."""

    tensorboard: bool = field(default=True, metadata=RESUMABLE)
    """Write TensorBoard event files to `tensorboard/` in the run's folder."""

    wandb: WandbMode = field(default="disabled", metadata=RESUMABLE)
    """Show the run in Weights & Biases (extra `wandb`): `offline` below the run's folder, to be uploaded later with
    `wandb sync`, or `online`, which needs `wandb login` first."""

    wandb_project: str = field(default="mtrl", metadata=RESUMABLE)
    """Project in Weights & Biases."""

    wandb_entity: str | None = field(default=None, metadata=RESUMABLE)
    """User or team in Weights & Biases. Default: the one that is logged in."""

    log_interval: Count = 10
    """Finished episodes between lines in metrics.jsonl."""

    eval_interval: Whole = 20_000
    """Environment steps between greedy evaluations for the learning curves; 0 makes none."""

    eval_episodes: Count = 5
    """Episodes per task in each evaluation for the learning curves."""

    final_episodes: Count = 20
    """Episodes per task in the final evaluation, which goes to evaluation.json."""

    device: Device = "cpu"
    """Where the network is trained. At these sizes a CPU core is faster than a GPU."""


@dataclass(frozen=True)
class TrainConfig(DQNSettings, RunSettings):
    """What every method shares: the tasks, the budget and the agent."""

    method: ClassVar[str]
    balancer: ClassVar[str] = "equal"
    agent: ClassVar[str] = "MultiTaskDQN"
    agent_settings: ClassVar[type[DQNSettings]] = DQNSettings
    own_search_space: ClassVar[Mapping[str, Space]] = {}
    """What `experiments.tune` searches besides what it searches for every method."""

    learning_rate: Annotated[float, Limits(above=0)] = 5e-4
    """Step size of Adam."""

    # The -1 of `DQNSettings` would count the steps of a rollout, of which a continued run makes only the missing ones.
    gradient_steps: Annotated[int, Limits(least=0, most=10_000)] = 2
    """Updates per training phase, at most 10,000."""

    memory_angle: Annotated[float, Limits(least=0, most=pi / 2)] = MEMORY_ANGLE
    """Angle in radians by which every update turns towards what past updates had in common, whatever the balancer; 0
    turns none. The methods rgb and memory have a memory of their own. See `mtrl.DirectionMemory`."""

    embedding_dim: int = 8
    """Size of the learned task embedding (aware only)."""

    hidden_dims: tuple[int, ...] = (256, 128)
    """Widths of the hidden layers."""

    layer_norm: bool = True
    """Normalise each hidden layer before its ReLU, without learned parameters."""

    heads: Literal["shared", "per_task"] = "shared"
    """The last layer: one that all tasks share, or one of each task's own, which is not balanced (aware only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label(self.label)
        check_wandb_project(self.wandb_project)
        counts = self.envs_per_task if isinstance(self.envs_per_task, tuple) else (self.envs_per_task,)
        for count in counts:
            check_number("envs_per_task", count, least=1, most=1_000, whole=True)

    @property
    def search_space(self) -> Mapping[str, Space]:
        """What `experiments.tune` searches, by the names of the settings."""
        return {**SHARED, **self.own_search_space}

    @property
    def run_method(self) -> str:
        """The method's name in the results. A method with several variants of its own adds which one ran."""
        return self.method

    @property
    def run_name(self) -> str:
        """`<method>[-<label>][_blind]`."""
        return run_name(self.run_method, self.variant, self.label)

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return run_dir(self.results_dir, self.run_name, self.seed)

    @property
    def agent_kwargs(self) -> dict[str, Any]:
        """Arguments of the agent."""
        settings = {field.name: getattr(self, field.name) for field in fields(self.agent_settings)}
        return settings | {
            "balancer": self.balancer_name,
            "balancer_kwargs": self.balancer_kwargs,
            "policy_kwargs": self.policy_kwargs,
            "seed": self.seed,
            "device": self.device,
        }

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of the network."""
        return {
            "embedding_dim": self.embedding_dim,
            "net_arch": list(self.hidden_dims),
            "layer_norm": self.layer_norm,
        } | {"heads": self.heads}

    @property
    def balancer_name(self) -> str:
        """The name of the balancer for `mtrl.make_balancer`."""
        return self.balancer

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of the balancer. A method whose balancer has settings overrides this."""
        return {}

    @property
    def record(self) -> dict[str, Any]:
        """The value of every field, as it stands in config.json under `settings`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @property
    def free_settings(self) -> tuple[str, ...]:
        """The names of the settings that may differ when an interrupted run is continued."""
        return tuple(field.name for field in fields(self) if field.metadata.get("resumable"))


def presets(
    config_type: type[Config], without: Sequence[str] = (), literal: Mapping[str, Any] | None = None
) -> dict[str, Config]:
    """The presets of a method by name: the defaults of its fields, the notes' numbers, and the notes' experiment.

    Args:
        config_type: the settings of the method.
        without: names of the notes' numbers that do not apply to the method.
        literal: what the notes' experiment sets of the method's own settings. Default: nothing.
    """
    notes = {name: value for name, value in NOTES_PRESET.items() if name not in without}
    as_described = {**notes, **LITERAL_PRESET, **(literal or {})}
    return {"default": config_type(), "notes": config_type(**notes), "notes-literal": config_type(**as_described)}


@dataclass(frozen=True)
class EvaluateConfig:
    """Play a trained agent greedily and print its returns per task."""

    episodes: Count = 20
    """Episodes per task."""

    task: str = "all"
    """The name of a task, or `all` for all tasks that the model was trained on, or those after --tasks."""

    tasks: tuple[str, ...] = ()
    """The tasks to play, as `train --tasks` takes them. Default: all that the model was trained on. A task of your own
    (`my_tasks:MOON`) has to be given here: no address is taken from a file."""

    variant: Variant = "aware"
    """The variant of the run."""

    seed: int = 0
    """The seed that the run was trained with."""

    label: str = ""
    """The label of the run, if it has one."""

    results_dir: Path = Path("results/runs")
    """The folder that holds the runs."""

    pretrained: bool = False
    """Play the agent that comes with the project, in `results/models/`, in place of one of your runs."""

    render: bool = False
    """Show the episodes in a window."""

    video_dir: Path | None = None
    """Write one mp4 per task into this folder, with task, step and return so far on every frame. Characters of a task's
    name that do not suit a file's become `_`."""

    grid: bool = False
    """Also write `grid.mp4` to --video-dir: all tasks side by side, episode by episode."""

    video_episodes: Count = 3
    """Number of episodes in each video."""

    picture: Path | None = None
    """Write a PNG that shows the first successful episode of each task, with what moves at several moments."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_label(self.label)
        if self.render and (self.video_dir is not None or self.picture is not None):
            raise ValueError("render can't be combined with video_dir or picture: choose one")
        if self.grid and self.video_dir is None:
            raise ValueError("grid needs video_dir: the folder for its film")

    def run_method(self, method: str) -> str:
        """The method's name in the results."""
        return method

    def run_name(self, method: str) -> str:
        """`<method>[-<label>][_blind]`."""
        return run_name(self.run_method(method), self.variant, self.label)

    def model(self, method: str) -> Path:
        """The file of the agent."""
        name = self.run_name(method)
        if self.pretrained:
            return PRETRAINED_DIR / f"{name}.safetensors"
        return run_dir(self.results_dir, name, self.seed) / MODEL_FILE

    @property
    def train_flags(self) -> str:
        """The flags with which `train` makes this run."""
        return f"--variant {self.variant} {self.seed_flags}"

    @property
    def seed_flags(self) -> str:
        """The flags that choose one of the runs of a method and variant."""
        return f"--label {self.label} --seed {self.seed}" if self.label else f"--seed {self.seed}"


def check_label(label: str) -> None:
    """Check that a label can be a part of the name of a run.

    Raises:
        ValueError: it cannot.
    """
    if label and not re.fullmatch(r"[A-Za-z0-9_.]{0,39}[A-Za-z0-9_]", label):
        raise ValueError(f"label is {label!r}; it must have 1 to 40 letters, digits, '_' or '.', and no '.' at its end")
    if label.endswith("_blind"):
        raise ValueError(f"label is {label!r}; '_blind' at its end would name the variant")


def run_name(method: str, variant: str, label: str = "") -> str:
    """`<method>[-<label>]` for the aware variant, and the same with `_blind` at its end for the blind one."""
    name = f"{method}-{label}" if label else method
    return name if variant == "aware" else f"{name}_{variant}"


def run_dir(results_dir: Path, name: str, seed: int) -> Path:
    """`<results_dir>/<name>/seed_<seed>`."""
    return results_dir / name / f"seed_{seed}"
