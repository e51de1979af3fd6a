"""The command lines of supervised training and comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.program.run_folder import Existing
from experiments.supervised.settings import Source
from experiments.training.config import Device


@dataclass(frozen=True)
class RunConfig:
    """What both programs have. A flag that stands for a key of the file wins over it."""

    config: Path | None = None
    """YAML file with the sections logging, model, training and data, as `experiments/supervised/config.yaml` has them;
    what it leaves out is at its default."""

    data: Source | None = None
    """`synthetic`, or `digits`: scikit-learn's handwritten digits, of which the tasks are the digit, its parity and
    whether it is 5 or more. (data.source)"""

    epochs: int | None = None
    """Passes over the training data. (training.epochs)"""

    batch_size: int | None = None
    """Samples in an update. (training.batch_size)"""

    learning_rate: float | None = None
    """Step size of Adam. (training.learning_rate)"""

    num_train: int | None = None
    """Training samples. (data.num_train)"""

    num_val: int | None = None
    """Validation samples. (data.num_val)"""

    device: Device = "cpu"
    """Where the model is trained. At these sizes a CPU core is faster than a GPU."""

    quick: bool = False
    """A trial run: at most 3 epochs, 200 samples of either kind, and 3 seeds."""

    existing: Existing = "continue"
    """What to do with results that are there already. `continue` and `restart` refuse finished results, and begin an
    unfinished run anew, as there are no checkpoints. `replace` replaces them, finished or not."""

    quiet: bool = False
    """No progress and no table."""

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The flags that were given, as settings by section and key."""
        training = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate")}
        data = {"source": self.data, "num_train": self.num_train, "num_val": self.num_val}
        return _given({"training": _given(training), "data": _given(data)})


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train one shared encoder with a head per task, its task gradients combined by a balancer."""

    balancer: str | None = None
    """equal, gradnorm, pcgrad, rgb, aim, gradnorm_pcgrad, random or torchjd:<aggregator>. (training.balancer)"""

    seed: int | None = None
    """Seed of everything random. Default: RANDOM_SEED of the environment, else of `.env` in the current folder, else
    data.random_seed."""

    results_dir: Path = Path("results/runs/supervised")
    """The run goes to `<results-dir>/<data>_<balancer>/seed_<k>/`."""

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The flags that were given, as settings by section and key."""
        values = super().values
        for section, key, value in (("training", "balancer", self.balancer), ("data", "random_seed", self.seed)):
            if value is not None:
                values.setdefault(section, {})[key] = value
        return values


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """Train with several balancers over the same seeds, and say what the seeds can tell about their differences."""

    balancers: tuple[str, ...] = ("equal", "gradnorm", "pcgrad", "rgb", "aim")
    """What to compare: with equal, or with the first if that is not among them."""

    seeds: tuple[str, ...] = ("0-9",)
    """Seeds and ranges of seeds, such as `0-9` or `3 5 8-10`. A seed's data, first weights and order of samples are the
    same for every balancer. RANDOM_SEED and data.random_seed play no part."""

    output_dir: Path | None = None
    """Where table.md, comparison.json and comparison.png go. Default: `results/analysis/supervised_<data>`."""


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is None or empty."""
    return {name: value for name, value in values.items() if value is not None and value != {}}
