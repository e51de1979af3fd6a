"""Two processes with half of the batch each do what one process does with all of it."""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mtrl.balancers import Balancer, make_balancer, names
from mtrl.gradients import AutogradEngine, ChainEngine, NonFiniteGradientError, Ranks, TaskMajorEngine
from mtrl.guidance import LookaheadGuidance

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

TASKS, ROWS, STEPS, WORLD = 3, 8, 4, 2
EAGER: dict[str, dict[str, Any]] = {"gradnorm": {"warmup_steps": 1, "lr": 0.1}, "aim": {"lr": 0.1}}
EAGER["gradnorm_pcgrad"] = EAGER["gradnorm"]
MODES = ("ordinary", "low-memory", "gathered", "task-major", "chain")
Answer = dict[str, Any]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(TASKS))
        self.double()

    def losses(self, x: Tensor) -> list[Tensor]:
        """Mean losses for `x` (T, B, 3)."""
        return self.losses_of(self.encoder(x.flatten(0, 1)))

    def losses_of(self, codes: Tensor) -> list[Tensor]:
        """Mean losses for what the encoder made of x, (T * B, 6)."""
        z = codes.view(TASKS, -1, 6)
        return [(head(part) - task).pow(2).mean() for task, (head, part) in enumerate(zip(self.heads, z, strict=True))]


def share(step: int, rank: int, world: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    whole = torch.randn(TASKS, ROWS, 3, generator=generator, dtype=torch.float64)
    return whole.chunk(world, 1)[rank]


def backward(mode: str, balancer: Balancer, model: Model, x: Tensor, engine: Any) -> Tensor:
    parameters = list(model.encoder.parameters())
    if mode == "ordinary":
        return balancer.backward(model.losses(x), parameters)
    if mode == "low-memory":
        return balancer.backward(model.losses(x), parameters, low_memory=True)
    if mode == "gathered":
        gathering = AutogradEngine(parameters)
        first, last = ([loss / 2 for loss in model.losses(part)] for part in x.chunk(2, 1))
        gathering.gather(first)
        return balancer.backward(last, engine=gathering)
    if mode == "chain":  # the encoder alone
        codes = engine.forward(x.flatten(0, 1)).clone().requires_grad_()
        losses = model.losses_of(codes)
        (slope,) = torch.autograd.grad(sum(losses), codes)  # type: ignore[arg-type]
        gradients = engine.backward(slope, torch.stack(losses).detach())
    else:
        with engine.record():
            losses = model.losses(x)
        gradients = engine.backward(losses)
    with torch.no_grad():
        answer = balancer(gradients)
        engine.layout.accumulate_grad(answer.update(gradients))
    coefficients: Tensor = answer.coefficients
    return coefficients


def train(name: str, mode: str, rank: int, world: int) -> Answer:
    """A few steps; what they lead to."""
    model = Model()
    balancer: Any = make_balancer(name, TASKS, **EAGER.get(name, {}))
    if name == "aim":
        held_out = share(100, rank, world)
        guide = LookaheadGuidance(lambda: sum(model.losses(held_out)), model.encoder.parameters())  # type: ignore[arg-type, return-value]
        balancer.set_guidance(guide, eta=0.1)
    kind: Any = {"task-major": TaskMajorEngine, "chain": ChainEngine}.get(mode)
    engine = None if kind is None else kind(model.encoder, TASKS)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    coefficients = []
    for step in range(STEPS):
        optimizer.zero_grad()
        coefficients.append(backward(mode, balancer, model, share(step, rank, world), engine))
        optimizer.step()
    state = [value for value in balancer.state_dict().values() if isinstance(value, Tensor)]
    return {"model": [p.detach() for p in model.parameters()], "coefficients": coefficients, "state": state}


def errors(rank: int) -> dict[str, str]:
    """What is refused, on every process alike."""
    found = {}

    def attempt(name: str, kind: type[Exception], losses: list[Any], parameters: Any, **kwargs: Any) -> None:
        model.zero_grad()
        try:
            make_balancer("equal", TASKS).backward(losses, parameters, **kwargs)
        except kind as error:
            assert all(parameter.grad is None for parameter in model.parameters())
            found[name] = str(error)

    model = Model()
    x, shared = share(0, rank, WORLD), list(model.encoder.parameters())
    attempt("not listed", ValueError, model.losses(x), None)
    attempt("missing on one", ValueError, model.losses(x), shared, mask=[True, rank == 0, True])
    attempt("other sizes", ValueError, model.losses(x), shared[rank:])
    for low_memory in (False, True):
        losses = model.losses(x)
        losses[1] = losses[1] * (torch.inf if rank else 1.0)
        attempt(f"not finite {low_memory}", NonFiniteGradientError, losses, shared, low_memory=low_memory)
    return found


def alone(rank: int) -> Answer:
    """With `group=None`, and with a mask that is the same everywhere."""
    model = Model()
    x, shared = share(0, rank, WORLD), list(model.encoder.parameters())
    make_balancer("pcgrad", TASKS).backward(model.losses(x), shared, group=None)
    by_itself = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    masked = make_balancer("gradnorm", TASKS).backward(model.losses(x), shared, mask=[True, False, True])
    return {"group=None": by_itself, "masked": masked, "masked grad": shared[0].grad}


def look(balancer: nn.Module, arguments: Any, answer: Any) -> None:
    """A forward hook that asks for the rows."""
    _ = arguments[0].gramian


def watched(rank: int) -> Answer:
    """Where one process alone looks at the rows, as a `Recorder` does."""
    found = {}
    for name in ("equal", "pcgrad"):
        model, balancer = Model(), make_balancer(name, TASKS)
        if rank == 0:
            balancer.register_forward_hook(look)
        backward("chain", balancer, model, share(0, rank, WORLD), ChainEngine(model.encoder, TASKS))
        found[name] = [parameter.grad for parameter in model.encoder.parameters()]
    return found


def work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD, timeout=timeout)
    try:
        answers = {(name, mode): train(name, mode, rank, WORLD) for name in names() for mode in MODES}
        others = {"errors": errors(rank), "alone": alone(rank), "watched": watched(rank)}
        torch.save({"train": answers, **others}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", names())
def test_two_processes_do_what_one_does_with_the_joined_batch(
    name: str, mode: str, of_ranks: list[dict[str, Any]]
) -> None:
    expected = train(name, mode, 0, 1)
    for of_rank in of_ranks:
        actual = of_rank["train"][name, mode]
        for key, tensors in expected.items():
            for a, b in zip(actual[key], tensors, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
        for key, tensors in of_ranks[0]["train"][name, mode].items():
            for a, b in zip(actual[key], tensors, strict=True):  # and the processes do not drift apart
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_what_the_processes_cannot_average_is_refused_on_all_of_them(of_ranks: list[dict[str, Any]]) -> None:
    for of_rank in of_ranks:
        assert set(of_rank["errors"]) == set(of_ranks[0]["errors"])
        assert "pass `parameters`" in of_rank["errors"]["not listed"]
        assert "task 1 is missing on some processes only" in of_rank["errors"]["missing on one"]
        assert "disagree about the number" in of_rank["errors"]["other sizes"]
        for low_memory in (False, True):
            assert of_rank["errors"][f"not finite {low_memory}"] == "the gradient of task 1 is not finite"


def test_one_process_may_look_at_the_rows_alone(of_ranks: list[dict[str, Any]]) -> None:
    for name in ("equal", "pcgrad"):
        model = Model()
        backward("chain", make_balancer(name, TASKS), model, share(0, 0, 1), ChainEngine(model.encoder, TASKS))
        for of_rank in of_ranks:
            for parameter, gradient in zip(model.encoder.parameters(), of_rank["watched"][name], strict=True):
                torch.testing.assert_close(parameter.grad, gradient)


def test_a_process_can_stay_alone(of_ranks: list[dict[str, Any]]) -> None:
    for rank, of_rank in enumerate(of_ranks):
        model = Model()
        make_balancer("pcgrad", TASKS).backward(model.losses(share(0, rank, WORLD)), model.encoder.parameters())
        for parameter, gradient in zip(model.parameters(), of_rank["alone"]["group=None"], strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_a_task_that_is_missing_everywhere_is_missing(of_ranks: list[dict[str, Any]]) -> None:
    model = Model()
    mask = [True, False, True]
    expected = make_balancer("gradnorm", TASKS).backward(
        model.losses(share(0, 0, 1)), model.encoder.parameters(), mask=mask
    )
    for of_rank in of_ranks:
        torch.testing.assert_close(of_rank["alone"]["masked"], expected)
        torch.testing.assert_close(of_rank["alone"]["masked grad"], model.encoder[0].weight.grad)


def test_without_other_processes_nothing_is_averaged() -> None:
    tensor = torch.arange(3.0)
    for ranks in (Ranks(), Ranks(None)):
        assert ranks.count() == 1
        assert ranks.mean_(copy.copy(tensor)) is not None
        assert ranks.differing([1, 2], torch.device("cpu")) == []
    assert torch.equal(tensor, torch.arange(3.0))
    with pytest.raises(ValueError, match="unknown group 'workers'"):
        Ranks("workers")  # type: ignore[arg-type]
