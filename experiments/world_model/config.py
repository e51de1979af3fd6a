"""Settings of the world model; every field is a flag of `python -m experiments.world_model.train`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from experiments.program.run_folder import Existing
from mtrl.limits import check_number

# The largest values in a run with --quick.
QUICK = {
    **{"steps": 20, "sequences": 3, "length": 5, "unroll": 2, "frames": 360},
    **{"context": 3, "horizon": 3, "eval_interval": 10, "eval_windows": 6},
}


@dataclass(frozen=True)
class WorldModelConfig:
    """Train a video world model of the landers on four objectives, their gradients combined by a balancer.

    The first run records the video: episodes of the tasks, flown by Gymnasium's pilot with a share of random actions,
    with a frame of 40 x 60 pixels every few steps. The model then learns to rebuild frames and to predict them from its
    own predictions (ELBO), to rebuild them from one discrete token per patch and to predict the next tokens
    (Perceiver), to predict where its slots will look (Predictive), and to deceive a discriminator (Adversarial). The
    run writes config.json, metrics.jsonl, model.zip, pictures (PNG), films (mp4), and at the end evaluation.json.
    """

    balancer: str = "rgb"
    """equal, static, normalised, gradnorm, pcgrad, rgb, aim (without a guidance set), gradnorm_pcgrad, memory,
    random or torchjd:<aggregator>."""

    balancer_options: tuple[str, ...] = ()
    """Arguments of the balancer as name=value, for example `alpha=0.5` for gradnorm."""

    seed: int = 0
    """Seed of the model's first weights, of the order of the video's sequences, and of all noise in training."""

    steps: int = 1400
    """Number of updates. The default takes up to 20 minutes of one core."""

    sequences: int = 6
    """Sequences per update."""

    length: int = 8
    """Frames per sequence, at least 2."""

    learning_rate: float = 2e-3
    """Step size of Adam at the beginning. It falls along half a cosine to a twentieth. The tokenizer's step size is
    three times as large, the discriminator's half as large."""

    observation_std: float = 0.1
    """Standard deviation of the ELBO's noise on a pixel (from 0 to 1). With more noise, latents say less."""

    beta: float = 1.0
    """Weight of the ELBO's KL divergences after annealing."""

    annealing: float = 0.25
    """Share of the updates during which beta rises from 0 to its full value."""

    hidden_share: float = 0.5
    """Share of frames that are rebuilt from the prior's mean latent, so that the prior learns to predict."""

    unroll: int = 5
    """Frames at the end of each sequence that the model also predicts from its own frames in training: all but the
    first at most; 0 for none."""

    unroll_ramp: float = 0.5
    """Share of the updates during which their number rises from 1 to `unroll`."""

    lambda_unroll: float = 0.25
    """Weight of the error of these frames. That of reconstructions has the weight 1."""

    lambda_gan: float = 0.1
    """Weight of the adversarial loss."""

    warm_up: float = 0.1
    """Share of the updates in which the discriminator only learns. After it, the adversarial loss takes part in the
    balance as long as the discriminator is clearly better than chance."""

    tasks: tuple[str, ...] = ("Standard", "Windy", "Heavy")
    """Tasks that are recorded."""

    frames: int = 9000
    """Frames of the video, over all tasks. A fifth of the episodes is held out for evaluation."""

    frame_skip: int = 5
    """Environment steps from one frame to the next, all with the same action."""

    recording_seed: int = 0
    """Seed of the recorded episodes. Runs with the same settings of the video share one recording."""

    context: int = 4
    """Frames that a roll-out is given. The evaluation judges predictions of the frames after these."""

    horizon: int = 16
    """Frames that a roll-out predicts."""

    eval_windows: int = 90
    """Largest number of held-out sequences in the evaluation."""

    eval_interval: int = 200
    """Updates between the evaluations during training."""

    log_interval: int = 10
    """Updates between lines in metrics.jsonl."""

    results_dir: Path = Path("results/runs/world_model")
    """The run's folder is `<results-dir>/<balancer>/seed_<k>/`. Recordings are in `<results-dir>/recordings/`."""

    existing: Existing = "continue"
    """What to do with the run in that place. `continue`: go on with an unfinished run, which then ends as if it had
    never been interrupted; settings must be the same. `restart`: throw an unfinished run away. Both refuse a finished
    run. `replace`: throw the run away, finished or not."""

    checkpoint_interval: float = 60.0
    """Seconds between checkpoints; 0 writes none."""

    quick: bool = False
    """A trial run of less than a minute, with at most 20 updates on 360 frames."""

    quiet: bool = False
    """Show no progress bar and no table, only one line at the end that says where the results are."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least, most in (
            ("seed", 0, 2**63 - 1),
            ("steps", 1, 10_000_000),
            ("sequences", 1, 1_024),
            ("length", 2, 64),
            ("unroll", 0, 63),
            ("frames", 100, 1_000_000),
            ("frame_skip", 1, 50),
            ("recording_seed", 0, 2**63 - 1),
            ("context", 1, 32),
            ("horizon", 1, 32),
            ("eval_windows", 1, 100_000),
            ("eval_interval", 1, 10_000_000),
            ("log_interval", 1, 10_000_000),
        ):
            check_number(name, getattr(self, name), least=least, most=most, whole=True)
        for name in ("learning_rate", "observation_std"):
            check_number(name, getattr(self, name), above=0)
        for name in ("beta", "lambda_unroll", "lambda_gan", "checkpoint_interval"):
            check_number(name, getattr(self, name), least=0)
        for name in ("annealing", "hidden_share", "unroll_ramp", "warm_up"):
            check_number(name, getattr(self, name), least=0, most=1)

    @property
    def run_name(self) -> str:
        """The balancer's name as a folder's name."""
        return run_name(self.balancer)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.results_dir / self.run_name / f"seed_{self.seed}"

    @property
    def window(self) -> int:
        """Number of frames in a held-out sequence."""
        return self.context + self.horizon

    @property
    def settings(self) -> dict[str, Any]:
        """Every field, in a form that JSON can hold.

        `balancer_options` is left out where it is empty, so that runs from before that flag can be continued.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.balancer_options:
            del values["balancer_options"]
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    def shortened(self) -> Self:
        """The configuration with the sizes that `--quick` allows, or the same one without `--quick`."""
        if not self.quick:
            return self
        return replace(self, **{name: min(most, getattr(self, name)) for name, most in QUICK.items()})


@dataclass(frozen=True)
class FreshVideoConfig:
    """Evaluate the world model of a finished run on a fresh video: rebuilt and predicted frames, tokens, roll-outs.

    The first evaluation records the video. Errors are mean squared errors of pixels from 0 to 1. The command prints
    them, and writes fresh_video.json and fresh_roll_outs.png into the folder of the run.
    """

    balancer: str = "rgb"
    """The balancer of the run."""

    seed: int = 0
    """The seed of the run."""

    frames: int = 6000
    """Frames of the video, over all tasks."""

    recording_seed: int = 101
    """Seed of the recorded episodes. With the seed and the frames of the training video, the episodes are those that
    were held out from training."""

    context: int = 4
    """Frames that a roll-out is given."""

    horizon: int = 16
    """Frames that a roll-out predicts."""

    windows: int = 200
    """Largest number of sequences."""

    results_dir: Path = Path("results/runs/world_model")
    """The run's folder is `<results-dir>/<balancer>/seed_<k>/`. Recordings are in `<results-dir>/recordings/`."""

    quiet: bool = False
    """Show no progress bar and no tables, only one line at the end that says where the results are."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least, most in (
            ("seed", 0, 2**63 - 1),
            ("frames", 100, 1_000_000),
            ("recording_seed", 0, 2**63 - 1),
            ("context", 1, 32),
            ("horizon", 1, 32),
            ("windows", 1, 100_000),
        ):
            check_number(name, getattr(self, name), least=least, most=most, whole=True)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.results_dir / run_name(self.balancer) / f"seed_{self.seed}"

    @property
    def window(self) -> int:
        """Number of frames in a sequence."""
        return self.context + self.horizon


def run_name(balancer: str) -> str:
    """The name of a balancer as a folder's name."""
    return balancer.replace(":", "_").lower()


@dataclass(frozen=True)
class LandingConfig:
    """Let a landing policy fly inside the roll-outs of a finished world model, and compare with its flights outside.

    The policy is a trained agent that comes with the project. The command prints how the craft's path and the return
    inside correlate with those outside, and writes landing.json and landing.png into the folder of the run.
    """

    balancer: str = "rgb"
    """The balancer of the world model's run."""

    seed: int = 0
    """The seed of the world model's run, of the flights and of the readout."""

    policy: str = "gradnorm"
    """The agent, by the name of its file in results/models/."""

    flights: int = 8
    """Flights per task that are compared."""

    context: int = 4
    """Frames of the game that a roll-out is given."""

    horizon: int = 16
    """Frames that the policy flies inside the model."""

    results_dir: Path = Path("results/runs/world_model")
    """The run's folder is `<results-dir>/<balancer>/seed_<k>/`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least, most in (
            ("seed", 0, 2**63 - 2),
            ("flights", 1, 1000),
            ("context", 2, 32),
            ("horizon", 1, 32),
        ):
            check_number(name, getattr(self, name), least=least, most=most, whole=True)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.results_dir / run_name(self.balancer) / f"seed_{self.seed}"
