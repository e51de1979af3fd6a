"""The live window of `evaluate --render`, which Gymnasium opens and draws."""

from __future__ import annotations

import os
import sys

from experiments.program.flags import UsageError

DISPLAYS = {"DISPLAY": "x11", "WAYLAND_DISPLAY": "wayland"}  # what names a display, and SDL's driver for it


def check_display() -> None:
    """Find out whether a window can be opened.

    Raises:
        UsageError: it can't.
    """
    import pygame  # noqa: PLC0415 - slow to load, and only needed for a window

    instead = "without a display, --video-dir films the episodes"
    if sys.platform == "linux" and "SDL_VIDEODRIVER" not in os.environ:
        drivers = [driver for name, driver in DISPLAYS.items() if os.environ.get(name)]
        if not drivers:
            raise UsageError(f"cannot open a window: neither {' nor '.join(DISPLAYS)} is set; {instead}")
        # Left to itself, SDL would draw where nobody sees it when these fail.
        os.environ["SDL_VIDEODRIVER"] = ",".join(drivers)
    try:
        pygame.display.init()
    except pygame.error as error:
        named = ", ".join(f"{name}={os.environ[name]}" for name in DISPLAYS if name in os.environ)
        raise UsageError(f"cannot open a window ({error}; {named}); {instead}") from error
    finally:
        pygame.display.quit()


def caption(text: str) -> None:
    """Title the window.

    Raises:
        KeyboardInterrupt: the user has closed it, which means the same as Ctrl-C.
    """
    import pygame  # noqa: PLC0415 - as above

    pygame.display.set_caption(text)
    if pygame.event.peek(pygame.QUIT):
        raise KeyboardInterrupt
