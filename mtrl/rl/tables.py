"""The tables of Stable-Baselines3's logger, which raise an error if they cut two names to the same text."""

from stable_baselines3.common.logger import HumanOutputFormat, Logger


def widen_tables(logger: Logger) -> None:
    """Make the tables as wide as the longest name that has been recorded, which may hold the name of a task."""
    longest = max(map(len, logger.name_to_value), default=0) + 8
    for output in logger.output_formats:
        if isinstance(output, HumanOutputFormat):
            output.max_length = max(output.max_length, longest)
