"""The flags that several demonstrations have."""

from __future__ import annotations

from dataclasses import dataclass

from mtrl.limits import check_number


@dataclass(frozen=True)
class SeedConfig:
    """A demonstration with a seed."""

    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1")


@dataclass(frozen=True)
class VideoConfig(SeedConfig):
    """A demonstration on a small video of moving squares."""

    sequences: int = 4
    """Sequences of the video, from 1 to 64."""

    frames: int = 8
    """Frames in each sequence, from 2 to 64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sequences", self.sequences, least=1, most=64, whole=True)
        check_number("frames", self.frames, least=2, most=64, whole=True)
