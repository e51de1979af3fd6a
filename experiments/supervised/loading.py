"""The settings of a run, from its file, the environment and the flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.program.flags import UsageError
from experiments.supervised import own_data
from experiments.supervised.config import RunConfig
from experiments.supervised.settings import DEFAULTS, LARGEST_SEED, SettingError, Settings, Source
from experiments.supervised.yaml_file import read_yaml

SEED_VARIABLE = "RANDOM_SEED"
ENV_FILE = Path(".env")
# The largest values in a run with --quick.
QUICK_EPOCHS = 3
QUICK_SAMPLES = 200


def load_settings(config: RunConfig, source: Source, environment: Mapping[str, str] | None = None) -> Settings:
    """Collect the settings of a run. Later sources win: defaults, file, `.env`, environment, flags.

    Args:
        config: the flags.
        source: the source of the data, if neither a flag nor the file names one.
        environment: the environment variables. RANDOM_SEED is looked up there, and then in `.env`. Default: it is
            looked up in neither.

    Raises:
        UsageError: the file, the seed or a setting is wrong. If the setting is from the file, the message begins with
            the file and the line.
    """
    file = None if config.config is None else read_yaml(config.config, Settings)
    of_file = {} if file is None else file.values
    data = {**of_file.get("data", {}), **config.values.get("data", {})}
    source = data.get("source", source)
    known = own_data.settings_of(data["file"]) if source == "file" and data.get("file") else DEFAULTS[source]
    settings = known.updated(of_file)
    if environment is not None and (seed := environment_seed(environment)) is not None:
        settings = settings.updated({"data": {"random_seed": seed}})
    settings = settings.updated(config.values)
    if config.quick:
        sizes = {name: min(QUICK_SAMPLES, getattr(settings.data, name)) for name in ("num_train", "num_val")}
        settings = settings.updated(
            {"training": {"epochs": min(QUICK_EPOCHS, settings.training.epochs)}, "data": sizes}
        )
    try:
        settings.check()
        if settings.data.source == "file":
            own_data.check(settings)
    except SettingError as error:
        section, _, key = error.key.partition(".")
        if file is None or key in config.values.get(section, {}):
            raise UsageError(str(error)) from None
        raise file.error(error.key, error) from None
    return settings


def environment_seed(environment: Mapping[str, str]) -> int | None:
    """RANDOM_SEED of the environment or, if it is not set there, of the file `.env` in the current folder.

    Returns:
        The seed, or None if neither sets it.

    Raises:
        UsageError: the value is not a seed, or `.env` cannot be read.
    """
    for place in ("the environment", f"'{ENV_FILE}'"):
        values = environment if place == "the environment" else _env_file()
        text = (values.get(SEED_VARIABLE) or "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= LARGEST_SEED):
            limits = f"a whole number between 0 and {LARGEST_SEED}"
            raise UsageError(f"{SEED_VARIABLE} is {text[:40]!r} in {place}; it must be {limits}")
        return int(text)
    return None


def _env_file() -> Mapping[str, str | None]:
    if not ENV_FILE.is_file():
        return {}
    try:
        from dotenv import dotenv_values  # noqa: PLC0415 - python-dotenv is optional
    except ImportError:
        raise UsageError(f"reading '{ENV_FILE}' needs python-dotenv: pip install 'mtrl-balance[supervised]'") from None
    try:
        return dotenv_values(ENV_FILE, interpolate=False)
    except UnicodeDecodeError:
        raise UsageError(f"'{ENV_FILE}' is not UTF-8 text") from None
