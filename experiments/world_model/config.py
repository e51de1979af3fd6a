"""Settings of the world model; every field is a flag of `python -m experiments.world_model.train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from experiments.program.run_folder import Existing

# What --quick leaves at most.
QUICK = {"steps": 20, "frames": 360, "sequences": 4, "eval_interval": 10, "eval_windows": 6, "context": 3, "horizon": 3}


@dataclass(frozen=True)
class WorldModelConfig:
    """Train a video world model of the landers on four objectives, their gradients combined by a balancer.

    The first run records the video: real episodes of the tasks, flown by Gymnasium's pilot with a share of chance, a
    frame of 40 x 60 pixels at every few steps. The model then learns to rebuild frames (ELBO), to tokenise them
    (Perceiver), to foresee where its slots look (Predictive) and to deceive a discriminator (Adversarial). The run's
    folder gets config.json, metrics.jsonl, model.zip, pictures (PNG), films (mp4), and, last, evaluation.json.
    """

    balancer: str = "rgb"
    """equal, gradnorm, pcgrad, rgb, aim (without a guidance set), gradnorm_pcgrad, random or torchjd:<aggregator>."""

    seed: int = 0
    """Seed of model, order of the video and balancer."""

    steps: int = 1200
    """Updates. The default takes some ten minutes on one core."""

    sequences: int = 8
    """In an update."""

    length: int = 8
    """Frames of a sequence, at least 2."""

    learning_rate: float = 2e-3
    """First step size of Adam, which falls along half a cosine to a twentieth; the tokenizer's is 1.5 times and the
    discriminator's a quarter of it."""

    observation_std: float = 0.1
    """Deviation of a pixel (from 0 to 1) that the ELBO takes for noise: larger ones make latents say less."""

    beta: float = 1.0
    """Weight of the ELBO's KLs once annealing is over."""

    annealing: float = 0.25
    """Share of the updates in which that weight rises from 0."""

    hidden_share: float = 0.5
    """Share of frames whose latent is the prior's, so that it learns to predict from reconstructions."""

    lambda_gan: float = 0.1
    """Weight of the adversarial loss."""

    tasks: tuple[str, ...] = ("Standard", "Windy", "Heavy")
    """What is recorded."""

    frames: int = 9000
    """Of the video, over all tasks; a fifth of the episodes is held out."""

    frame_skip: int = 5
    """Steps of the environment from frame to frame, all with the same action."""

    recording_seed: int = 0
    """Seed of the episodes. Runs with the same video share it."""

    context: int = 4
    """Frames that a roll-out is given; predictions are judged from here on, too."""

    horizon: int = 8
    """Frames that a roll-out goes on for."""

    eval_windows: int = 90
    """Held-out sequences that the evaluation takes, at most."""

    eval_interval: int = 100
    """Updates between evaluations for the curves."""

    log_interval: int = 10
    """Updates between lines in metrics.jsonl."""

    results_dir: Path = Path("results/runs/world_model")
    """The run goes to `<results-dir>/<balancer>/seed_<k>/`, recordings to `<results-dir>/recordings/`."""

    existing: Existing = "continue"
    """What to do with the run in that place. `continue`: go on with an unfinished run, which then ends as if it had
    never been interrupted; settings must be the same. `restart`: throw an unfinished run away. Both refuse a finished
    run. `replace`: throw the run away, finished or not."""

    checkpoint_interval: float = 60.0
    """Seconds between checkpoints; 0 for none."""

    quick: bool = False
    """A trial run of less than a minute: 20 updates on 360 frames, at most."""

    quiet: bool = False
    """No progress and no table."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("steps", 1, 10_000_000),
            ("sequences", 1, 1_024),
            ("length", 2, 64),
            ("frames", 100, 1_000_000),
            ("frame_skip", 1, 50),
            ("recording_seed", 0, 2**63 - 1),
            ("context", 1, 32),
            ("horizon", 1, 32),
            ("eval_windows", 1, 100_000),
            ("eval_interval", 1, 10_000_000),
            ("log_interval", 1, 10_000_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
        for name in ("learning_rate", "observation_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        for name in ("beta", "lambda_gan", "checkpoint_interval"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and finite")
        for name in ("annealing", "hidden_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")

    @property
    def run_name(self) -> str:
        """The balancer, as the name of a folder."""
        return self.balancer.replace(":", "_").lower()

    @property
    def run_dir(self) -> Path:
        """Where the run's files go."""
        return self.results_dir / self.run_name / f"seed_{self.seed}"

    @property
    def window(self) -> int:
        """Frames of a held-out sequence."""
        return self.context + self.horizon

    @property
    def settings(self) -> dict[str, Any]:
        """Every field, as JSON holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    def shortened(self) -> Self:
        """With `--quick`, what that leaves; otherwise itself."""
        if not self.quick:
            return self
        return replace(self, **{name: min(most, getattr(self, name)) for name, most in QUICK.items()})
