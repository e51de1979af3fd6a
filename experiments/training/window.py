"""The live window of `evaluate --render`, which Gymnasium opens and draws into."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.program.flags import UsageError

# The variables of the environment that name a display, and SDL's drivers for such displays.
DISPLAYS = {"DISPLAY": "x11", "WAYLAND_DISPLAY": "wayland"}

INSTEAD = "without a display, --video-dir films the episodes"


def check_display() -> None:
    """Find out whether a window can be opened.

    Raises:
        UsageError: a window cannot be opened.
    """
    import pygame  # noqa: PLC0415 - slow to load, and needed only for a window

    if sys.platform == "linux" and "SDL_VIDEODRIVER" not in os.environ:
        drivers = [driver for name, driver in DISPLAYS.items() if os.environ.get(name)]
        if not drivers:
            raise UsageError(f"cannot open a window: neither {' nor '.join(DISPLAYS)} is set; {INSTEAD}")
        # Without this variable, SDL would draw into an invisible window when these drivers fail.
        os.environ["SDL_VIDEODRIVER"] = ",".join(drivers)
    try:
        pygame.display.init()
    except pygame.error as error:
        named = ", ".join(f"{name}={os.environ[name]}" for name in DISPLAYS if name in os.environ)
        raise UsageError(f"cannot open a window ({error}; {named}); {INSTEAD}") from error
    finally:
        pygame.display.quit()


@contextmanager
def drawing() -> Iterator[None]:
    """Say in one line that the display was lost, as when its server ends, within the block.

    Raises:
        UsageError: the display was lost.
    """
    import pygame  # noqa: PLC0415 - as above

    try:
        yield
    except pygame.error as error:
        raise UsageError(f"lost the window ({error}); {INSTEAD}") from error


def caption(text: str) -> None:
    """Set the title of the window.

    Raises:
        KeyboardInterrupt: the user has closed the window, which means the same as Ctrl-C.
    """
    import pygame  # noqa: PLC0415 - as above

    pygame.display.set_caption(text)
    if pygame.event.peek(pygame.QUIT):
        raise KeyboardInterrupt
