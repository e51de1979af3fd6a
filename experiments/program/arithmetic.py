"""How this process computes: what decides the last bits of a result beside settings, seeds and versions.

Libraries choose other instructions on other kinds of processors, or when an environment variable tells them to, and
other instructions round otherwise. The number of threads decides in which order sums are taken.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

CHOICES = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")
"""Environment variables by which a user chooses the instructions of PyTorch, of MKL (two) and of OpenBLAS."""


def arithmetic() -> dict[str, str]:
    """How this process computes, by names that a reader understands."""
    import torch  # noqa: PLC0415 - slow to load, and `--help` needs none

    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        **{name: os.environ[name] for name in CHOICES if name in os.environ},
    }


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What differs between two results of `arithmetic`, each in words, such as `threads: 1, now 2`."""
    return [
        f"{name}: {before.get(name, 'not set')}, now {now.get(name, 'not set')}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def _processor() -> str:
    """The processor's name, as Linux tells it, or its kind."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
