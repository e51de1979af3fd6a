"""`python -m experiments.sweep.child PARENT MODULE [FLAG ...]`: a program that ends when its parent has.

Ray may lose the process that watches over a run, or all of a node at once. The run must not live on then: it would hold
its folder's lock, and its core, against the attempt that follows.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence

PATIENCE = 30.0
"""Seconds in which the program may write its checkpoint."""


def end_with(parent: int) -> None:
    """Return never: stop this process when `parent` has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)


def main(words: Sequence[str]) -> None:
    """Run the module in the place of this one."""
    parent, module, *flags = words
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
