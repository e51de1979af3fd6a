"""FSDP2 (`fully_shard`) on two processes: right as on one process, or refused by name on both.

Its parameters are DTensors of which each process holds a part, and their gradients come from hooks that a pass by
`torch.autograd.grad` does not run.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.outside.reference import Heads, backward_by_hand, batch, eager, shared_of_heads

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.skipif(
    not dist.is_available() or not hasattr(fsdp, "fully_shard"), reason="this torch has no FSDP2"
)

WORLD = 2
FSDP_NAMES = ("equal", "gradnorm", "pcgrad", "rgb")
MODES = ("default", "low memory")


def whole(tensor: Any) -> Tensor:
    """A DTensor put together from all processes."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def plain(rank: int) -> list[Tensor]:
    """PyTorch's own pass, which shows that FSDP2 works here."""
    model = sharded()
    torch.stack(model(batch(0, 8).chunk(WORLD)[rank])).sum().backward()
    return [whole(parameter.grad) for parameter in model.parameters()]


def sharded() -> Any:
    """The model, each process with its part."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - not in every build
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    model: Any = Heads()
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def balanced(rank: int, name: str, mode: str) -> Any:
    """The gradients after a balanced pass, or what was said."""
    model = sharded()
    try:
        losses = list(model(batch(0, 8).chunk(WORLD)[rank]))
        eager(name).backward(losses, model.encoder.parameters(), low_memory=mode != "default")
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return str(error)
    return [None if parameter.grad is None else whole(parameter.grad) for parameter in model.parameters()]


def work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD, timeout=timeout)
    try:
        found: dict[str, Any] = {"plain": plain(rank)}
        for name in FSDP_NAMES:
            for mode in MODES:
                found[f"{name} {mode}"] = balanced(rank, name, mode)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fsdp")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def test_pytorchs_own_pass_works_here(of_ranks: list[dict[str, Any]]) -> None:
    model = Heads()
    torch.stack(model(batch(0, 8))).sum().backward()
    for of_rank in of_ranks:
        for actual, parameter in zip(of_rank["plain"], model.parameters(), strict=True):
            torch.testing.assert_close(actual, parameter.grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FSDP_NAMES)
def test_sharded_parameters_are_balanced_or_refused(name: str, mode: str, of_ranks: list[dict[str, Any]]) -> None:
    found = [of_rank[f"{name} {mode}"] for of_rank in of_ranks]
    if isinstance(found[0], str):
        assert found[0] == found[1]
        assert "DTensor" in found[0] or "FSDP" in found[0]
        assert len(found[0].splitlines()) == 1
        return
    model = Heads()
    backward_by_hand(eager(name), list(model(batch(0, 8))), shared_of_heads(model), model.heads.parameters())
    for of_rank in found:
        for actual, parameter in zip(of_rank, model.parameters(), strict=True):
            assert actual is not None
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-6, atol=1e-8)
