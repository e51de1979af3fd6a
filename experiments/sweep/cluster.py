"""Ray: either an instance on this machine for as long as the sweep lasts, or a cluster that exists already."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.program.flags import UsageError
from experiments.program.stopping import StoppedError
from experiments.sweep import worker
from mtrl.files import one_line

OBJECT_STORE_BYTES = 100_000_000  # only short messages go through it
CONNECT_SECONDS = 10.0
CHECK_SECONDS = 60.0


def import_ray() -> ModuleType:
    """Import Ray, which is optional.

    Raises:
        UsageError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray sends no statistics
    try:
        import ray  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise UsageError("a sweep needs Ray, which is not installed: pip install 'mtrl-balance[sweep]'") from None
    module: ModuleType = ray
    return module


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def cluster(address: str | None) -> Iterator[int]:
    """Connect to Ray, and give the number of its cores.

    Within the block, what is written to `sys.stdout` is lost: when Ray loses a node, it prints pages from the logs of
    that node there, and no setting prevents it. Messages to the user go to a file object made before the block.

    Args:
        address: `HOST:PORT` or `auto`; None starts an instance of Ray that ends with the block.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at that address.
        StoppedError: Ray did not start on this machine.
    """
    ray = import_ray()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # With the address "local", Ray ignores a variable RAY_ADDRESS and does not connect to another cluster.
        own = {"num_cpus": cores(), "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address="local", include_dashboard=False, **own, **quiet)
        except Exception as error:  # Ray raises errors of many kinds, some of them with pages of its logs
            problem = one_line(f"{type(error).__name__}: {error}", longest=200)
            raise StoppedError(f"Ray did not start on this machine ({problem})") from error
    else:
        try:
            if address != "auto":  # Ray itself would try for minutes before it gave up
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError, ValueError) as error:  # a ValueError: the name is no name of a host
            raise UsageError(f"there is no Ray cluster at {address!r}: {error}") from None
        try:
            ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            hint = "if its nodes have RAY_AUTH_MODE=token, set it here, too"
            raise UsageError(
                f"the Ray cluster at {address!r} can't be joined: {str(error).strip('. ')}; {hint}"
            ) from None
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()


def check_nodes(results_dir: Path) -> None:
    """Check that every node can import this project and sees `results_dir`, which exists.

    Raises:
        UsageError: a node cannot.
    """
    ray = import_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an optional extra

    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    sees = ray.remote(num_cpus=0, max_retries=0)(worker.sees)
    with tempfile.NamedTemporaryFile(prefix=".sweep.", dir=results_dir) as marker:
        there = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes}
        answers = [sees.options(scheduling_strategy=there[node]).remote(Path(marker.name)) for node in nodes]
        for host, answer in zip(nodes.values(), answers, strict=True):
            try:
                seen = ray.get(answer, timeout=CHECK_SECONDS)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                raise UsageError(f"node {host!r} can't run this project: {reason[0]}") from None
            if not seen:
                raise UsageError(
                    f"node {host!r} does not see '{results_dir}'; --results-dir must be on a file system of all nodes"
                )
