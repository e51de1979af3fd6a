"""`python -m benchmarks.logging_cost`: the cost of a training run's records, in per cent of its time.

There are four runs of AIM, the method with the most records. Its settings are the defaults, except that updates begin
with the first step:

* "nothing": no records;
* "JSONL": metrics.jsonl, which every run writes;
* "+ TensorBoard": metrics.jsonl and TensorBoard, which are the default outputs;
* "+ W&B": both of them and W&B with `--wandb offline`. This run is left out if W&B is not installed.

Each run has two figures. "measured inside" is the share of the time in `dump_logs`, which makes and writes a line of
records; other work on the machine hardly changes it. "against nothing" compares whole runs, which take turns
in rounds of equally many steps, and is a median over rounds. It includes the work of other threads and processes, and
is as noisy as the machine. Episodes at the beginning of training are short, so that lines come about twice as often
here as in a whole run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.logger import KVWriter, Logger

from agents import MultiTaskDQN
from benchmarks.common import TurnsConfig, median_ratio, write_json
from benchmarks.training_case import Case, take_turns
from envs import make_task_vec_env
from experiments.aim.config import AIMConfig
from experiments.program.command import run
from experiments.program.run_files import METRICS_FILE
from experiments.program.weights_and_biases import WandbMode
from experiments.training.checkpoints import MetricsFile
from experiments.training.runner import describe
from experiments.training.tracking import Views
from mtrl.limits import check_number

NOTHING, JSONL = "nothing", "JSONL"
TENSORBOARD, WANDB = "+ TensorBoard", "+ W&B"
ALLOWED = 0.02
"""The largest share of the training time that the default outputs should take."""


@dataclass(frozen=True)
class BenchmarkConfig(TurnsConfig):
    """Measure the cost of metrics.jsonl, TensorBoard and W&B (offline), in per cent of the training time.

    The default outputs, metrics.jsonl and TensorBoard, should take less than 2 %.
    """

    seed: int = 0
    """Seed of environments and agents."""

    def __post_init__(self) -> None:
        check_number("seed", self.seed, least=0, whole=True)
        super().__post_init__()


class RecordedCase(Case):
    """A training run that writes to `outputs`, and measures the time that its lines of records take.

    Attributes:
        lines: the number of lines since the clocks started.
        recording: the seconds that they took.
    """

    def __init__(self, agent: MultiTaskDQN, outputs: list[KVWriter]) -> None:
        super().__init__(agent)
        agent.set_logger(Logger(None, outputs))
        self._dump, self._wanted = agent.dump_logs, bool(outputs)
        agent.dump_logs = self._timed_dump  # type: ignore[method-assign]

    def start_clocks(self) -> None:
        """Set all clocks to 0."""
        super().start_clocks()
        self.lines, self.recording = 0, 0.0

    @property
    def share(self) -> float:
        """The share of the time that the lines took."""
        return self.recording / self.seconds

    def _timed_dump(self) -> None:
        if not self._wanted:
            return
        start = time.perf_counter()
        self._dump()
        self.recording += time.perf_counter() - start
        self.lines += 1


def recorded_case(folder: Path, seed: int, outputs: str, opened: ExitStack) -> tuple[RecordedCase, float]:
    """A run with these outputs in `folder`, and the seconds that it took to open them. `opened` closes them."""
    mode: WandbMode = "offline" if outputs == WANDB else "disabled"
    # Without checkpoints, W&B gets every line at once, while the clock runs.
    config = AIMConfig(seed=seed, results_dir=folder, wandb=mode, learning_starts=0, checkpoint_interval=0)
    config.run_dir.mkdir(parents=True)
    env = make_task_vec_env(config.tasks, config.envs_per_task, seed, config.variant)
    agent = MultiTaskDQN("MlpPolicy", env, **config.agent_kwargs)
    start = time.perf_counter()
    writers: list[KVWriter] = []
    if outputs != NOTHING:
        metrics = MetricsFile(config.run_dir / METRICS_FILE)
        opened.callback(metrics.close)
        writers.append(metrics)
    if outputs in (TENSORBOARD, WANDB):
        views = opened.enter_context(Views())
        views.open(config, describe(config), None)
        writers.append(views)
    return RecordedCase(agent, writers), time.perf_counter() - start


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)  # two threads are slower at these sizes
    console = Console()
    names = [NOTHING, JSONL, TENSORBOARD, WANDB]
    if find_spec("wandb") is None:
        names.remove(WANDB)
    cases: dict[str, RecordedCase] = {}
    once: dict[str, float] = {}  # seconds
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = {name: stack.enter_context(ExitStack()) for name in names}
        for number, name in enumerate(names):
            cases[name], once[name] = recorded_case(Path(folder) / str(number), config.seed, name, opened[name])
        if WANDB not in names:  # printed here, because settings that cannot be used must cause one line only
            console.print("W&B is not installed (extra `wandb`), so its row is left out")
        figures = take_turns({**cases}, config.seconds, config.rounds)
        for name in names:
            start = time.perf_counter()
            opened[name].close()
            once[name] += time.perf_counter() - start
    rows = {
        name: {
            "lines": case.lines,
            "milliseconds_per_line": 1000 * case.recording / max(case.lines, 1),
            "share": case.share,
            "against_nothing": median_ratio(figures[name], figures[NOTHING]) - 1,
            "open_and_close_seconds": once[name],
        }
        for name, case in cases.items()
    }
    table = Table("outputs", "lines", "ms per line", "measured inside", "against nothing", "open and close")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['lines']:.0f}",
            f"{row['milliseconds_per_line']:.2f}",
            f"{row['share']:.2%}",
            f"{row['against_nothing']:+.1%}",
            f"{row['open_and_close_seconds']:.2f} s",
        )
    console.print(table)
    share = rows[TENSORBOARD]["share"]
    verdict = "under" if share < ALLOWED else "over"
    console.print(f"the default outputs take {share:.2%} of the training time, {verdict} the {ALLOWED:.0%} allowed")
    if config.json is not None:
        write_json(config.json, config, {"outputs": rows})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.logging_cost")


if __name__ == "__main__":
    sys.exit(main())
