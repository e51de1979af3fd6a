"""Progress of long work in the terminal."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(quiet: bool) -> Progress:
    """A live bar with the columns done, to do and time left; nothing if `quiet`."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, disable=quiet)
