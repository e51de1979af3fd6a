"""The window of `evaluate --render`, which shows the same frames as a film."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.program.flags import UsageError
from experiments.training.filming import Frame

# The variables of the environment that name a display, and SDL's drivers for such displays.
DISPLAYS = {"DISPLAY": "x11", "WAYLAND_DISPLAY": "wayland"}

TITLE = "mtrl"
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
def window() -> Iterator[Callable[[Frame, int], None]]:
    """Give a function that shows a frame (H, W, 3) in a window, and waits until the frame has had its time.

    The window opens with the first frame. The function's second argument is the number of frames per second. It raises
    KeyboardInterrupt if the user has closed the window, which means the same as Ctrl-C.

    Raises:
        UsageError: a window cannot be opened, or the display was lost, as when its server ends.
    """
    import pygame  # noqa: PLC0415 - as above

    check_display()
    clock = pygame.time.Clock()

    def show(frame: Frame, fps: int) -> None:
        size = (frame.shape[1], frame.shape[0])
        pygame.display.init()  # an environment that was closed may have ended it
        screen = pygame.display.get_surface()
        if screen is None or screen.get_size() != size:
            screen = pygame.display.set_mode(size)
            pygame.display.set_caption(TITLE)
        pygame.surfarray.blit_array(screen, frame.swapaxes(0, 1))
        pygame.display.flip()
        if pygame.event.get(pygame.QUIT):
            raise KeyboardInterrupt
        clock.tick(fps)

    try:
        yield show
    except pygame.error as error:
        raise UsageError(f"lost the window ({error}); {INSTEAD}") from error
    finally:
        pygame.display.quit()
