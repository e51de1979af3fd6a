"""Low-memory mode gives what the ordinary mode gives, on any graph, without ever holding T x D numbers."""

import copy
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.balancers import Balancer, make_balancer, names
from mtrl.gradients import AutogradEngine, JacobianNotHeldError, LayerwiseEngine, NonFiniteGradientError
from mtrl.gradients.rows import products_of_rows
from mtrl.gradients.segments import cut, in_order, parts_of
from mtrl.guidance import LookaheadGuidance

TASKS = 4
EAGER: dict[str, dict[str, Any]] = {"gradnorm": {"warmup_steps": 1, "lr": 0.1}, "aim": {"lr": 0.1}}
EAGER["gradnorm_pcgrad"] = EAGER["gradnorm"]
LossesOf = Callable[[Tensor], Any]


def eager(name: str, num_tasks: int = TASKS) -> Balancer:
    return make_balancer(name, num_tasks, **EAGER.get(name, {}))


class Heads(nn.Module):
    """Any encoder with one head per task."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(TASKS))

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.encoder(x)
        return [(head(z) - task).pow(2).mean() for task, head in enumerate(self.heads)]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class Dense(nn.Module):
    """Every layer sees the outputs of all before it: no node but the last is on all ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5 * (n + 1), 5) for n in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)).tanh())
        return torch.cat(parts, 1)


class Tied(nn.Module):
    """One matrix at both ends, used by another layer in between, and a parameter that is broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.between = nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.between(self.shared(x).tanh() * self.scale).relu())
        return y @ self.shared.weight + self.scale


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.cell(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]
        return output


class Square(torch.autograd.Function):
    """A node written in Python."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class Skipping(nn.Module):
    """A way around several layers that ends in a node written in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = Square.apply(self.a(x))
        output: Tensor = self.c(self.b(h).relu()) * Square.apply(h) + self.a(h)
        return output


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))


FAMILIES = {"mlp": (mlp, 6), "residual": (Residual, 6), "dense": (Dense, 25), "tied": (Tied, 5)}
FAMILIES |= {"recurrent": (Recurrent, 6), "skipping": (Skipping, 5)}


def make(family: str, dtype: torch.dtype = torch.float64) -> tuple[Heads, Tensor]:
    torch.manual_seed(0)
    encoder, width = FAMILIES[family]
    return Heads(encoder(), width).to(dtype), torch.randn(7, 5, dtype=dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("listed", [False, True])
def test_every_answer_is_the_one_of_the_jacobian(family: str, listed: bool) -> None:
    model, x = make(family)
    parameters = list(model.encoder.parameters()) if listed else None
    ordinary, layerwise = AutogradEngine(parameters), LayerwiseEngine(parameters)
    dense, private = ordinary.gradients(model(x))
    lean, lean_private = layerwise.gradients(model(x))
    layout = ordinary.layout
    assert [id(p) for p in layerwise.layout.parameters] == [id(p) for p in layout.parameters]
    exact: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
    assert (lean.num_tasks, lean.size, lean.dtype, lean.device) == (TASKS, dense.size, dense.dtype, dense.device)
    torch.testing.assert_close(lean.gramian, dense.gramian, **exact)
    torch.testing.assert_close(lean.layer_norms, dense.layer_norms, **exact)
    for _ in range(2):
        coefficients, vector = torch.randn(TASKS).double(), torch.randn(layout.size).double()
        torch.testing.assert_close(lean.combine(coefficients), dense.combine(coefficients), **exact)
        torch.testing.assert_close(lean.dot(vector), dense.dot(vector), **exact)
    expected = {id(parameter): gradient for parameter, gradient in private}
    assert len(lean_private) == len(private) == 4 * TASKS
    for parameter, gradient in lean_private:
        torch.testing.assert_close(gradient, expected[id(parameter)], **exact)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("family", ["mlp", "residual", "tied"])
def test_every_balancer_trains_as_in_the_ordinary_mode(name: str, family: str) -> None:
    model, _ = make(family, torch.float32)
    twin = copy.deepcopy(model)
    balancer, lean = eager(name), eager(name)
    optimizers = [torch.optim.SGD(m.parameters(), 0.02) for m in (model, twin)]
    for step in range(4):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        mask = [step != 2 or task != 1 for task in range(TASKS)]  # once with a task missing
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected = balancer.backward(model(x), model.encoder.parameters(), mask=mask)
        actual = lean.backward(twin(x), twin.encoder.parameters(), mask=mask, low_memory=True)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        for a, b in zip(twin.parameters(), model.parameters(), strict=True):
            if b.grad is None:
                assert a.grad is None
            else:
                assert float((a.grad - b.grad).abs().max()) <= 1e-5 * float(b.grad.abs().max())
        for optimizer in optimizers:
            optimizer.step()


def test_the_guidance_of_aim_sees_the_same_step() -> None:
    model, x = make("mlp")
    taus = []
    for low_memory in (False, True):
        aim: Any = eager("aim")
        parameters = list(model.encoder.parameters())
        aim.set_guidance(LookaheadGuidance(lambda: sum(model(x)), parameters), eta=0.1)
        aim.backward(model(x), low_memory=low_memory)
        taus.append(aim.tau.clone())
    assert bool(taus[0].any())
    torch.testing.assert_close(taus[0], taus[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_segment_completes_more_than_the_largest_parameter(family: str) -> None:
    model, x = make(family)
    losses = model(x)
    largest = max(parameter.numel() for parameter in model.parameters())
    segments = cut([(loss.grad_fn, 0) for loss in losses], largest)
    for segment in segments:
        sizes = [leaf.numel() for leaf in segment.leaves if id(leaf) in segment.complete]
        one_node = family == "recurrent"  # all parameters of a GRU belong to one node
        assert one_node or sum(sizes) <= largest or len(sizes) <= 2  # a matrix and its bias
    complete = [key for segment in segments for key in segment.complete]
    assert sorted(complete) == sorted(id(parameter) for parameter in model.parameters())


def test_the_order_respects_the_graph() -> None:
    model, x = make("dense")
    order, children = in_order([loss.grad_fn for loss in model(x)])
    position = {node: index for index, node in enumerate(order)}
    assert all(position[node] < position[child] for node in order for child, _ in children[node])
    assert [node for part in parts_of(order, children, 1) for node in part] == [
        n for n in order if not hasattr(n, "variable")
    ]


def test_the_jacobian_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    widths = [rng.randint(20, 30) for _ in range(12)]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = Heads(nn.Sequential(*layers), widths[-1])
    sizes: list[int] = []
    engine = LayerwiseEngine(model.encoder.parameters())

    def products(rows: Tensor) -> tuple[Tensor, list[float]]:
        sizes.append(rows.numel())
        return products_of_rows(rows)

    monkeypatch.setattr("mtrl.gradients.low_memory.products_of_rows", products)
    engine.backward(model(torch.randn(3, widths[0])))
    assert max(sizes) <= TASKS * max(p.numel() for p in model.parameters()) < engine.layout.size


def test_losses_in_one_tensor_and_a_loss_that_another_builds_on() -> None:
    model, x = make("mlp")

    def losses() -> list[Tensor]:
        first, second, *_ = model(x)
        return [first, first * second, second + 1]

    expected = AutogradEngine(model.encoder.parameters()).backward(losses())
    for gathered in (losses(), torch.stack(losses())):
        actual = LayerwiseEngine(model.encoder.parameters()).backward(gathered)
        torch.testing.assert_close(actual.gramian, expected.gramian)
        torch.testing.assert_close(actual.combine(torch.ones(3)), expected.combine(torch.ones(3)))


def test_a_row_that_is_not_finite_names_its_task_and_changes_nothing() -> None:
    model, x = make("mlp")
    losses = model(x)
    losses[2] = losses[2] * torch.inf
    for mask, message in ((None, "task 2"), ([False, True, True, True], "task 2")):
        with pytest.raises(NonFiniteGradientError, match=message):
            eager("equal").backward(losses, model.encoder.parameters(), low_memory=True, mask=mask)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_squares_that_overflow_do_no_harm() -> None:
    model, x = make("mlp", torch.float32)
    gradients = LayerwiseEngine(model.encoder.parameters()).backward([1e25 * loss for loss in model(x)])
    assert bool(gradients.gramian.isfinite().all())


def test_methods_that_work_on_the_jacobian_say_so() -> None:
    pytest.importorskip("torchjd")
    model, x = make("mlp")
    make_balancer("torchjd:UPGrad", TASKS).backward(model(x), model.encoder.parameters(), low_memory=True)
    for parameter in model.parameters():
        parameter.grad = None
    with pytest.raises(JacobianNotHeldError, match="works on the whole Jacobian"):
        make_balancer("torchjd:ConFIG", TASKS).backward(model(x), model.encoder.parameters(), low_memory=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_cannot_be_gathered() -> None:
    model, x = make("mlp")
    with pytest.raises(ValueError, match="can't be gathered"):
        LayerwiseEngine(model.encoder.parameters()).gather(model(x))
