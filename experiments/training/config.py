"""Settings of runs: every field is a flag of `python -m experiments.<method>.train` or `... .evaluate`.

The settings of the agents follow in `experiments.training.algorithms`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import tyro

from experiments.program.run_folder import MODEL_FILE, Existing
from experiments.program.weights_and_biases import WandbMode, check_wandb_project
from experiments.training.search import SHARED, Space
from mtrl.limits import Limits, check_fields, check_number
from mtrl.rl.settings import RESUMABLE

# A file for each run, which `experiments.archive --models-dir` writes; those of this checkout, wherever one works.
PRETRAINED_DIR = Path(__file__).parents[2] / "results" / "models"

Algorithm = Literal["dqn", "sac"]
Variant = Literal["aware", "blind"]
Preset = Literal["default", "notes", "notes-literal"]
Device = Literal["cpu", "cuda", "auto"]
Count = Annotated[int, Limits(least=1)]
Whole = Annotated[int, Limits(least=0)]
Seconds = Annotated[float, Limits(least=0)]


@dataclass(frozen=True)
class RunSettings:
    """What every training run shares beside its agent: the tasks, the budget, and where results go."""

    preset: Preset = field(default="default", metadata=RESUMABLE)
    """Where defaults come from: `default`, or `notes` for the numbers of the notes that this project grew from
    (500 episodes per task, epsilon times 0.995 per episode, target copy every 10 episodes), or `notes-literal` for
    their experiment as they describe it: the same numbers, gusts that never stop (WindyUngated), no double Q-learning,
    and GradNorm by their pseudocode, without warm-up and floors."""

    algorithm: Algorithm = "dqn"
    """`dqn`: deep Q-learning, for tasks with a few actions; `sac`: soft actor-critic, for tasks whose actions are
    numbers within bounds. Each has flags of its own: see `--algorithm sac --help`."""

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
    shorter observations, and actions that a task lacks are neither taken nor valued. Actions in a Box then have as many
    numbers as the longest and go from -1 to 1, which are each task's own bounds."""

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


class MethodSettings:
    """What makes a method: its name, its balancer, and what may be tried of its settings.

    A method is a dataclass that inherits from this class and has the fields of its own. Together with
    `experiments.training.algorithms.DQNTrainConfig` or `SACTrainConfig` it becomes the settings of a run.
    """

    method: ClassVar[str]
    balancer: ClassVar[str] = "equal"
    own_search_space: ClassVar[Mapping[str, Space]] = {}
    """What `experiments.tune` searches besides what it searches for every method."""

    # Fields of `RunSettings`, which methods may read.
    seed: Whole
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the settings of the method, before those of the run are checked."""

    @property
    def method_name(self) -> str:
        """The method's name, which results are filed under. A method with several kinds of its own adds which it is."""
        return self.method

    @property
    def balancer_name(self) -> str:
        """The name of the balancer for `mtrl.make_balancer`."""
        return self.balancer

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of the balancer. A method whose balancer has settings overrides this."""
        return {}

    @property
    def for_negative_losses(self) -> str | None:
        """The flag with which the balancer takes losses that may be negative; None if it takes them as it is."""
        return None

    @property
    def search_space(self) -> Mapping[str, Space]:
        """What `experiments.tune` searches, by the names of the settings."""
        return {**SHARED, **self.own_search_space}

    @property
    def free_settings(self) -> tuple[str, ...]:
        """The names of the settings that may differ when an interrupted run is continued."""
        return tuple(field.name for field in fields(cast(Any, self)) if field.metadata.get("resumable"))


@dataclass(frozen=True)
class TrainConfig(RunSettings, MethodSettings):
    """A run of a method, whatever the agent."""

    agent: ClassVar[str]
    """The class of the agent in `agents`."""

    def __post_init__(self) -> None:
        check_label(self.label)
        check_wandb_project(self.wandb_project)
        counts = self.envs_per_task if isinstance(self.envs_per_task, tuple) else (self.envs_per_task,)
        for count in counts:
            check_number("envs_per_task", count, least=1, most=1_000, whole=True)

    @property
    def run_method(self) -> str:
        """The method's name in the results, with the algorithm if it is not DQN."""
        return of_algorithm(self.method_name, self.algorithm)

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
        raise NotImplementedError

    @property
    def record(self) -> dict[str, Any]:
        """The value of every field, as it stands in config.json under `settings`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


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

    algorithm: Algorithm = "dqn"
    """The algorithm of the run."""

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
    """Show the episodes in a window, with the same words on every frame as in a film."""

    video_dir: Path | None = None
    """Write one mp4 per task into this folder, with task, step, return so far and how it ended beneath every frame.
    Characters of a task's name that do not suit a file's become `_`."""

    grid: bool = False
    """Also write `grid.mp4` to --video-dir: all tasks side by side, episode by episode."""

    video_episodes: Count = 3
    """Number of episodes in each video."""

    picture: Path | None = None
    """Picture the first successful episode of each task: as a PNG with what moves at several moments, or, if the file
    ends in .gif or .webp, as a moving picture of all tasks side by side."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_label(self.label)
        if self.render and (self.video_dir is not None or self.picture is not None):
            raise ValueError("render can't be combined with video_dir or picture: choose one")
        if self.grid and self.video_dir is None:
            raise ValueError("grid needs video_dir: the folder for its film")

    def method_name(self, method: str) -> str:
        """The method's name, which results are filed under."""
        return method

    def run_name(self, method: str) -> str:
        """`<method>[-<label>][_blind]`."""
        return run_name(of_algorithm(self.method_name(method), self.algorithm), self.variant, self.label)

    def model(self, method: str) -> Path:
        """The file of the agent."""
        name = self.run_name(method)
        if self.pretrained:
            return PRETRAINED_DIR / f"{name}.safetensors"
        return run_dir(self.results_dir, name, self.seed) / MODEL_FILE

    @property
    def train_flags(self) -> str:
        """The flags with which `train` makes this run."""
        algorithm = "" if self.algorithm == "dqn" else f"--algorithm {self.algorithm} "
        return f"{algorithm}{self.tasks_flag}--variant {self.variant} {self.seed_flags}"

    @property
    def tasks_flag(self) -> str:
        """The flag that names the tasks, if they were named here."""
        return f"--tasks {' '.join(map(shlex.quote, self.tasks))} " if self.tasks else ""

    @property
    def seed_flags(self) -> str:
        """The flags that choose one of the runs of a method and variant."""
        return f"--label {self.label} --seed {self.seed}" if self.label else f"--seed {self.seed}"


@dataclass(frozen=True)
class DQNEvaluateConfig(EvaluateConfig):
    """Play a trained agent greedily and print its returns per task."""

    algorithm: Annotated[Algorithm, tyro.conf.Fixed, tyro.conf.Suppress] = "dqn"  # the method has no other


def check_label(label: str) -> None:
    """Check that a label can be a part of the name of a run.

    Raises:
        ValueError: it cannot.
    """
    if label and not re.fullmatch(r"[A-Za-z0-9_.]{0,39}[A-Za-z0-9_]", label):
        raise ValueError(f"label is {label!r}; it must have 1 to 40 letters, digits, '_' or '.', and no '.' at its end")
    if label.endswith("_blind"):
        raise ValueError(f"label is {label!r}; '_blind' at its end would name the variant")


def of_algorithm(method: str, algorithm: Algorithm) -> str:
    """The name under which the results of a method with this algorithm are filed: `rgb`, `rgb_sac`, `shared_sac`."""
    return method if algorithm == "dqn" else f"{method.removesuffix('_dqn')}_{algorithm}"


def run_name(method: str, variant: str, label: str = "") -> str:
    """`<method>[-<label>]` for the aware variant, and the same with `_blind` at its end for the blind one."""
    name = f"{method}-{label}" if label else method
    return name if variant == "aware" else f"{name}_{variant}"


def run_dir(results_dir: Path, name: str, seed: int) -> Path:
    """`<results_dir>/<name>/seed_<seed>`."""
    return results_dir / name / f"seed_{seed}"
