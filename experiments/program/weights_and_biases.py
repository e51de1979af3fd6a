"""Talking to Weights & Biases (W&B): whether it can be used, a session, and a run in it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.program.flags import UsageError

if TYPE_CHECKING:
    from wandb import Run

WandbMode = Literal["disabled", "offline", "online"]
JobType = Literal["train", "evaluate", "analyze"]

WANDB_FOLDER = "wandb"  # W&B chooses this name


def check_wandb_project(name: str) -> None:
    """Raise `ValueError` if Weights & Biases would not take this name of a project."""
    if not 1 <= len(name) <= 128 or not name.isprintable() or any(letter in name for letter in "/\\#?%:"):
        raise ValueError(f"wandb_project is {name!r}; it must have 1 to 128 characters, none of / \\ # ? % :")


def check_wandb(mode: WandbMode) -> None:
    """Find out before anything is made whether W&B can be used. Where it is disabled, it is not even imported.

    Raises:
        UsageError: the package is missing, or `online` was asked for without a login that the server accepts.
    """
    if mode == "disabled":
        return
    try:
        import wandb  # noqa: PLC0415 - optional, and only when used
    except ImportError:
        raise UsageError(f"--wandb {mode} needs the package wandb: pip install 'mtrl-balance[wandb]'") from None
    if mode == "offline" or wandb.run is not None:  # a run that is in progress has logged in
        return
    later = "or give --wandb offline and upload later with `wandb sync`"
    try:
        with wandb_session(mode):
            # Without a key, no process is started and nothing is written.
            logged_in = wandb.login(prompt=False, verify=False) and wandb.login(prompt=False, verify=True)
    except Exception as error:  # such as a wrong key, no network, or a bad environment variable
        problem = str(error).rstrip(".")
        raise UsageError(f"cannot log in to W&B: {problem}; see `wandb login`, {later}") from error
    if not logged_in:
        raise UsageError(f"not logged in to W&B: run `wandb login` or set WANDB_API_KEY, {later}")


@contextmanager
def wandb_session(mode: WandbMode, folder: Path | None = None) -> Iterator[Any]:
    """Give the package `wandb`, set up to print nothing. Its process ends with the block, unless it ran before.

    Args:
        mode: "offline" or "online"; the environment variable WANDB_MODE does not matter.
        folder: where offline files go.
    """
    variables = {"WANDB_MODE": mode, "WANDB_SILENT": "true"}
    if mode == "offline":
        # Nothing may leave this machine, so W&B does not report its own errors either.
        variables["WANDB_ERROR_REPORTING"] = "false"
        # Seconds until lines are in W&B's file. With W&B's default of 15, a killed run would lose most of its lines.
        # The setting is not public; a release that has dropped it ignores the variable.
        variables["WANDB__TRANSACTION_LOG_FLUSH_INTERVAL"] = "1"
        if folder is not None:  # files of artifacts would otherwise go to the user's home
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
    """Set environment variables inside the block, and restore them after it."""
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
    """Begin a run in W&B. Its metrics have `env_step` as their axis.

    Args:
        wandb: the package, from `wandb_session`.
        folder: W&B's own folder `wandb/` goes here.
        project: in W&B.
        entity: user or team; None stands for that of the login.
        group: runs of one method and variant.
        job_type: what the run does.
        name: the name that W&B shows; several runs may have the same one.
        config: settings.
        tags: words by which the run can be found.
        notes: a remark.
    """
    # Every setting is given, so that variables such as WANDB_RUN_ID or WANDB_DIR have no effect.
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
