"""The command lines of supervised training and of the comparison of balancers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.program.balancer_options import options_from_words
from experiments.program.run_folder import Existing
from experiments.supervised.settings import Source
from experiments.training.config import Device


@dataclass(frozen=True)
class RunConfig:
    """The flags of both programs. Where a flag and a key of the file set the same thing, the flag wins."""

    config: Path | None = None
    """YAML file with the sections logging, model, training and data, as in `experiments/supervised/config.yaml`. Keys
    that the file leaves out keep their defaults."""

    data: Source | None = None
    """`synthetic`; `digits`, scikit-learn's handwritten digits with three tasks, namely the digit, its parity, and
    whether it is at least 5; or `multi_mnist`, two digits of MNIST in one picture, with three tasks, namely the left
    digit, the right one, and their sum as a regression; or `file`, which `--data-file` names. (data.source)"""

    data_file: Path | None = None
    """Your own samples: a file that `numpy.savez(FILE, features=..., task_a=..., task_b=...)` has written. Features are
    (samples, inputs), and there is an array (samples,) for each task. Whole numbers, counted from 0, are classes, and
    other numbers are targets of a regression. The seed divides samples into training and validation. (data.file)"""

    epochs: int | None = None
    """Passes over the training data. (training.epochs)"""

    batch_size: int | None = None
    """Samples per update. (training.batch_size)"""

    learning_rate: float | None = None
    """Step size of Adam. (training.learning_rate)"""

    num_train: int | None = None
    """Number of training samples. (data.num_train)"""

    num_val: int | None = None
    """Number of validation samples. (data.num_val)"""

    device: Device = "cpu"
    """Device that trains the model. At these sizes a CPU core is faster than a GPU."""

    quick: bool = False
    """A trial run with at most 3 epochs, 200 training samples, 200 validation samples, and 3 seeds."""

    existing: Existing = "continue"
    """What to do with results that are there already. `continue` and `restart` refuse finished results. An unfinished
    comparison goes on with `continue` from the last training that is done, and begins anew with `restart`; an
    unfinished `train` has no checkpoints and begins anew with both. `replace` replaces results, finished or not."""

    quiet: bool = False
    """Show no progress bar and no table, only one line at the end that says where the results are."""

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The flags that were given, as settings by section and key."""
        training = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate")}
        own = {"source": "file", "file": str(self.data_file)} if self.data_file else {"source": self.data}
        data = {**own, "num_train": self.num_train, "num_val": self.num_val}
        return _given({"training": _given(training), "data": _given(data)})


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train one shared encoder with a head per task. A balancer combines the gradients of the tasks."""

    balancer: str | None = None
    """equal, static, normalised, gradnorm, pcgrad, rgb, aim, gradnorm_pcgrad, memory, random or
    torchjd:<aggregator>. (training.balancer)"""

    balancer_options: tuple[str, ...] = ()
    """Arguments of the balancer as name=value, for example `alpha=0.5` for gradnorm. (training.balancer_options)"""

    seed: int | None = None
    """Seed of everything random. Default: the variable RANDOM_SEED of the environment; if it is not set, RANDOM_SEED in
    the file `.env` of the current folder; otherwise data.random_seed."""

    results_dir: Path = Path("results/runs/supervised")
    """The run's folder is `<results-dir>/<data>_<balancer>/seed_<k>/`."""

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The flags that were given, as settings by section and key."""
        options = options_from_words(self.balancer_options)
        own: dict[str, dict[str, Any]] = {
            "training": {"balancer": self.balancer, "balancer_options": options},
            "data": {"random_seed": self.seed},
        }
        values = super().values
        return _given({section: {**values.get(section, {}), **_given(own[section])} for section in own})


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """Train with several balancers over the same seeds, and test which differences between them are significant."""

    balancers: tuple[str, ...] = ("equal", "gradnorm", "pcgrad", "rgb", "aim")
    """Balancers to compare, each as `label=balancer,option=value,...`, of which all but the balancer can be left out:
    `gated=aim,gate=true` is AIM with a gate, which tables and figures call `gated`. The baseline is `equal`, or the
    first of them if `equal` is not among them."""

    seeds: tuple[str, ...] = ("0-9",)
    """Seeds and ranges of seeds, such as `0-9` or `3 5 8-10`. For one seed, every balancer gets the same data, the same
    first weights and the same order of samples. RANDOM_SEED and data.random_seed are not used."""

    output_dir: Path | None = None
    """Folder for table.md, comparison.json and the figures. Default: `results/analysis/supervised_<data>`, where <data>
    is the name of your own file without its ending."""


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != {}}
