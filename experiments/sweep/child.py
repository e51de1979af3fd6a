"""`python -m experiments.sweep.child PARENT MODULE [FLAG ...]`: a program that ends when its parent does.

Ray may lose the process that watches over a run, or a whole node at once. The run must end then. Otherwise it would
keep the lock of its folder, and a core, and the next attempt could not begin.
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
"""The seconds that the program has to write its checkpoint."""


def end_with(parent: int) -> None:
    """Wait until the process `parent` has ended, then stop this process. This function never returns."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)


def main(words: Sequence[str]) -> None:
    """Run the module as the main program of this process.

    Raises:
        SystemExit: with status 2, if the first word is not the process that started this one.
    """
    if len(words) < 2 or words[0] != str(os.getppid()):
        use = "python -m experiments.sweep --help says how to train many runs"
        print(f"experiments.sweep.child: a sweep starts this program for each of its runs; {use}", file=sys.stderr)
        raise SystemExit(2)
    parent, module, *flags = words
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
