"""A bar that shows the progress of long work in the terminal."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(quiet: bool) -> Progress:
    """A live bar that shows what is done, what is left to do, and the time left; nothing if `quiet`."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=quiet)
