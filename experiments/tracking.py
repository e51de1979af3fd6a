"""Views of a training run: TensorBoard and Weights & Biases (W&B).

The run's own metrics.jsonl is the truth. A view shows the same lines under the same names, with `env_step` as its axis;
it changes nothing in the training, and where it fails the training goes on without it.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat, filter_excluded_keys

from experiments.cli import UsageError
from experiments.config import TrainConfig, WandbMode
from experiments.runs import EVALUATION_FILE, MODEL_FILE

if TYPE_CHECKING:
    from wandb import Run

JobType = Literal["train", "evaluate", "analyze"]

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER = "wandb"  # the name is W&B's

MATRICES = ("cosine", "tau")
"""Metrics of pairs of tasks that TensorBoard shows as heat maps; both lie in [-1, 1] or near it."""

LINES_PER_IMAGE = 10
EPISODE_COLUMNS = ("task", "episode", "env_step", "return", "length")
EVALUATION_KEYS = ("mean", "standard_deviation", "success_rate")


class View(KVWriter):
    """Shows a run's metrics somewhere else. A writer for the logger of Stable-Baselines3.

    Attributes:
        name: what a warning calls it.
    """

    name: str

    def settle(self) -> None:
        """All lines so far are part of the run for good: a checkpoint has them."""

    def finish(self, evaluation: Mapping[str, Any], episodes: Episodes) -> None:
        """The run is finished.

        Args:
            evaluation: the contents of evaluation.json.
            episodes: those of the training.
        """

    def end(self, finished: bool) -> None:
        """Let go of files and processes; nothing else is called any more."""


class Views(KVWriter):
    """All views of one run: opened where the run begins, closed where the `with` block ends, whatever ends that.

    The first failure of a view is one line of warning, and the view's end.
    """

    def __init__(self) -> None:
        self._views: list[View] = []
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._each(lambda view: view.end(self._finished))
        self._views.clear()

    def open(self, config: TrainConfig, description: Mapping[str, Any], continued_at: int | None) -> None:
        """Begin to show the run.

        Args:
            config: what is wanted.
            description: the contents of config.json.
            continued_at: environment steps from which the run is continued; None: it is new.
        """
        if config.tensorboard:
            self._add("TensorBoard", lambda: TensorBoardView(config.run_dir, config.tasks, continued_at))
        if config.wandb != "disabled":
            self._add("W&B", lambda: WandbView(config, description, continued_at))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Show one line of metrics."""
        self._each(lambda view: view.write(key_values, key_excluded, step))

    def settle(self) -> None:
        """All lines so far are part of the run for good: a checkpoint has them."""
        self._each(lambda view: view.settle())

    def finish(self, evaluation: Mapping[str, Any], episodes: Episodes) -> None:
        """The run is finished, and its model.zip and evaluation.json are written; arguments as of `View.finish`."""
        self._finished = True
        self._each(lambda view: view.finish(evaluation, episodes))

    def close(self) -> None:
        """Nothing: the logger ends with the training, views when the run has been evaluated."""

    def _add(self, name: str, make: Callable[[], View]) -> None:
        try:
            self._views.append(make())
        except Exception as error:
            _warn(name, error)

    def _each(self, act: Callable[[View], None]) -> None:
        for view in list(self._views):
            try:
                act(view)
            except Exception as error:
                self._views.remove(view)
                with suppress(Exception):
                    view.end(finished=False)
                _warn(view.name, error)


def _warn(name: str, error: Exception) -> None:
    problem = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"warning: {name} failed, the run goes on without it ({problem})", file=sys.stderr)


class Episodes(BaseCallback):
    """Notes every episode of the training. It has a state, so that a continued run has them all.

    Args:
        tasks: names, in the order of the columns of the environment.
        envs_per_task: columns of each.
    """

    def __init__(self, tasks: Sequence[str], envs_per_task: int) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._envs_per_task = envs_per_task
        self._rows: list[tuple[float, ...]] = []  # task, env_step, return, length

    @property
    def table(self) -> list[list[Any]]:
        """One row for each episode: task, number, environment steps at its end, return, length."""
        return [
            [self._tasks[int(task)], number, int(step), total, int(length)]
            for number, (task, step, total, length) in enumerate(self._rows, start=1)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The episodes so far, (N, 4)."""
        return {"rows": np.array(self._rows, float).reshape(-1, 4)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self._rows = [(task, step, total, length) for task, step, total, length in state["rows"].tolist()]

    def _on_step(self) -> bool:
        for column in np.flatnonzero(self.locals["dones"]):
            episode = self.locals["infos"][column]["episode"]
            row = (int(column) // self._envs_per_task, self.num_timesteps, float(episode["r"]), int(episode["l"]))
            self._rows.append(row)
        return True


# ---------------------------------------------------------------------------------------------------- TensorBoard


class TensorBoardView(TensorBoardOutputFormat, View):
    """Event files in `tensorboard/`: every metric as a scalar, and matrices over pairs of tasks as heat maps.

    Args:
        folder: the run's.
        tasks: names, in order.
        continued_at: environment steps from which the run is continued: later ones, which an interrupted process may
            have left, are taken back. Default None: a new run.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, tasks: Sequence[str], continued_at: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - only when used

        purge_from = None if continued_at is None else continued_at + 1
        self.writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=purge_from)
        self._is_closed = False
        self._tasks = tuple(tasks)
        self._lines = 0
        self._next_image = dict.fromkeys(MATRICES, 0)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one line of metrics."""
        for name in MATRICES:
            if self._lines >= self._next_image[name]:
                matrix = pair_matrix(key_values, name, self._tasks)
                if matrix is not None:
                    image = heat_map(matrix, self._tasks)
                    self.writer.add_image(f"balancer/{name}", image, step, dataformats="HWC")
                    self._next_image[name] = self._lines + LINES_PER_IMAGE
        self._lines += 1
        super().write(key_values, key_excluded, step)

    def end(self, finished: bool) -> None:
        """Close the file."""
        self.close()


def pair_matrix(line: Mapping[str, Any], name: str, tasks: Sequence[str]) -> NDArray[np.float64] | None:
    """The metric `balancer/<name>/<a>_<b>` of all pairs of tasks, (T, T).

    A pair of which only the other order is there has that value, as the metric is symmetric then; the diagonal is NaN.
    None if there is no value at all.
    """
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            if i != j:
                other = line.get(f"balancer/{name}/{b}_{a}", np.nan)
                matrix[i, j] = line.get(f"balancer/{name}/{a}_{b}", other)
    return None if np.isnan(matrix).all() else matrix


def heat_map(matrix: NDArray[np.float64], tasks: Sequence[str], cell: int = 56) -> NDArray[np.uint8]:
    """A picture of a matrix over pairs of tasks, (H, W, 3): blue at -1, white at 0, red at 1, grey where it is NaN.

    Drawn without Matplotlib, which takes a hundred times as long.

    Args:
        matrix: (T, T); row i, column j belongs to tasks i and j.
        tasks: names.
        cell: least width and height of a cell in pixels.
    """
    font = ImageFont.load_default(12)
    label = int(max(font.getlength(task) for task in tasks)) + 10  # pixels
    width, height, top = max(cell, label), cell, 22
    size = (label + width * len(tasks), top + height * len(tasks))
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for i, task in enumerate(tasks):
        draw.text((label - 5, top + height * (i + 0.5)), task, "black", font, anchor="rm")
        draw.text((label + width * (i + 0.5), top / 2), task, "black", font, anchor="mm")
        for j, value in enumerate(matrix[i].tolist()):
            left, upper = label + width * j, top + height * i
            draw.rectangle((left, upper, left + width - 2, upper + height - 2), _diverging(value))
            if not np.isnan(value):
                ink = "white" if abs(value) > 0.6 else "black"
                draw.text((left + width / 2, upper + height / 2), f"{value:+.2f}", ink, font, anchor="mm")
    return np.asarray(image)


def _diverging(value: float) -> tuple[int, int, int]:
    """From blue (-1) over white to red (1), which all kinds of colour vision tell apart."""
    if np.isnan(value):
        return (224, 224, 224)
    end = (178, 24, 43) if value > 0 else (33, 102, 172)
    share = min(abs(value), 1.0)
    red, green, blue = (round(255 + share * (colour - 255)) for colour in end)
    return red, green, blue


# ---------------------------------------------------------------------------------------------------- W&B


class WandbView(View):
    """The run as one run of W&B, in the group of its method and variant.

    W&B cannot take lines back, nor continue an offline run. So it gets lines when a checkpoint has them (at once where
    there are no checkpoints), and a run that is continued becomes a new run in the same group, with the lines from
    there on: none is shown twice.

    Args:
        config: of the run.
        description: the contents of config.json.
        continued_at: environment steps from which the run is continued. Default None: a new run.
    """

    name = "W&B"

    def __init__(self, config: TrainConfig, description: Mapping[str, Any], continued_at: int | None = None) -> None:
        self._name = f"{config.run_name}-seed_{config.seed}"
        details = {**description, "continued_at": continued_at}
        tags = [config.run_method, config.variant]
        notes = None
        if continued_at is not None:
            notes = f"Continues an earlier run of this name from env_step {continued_at}."
            tags.append("continued")
        self._folder = config.run_dir
        self._buffered = config.checkpoint_interval > 0
        self._lines: list[dict[str, Any]] = []
        with ExitStack() as stack:
            self._wandb = stack.enter_context(wandb_session(config.wandb, config.run_dir))
            self._run = start_run(
                self._wandb,
                config.run_dir,
                project=config.wandb_project,
                entity=config.wandb_entity,
                group=config.run_name,
                job_type="train",
                name=self._name,
                config={**details.pop("settings"), **details},
                tags=tags,
                notes=notes,
            )
            self._session = stack.pop_all()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Take one line of metrics."""
        self._lines.append(filter_excluded_keys(key_values, key_excluded, "wandb"))
        if not self._buffered:
            self.settle()

    def settle(self) -> None:
        """Send what has come since the last time."""
        for line in self._lines:
            self._run.log(line)
        self._lines.clear()

    def finish(self, evaluation: Mapping[str, Any], episodes: Episodes) -> None:
        """Send the last lines, the tables, the summary, and the model with its evaluation as an artifact."""
        self.settle()
        results = [[task, *(each[key] for key in EVALUATION_KEYS)] for task, each in evaluation["tasks"].items()]
        tables = {
            "episodes": self._wandb.Table(columns=list(EPISODE_COLUMNS), data=episodes.table),
            "evaluation": self._wandb.Table(columns=["task", *EVALUATION_KEYS], data=results),
        }
        model = self._wandb.Artifact(self._name, type="model", metadata=dict(evaluation))
        for name in (MODEL_FILE, EVALUATION_FILE):
            # "immutable": the run's own file is enough, as nobody writes to it any more.
            model.add_file(str(self._folder / name), policy="immutable", skip_cache=True)
        self._run.log(tables)
        self._run.log_artifact(model)
        self._run.summary.update(wandb_summary(evaluation))

    def end(self, finished: bool) -> None:
        """Leave the run; what no checkpoint has is not part of it."""
        with self._session:
            self._run.finish(exit_code=0 if finished else 1)


def wandb_summary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The final evaluation as W&B's summary of a run: `final/<task>/return`, `final/mean_return`, ...

    Args:
        evaluation: the contents of evaluation.json.
    """
    summary: dict[str, Any] = {}
    for task, result in evaluation["tasks"].items():
        summary[f"final/{task}/return"] = result["mean"]
        summary[f"final/{task}/success_rate"] = result["success_rate"]
    summary["final/mean_return"] = evaluation["mean"]
    summary["final/worst_task"] = evaluation["worst_task"]["name"]
    summary["final/worst_task_return"] = evaluation["worst_task"]["mean"]
    return summary


def check_wandb(mode: WandbMode) -> None:
    """Find out before anything is made whether W&B can be used; it is not even imported where it is disabled.

    Raises:
        UsageError: the package is missing, or `online` was asked for without a login that the server takes.
    """
    if mode == "disabled":
        return
    try:
        import wandb  # noqa: PLC0415 - optional, and only when used
    except ImportError:
        raise UsageError(f"--wandb {mode} needs the package wandb: pip install 'mtrl[wandb]'") from None
    if mode == "offline" or wandb.run is not None:  # where a run is, there is a login
        return
    later = "or give --wandb offline and upload later with `wandb sync`"
    try:
        with wandb_session(mode):
            # Without a key no process is started, and nothing written.
            logged_in = wandb.login(prompt=False, verify=False) and wandb.login(prompt=False, verify=True)
    except Exception as error:  # of many kinds: a wrong key, no network, a broken variable
        problem = str(error).rstrip(".")
        raise UsageError(f"cannot log in to W&B: {problem}; see `wandb login`, {later}") from error
    if not logged_in:
        raise UsageError(f"not logged in to W&B: run `wandb login` or set WANDB_API_KEY, {later}")


@contextmanager
def wandb_session(mode: WandbMode, folder: Path | None = None) -> Iterator[Any]:
    """The package `wandb`, set up to print nothing; its process ends with the block, if it did not run before.

    Args:
        mode: "offline" or "online", whatever WANDB_MODE says.
        folder: where offline files go.
    """
    variables = {"WANDB_MODE": mode, "WANDB_SILENT": "true"}
    if mode == "offline":
        # Nothing leaves this machine, W&B's reports of its own errors included.
        variables["WANDB_ERROR_REPORTING"] = "false"
        # Seconds until lines are in W&B's file: with its own 15 a killed run would lose most of them. The setting is
        # not public; as a variable, a release that has dropped it takes no notice.
        variables["WANDB__TRANSACTION_LOG_FLUSH_INTERVAL"] = "1"
        if folder is not None:  # for the files of artifacts, which otherwise go to the user's home
            variables["WANDB_DATA_DIR"] = str((folder / WANDB_FOLDER).absolute())
    with _variables(variables):
        import wandb  # noqa: PLC0415 - only when used

        running = "WANDB_SERVICE" in os.environ
        try:
            yield wandb
        finally:
            if not running:
                wandb.teardown()


@contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Inside, the environment has these variables."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def start_run(
    wandb: Any,
    folder: Path,
    *,
    project: str,
    entity: str | None,
    group: str,
    job_type: JobType,
    name: str,
    config: Mapping[str, Any],
    tags: Sequence[str] = (),
    notes: str | None = None,
) -> Run:
    """Begin a run in W&B whose metrics have `env_step` as their axis.

    Args:
        wandb: the package, in a session.
        folder: W&B's own folder `wandb/` goes here.
        project: in W&B.
        entity: user or team; None: that of the login.
        group: runs of one method and variant.
        job_type: what the run does.
        name: shown; several runs may have it.
        config: settings.
        tags: words to find it by.
        notes: a remark.
    """
    # Said in full, so that variables such as WANDB_RUN_ID or WANDB_DIR have no say.
    run: Run = wandb.init(
        dir=str(folder.absolute()),
        id=secrets.token_hex(4),
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        name=name,
        config=dict(config),
        tags=list(tags),
        notes=notes or "",
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", save_code=False),
    )
    run.define_metric("env_step")
    run.define_metric("*", step_metric="env_step")
    return run
