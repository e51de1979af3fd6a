"""The view of a training run in Weights & Biases (W&B)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from stable_baselines3.common.logger import filter_excluded_keys

from experiments.program.run_files import EVALUATION_FILE
from experiments.program.run_folder import MODEL_FILE
from experiments.program.weights_and_biases import start_run, wandb_session
from experiments.training.config import TrainConfig
from experiments.training.tracking.view import EPISODE_COLUMNS, Episodes, View

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
        if result["success_rate"] is not None:
            summary[f"final/{task}/success_rate"] = result["success_rate"]
    summary["final/mean_return"] = evaluation["mean"]
    summary["final/worst_task"] = evaluation["worst_task"]["name"]
    summary["final/worst_task_return"] = evaluation["worst_task"]["mean"]
    return summary
