"""The view of a training run in Weights & Biases (W&B), and everything else that uses W&B."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stable_baselines3.common.logger import filter_excluded_keys

from experiments.program.flags import UsageError
from experiments.program.run_folder import EVALUATION_FILE, MODEL_FILE
from experiments.training.config import TrainConfig, WandbMode
from experiments.training.tracking.view import EPISODE_COLUMNS, Episodes, View

if TYPE_CHECKING:
    from wandb import Run

JobType = Literal["train", "evaluate", "analyze"]

WANDB_FOLDER = "wandb"  # the name is W&B's
EVALUATION_KEYS = ("mean", "standard_deviation", "success_rate")


class WandbView(View):
    """Shows the run as one run of W&B, in the group of its method and variant.

    W&B cannot take lines back, and cannot continue an offline run. So a line is sent only when a checkpoint covers it,
    or at once if there are no checkpoints. A run that is continued becomes a new run in the same group, which has the
    lines from there on, so that no line is shown twice.

    Args:
        config: the settings of the run.
        description: the contents of config.json.
        continued_at: the environment step from which the run is continued. Default None: the run is new.
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
        """Accept one line of metrics."""
        self._lines.append(filter_excluded_keys(key_values, key_excluded, "wandb"))
        if not self._buffered:
            self.settle()

    def settle(self) -> None:
        """Send the lines that have come since the last time."""
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
            # With "immutable", W&B makes no copy of the file, which nobody changes any more.
            model.add_file(str(self._folder / name), policy="immutable", skip_cache=True)
        self._run.log(tables)
        self._run.log_artifact(model)
        self._run.summary.update(wandb_summary(evaluation))

    def end(self, finished: bool) -> None:
        """End the run in W&B. Lines that no checkpoint covers are not sent."""
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
        raise UsageError(f"--wandb {mode} needs the package wandb: pip install 'mtrl-balance[wandb]'") from None
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
