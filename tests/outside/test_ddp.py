"""`DistributedDataParallel` on two processes: the same as one process with the joined batch.

DDP averages what its own hooks see in a plain backward pass. Task gradients must be averaged before they are balanced,
so the balancer does it; DDP's averaging of what is the same everywhere changes nothing.
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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.outside.reference import NAMES, Heads, backward_by_hand, batch, eager, shared_of_heads

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

WORLD, STEPS = 2, 2
DDP_NAMES = [name for name in NAMES if not name.startswith("torchjd")]  # whose import takes seconds
MODES = ("default", "low memory")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket views": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
}


def inputs(step: int, rank: int | None) -> Tensor:
    """The whole batch, or a process's half of it."""
    whole = batch(step, 8)
    return whole if rank is None else whole.chunk(WORLD)[rank]


def train(rank: int, name: str, mode: str, option: str) -> list[Tensor]:
    """The gradients of all steps."""
    model = Heads()
    wrapped = DistributedDataParallel(model, **OPTIONS[option])
    balancer = eager(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = list(wrapped(inputs(step, rank)))
        balancer.backward(losses, model.encoder.parameters(), low_memory=mode != "default")
        found += [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return found


def by_hand(name: str) -> list[Tensor]:
    """The same on one process."""
    model, balancer = Heads(), eager(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = list(model(inputs(step, None)))
        backward_by_hand(balancer, losses, shared_of_heads(model), model.heads.parameters())
        found += [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return found


def plain_after_balanced(rank: int) -> list[Tensor]:
    """A plain pass of DDP after a balanced one: its own averaging still works."""
    model = Heads()
    wrapped = DistributedDataParallel(model)
    eager("pcgrad").backward(list(wrapped(inputs(0, rank))), model.encoder.parameters())
    model.zero_grad()
    torch.stack(wrapped(inputs(1, rank))).sum().backward()
    return [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]


def without_parameters(rank: int) -> str:
    """What is said where the shared parameters are not given."""
    model = Heads()
    try:
        eager("rgb").backward(list(DistributedDataParallel(model)(inputs(0, rank))))
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def accumulated(rank: int) -> list[Tensor]:
    """Two micro-batches, the first under `no_sync`."""
    model, balancer = Heads(), eager("equal")
    wrapped = DistributedDataParallel(model)
    with wrapped.no_sync():
        balancer.backward(list(wrapped(inputs(0, rank))), model.encoder.parameters())
    balancer.backward(list(wrapped(inputs(1, rank))), model.encoder.parameters())
    return [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]


def work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD, timeout=timeout)
    try:
        found: dict[str, Any] = {}
        for name in DDP_NAMES:
            for mode in MODES:
                found[f"{name} {mode} plain"] = train(rank, name, mode, "plain")
        for option in OPTIONS:
            for mode in MODES:
                found[f"rgb {mode} {option}"] = train(rank, "rgb", mode, option)
        found |= {
            "plain after": plain_after_balanced(rank),
            "without parameters": without_parameters(rank),
            "accumulated": accumulated(rank),
        }
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for actual, right in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DDP_NAMES)
def test_two_processes_do_what_one_does(name: str, mode: str, of_ranks: list[dict[str, Any]]) -> None:
    for of_rank in of_ranks:
        assert_close(of_rank[f"{name} {mode} plain"], by_hand(name))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_ddp_change_nothing(option: str, mode: str, of_ranks: list[dict[str, Any]]) -> None:
    for of_rank in of_ranks:
        assert_close(of_rank[f"rgb {mode} {option}"], by_hand("rgb"))


def test_a_plain_pass_after_a_balanced_one_is_still_averaged(of_ranks: list[dict[str, Any]]) -> None:
    model: nn.Module = Heads()
    torch.stack(model(inputs(1, None))).sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for of_rank in of_ranks:
        assert_close(of_rank["plain after"], expected)


def test_micro_batches_under_no_sync_add_up(of_ranks: list[dict[str, Any]]) -> None:
    model = Heads()
    for step in range(2):
        torch.stack(model(inputs(step, None))).sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    for of_rank in of_ranks:
        assert_close(of_rank["accumulated"], expected)


def test_the_shared_parameters_must_be_given(of_ranks: list[dict[str, Any]]) -> None:
    for of_rank in of_ranks:
        assert "parameters" in of_rank["without parameters"]
        assert len(of_rank["without parameters"].splitlines()) == 1
