"""Both engines give the rows that one `torch.autograd.grad` per task gives, update after update, and nothing else."""

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from torch.nn.utils import prune

from mtrl.gradients import (
    AutogradEngine,
    GradientEngine,
    NonFiniteGradientError,
    ParameterLayout,
    TaskGradients,
    TaskMajorEngine,
    UnsupportedLayerError,
    graph_leaves,
)
from mtrl.rl.networks import SharedQNetwork, TaskEmbedding

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative to a row's largest entry
TASKS = 3


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


# ---------------------------------------------------------------------------------------------- families of networks

Inputs = Callable[[int], Tensor]  # rows -> a batch
Family = Callable[[random.Random], tuple[nn.Module, Inputs]]


def dims(rng: random.Random, least: int = 2) -> list[int]:
    return [rng.randint(1, 9) for _ in range(rng.randint(least, 4))]


def vectors(*shape: int) -> Inputs:
    return lambda rows: torch.randn(rows, *shape)


def mlp(rng: random.Random) -> tuple[nn.Module, Inputs]:
    widths, bias = dims(rng), rng.random() < 0.5
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4)), vectors(widths[0])


def one_linear(rng: random.Random) -> tuple[nn.Module, Inputs]:
    width = rng.randint(1, 9)
    return nn.Linear(width, 5, bias=rng.random() < 0.5), vectors(width)


def tanh_mlp(rng: random.Random) -> tuple[nn.Module, Inputs]:
    widths = dims(rng)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4)), vectors(widths[0])


def nested(rng: random.Random) -> tuple[nn.Module, Inputs]:
    a, b, c = dims(rng, 3)[:3]
    first = nn.Sequential(nn.Linear(a, b), nn.ReLU())
    return nn.Sequential(nn.Sequential(first, nn.Linear(b, c)), nn.ReLU(), nn.Sequential(nn.Linear(c, 4))), vectors(a)


def layer_norm(rng: random.Random) -> tuple[nn.Module, Inputs]:
    a, b = rng.randint(2, 6), rng.randint(3, 9)
    affine = rng.random() < 0.7
    norm = nn.LayerNorm(b, elementwise_affine=affine, bias=rng.random() < 0.5)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 0.5)
    return nn.Sequential(nn.Linear(a, b), norm, nn.ReLU(), nn.Linear(b, 4), nn.LayerNorm(4)), vectors(a)


def layer_norm_of_matrices(rng: random.Random) -> tuple[nn.Module, Inputs]:
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm([3, 4])), vectors(3, 5)


def embedding(rng: random.Random) -> tuple[nn.Module, Inputs]:
    size, dim = rng.randint(2, 6), rng.randint(1, 5)
    table = nn.Embedding(size, dim, padding_idx=rng.choice([None, 0, -1]))
    return nn.Sequential(table, nn.Linear(dim, 6), nn.ReLU(), nn.Linear(6, 4)), lambda n: torch.randint(size, (n,))


def embedding_of_sequences(rng: random.Random) -> tuple[nn.Module, Inputs]:
    size = rng.randint(2, 6)
    return nn.Sequential(nn.Embedding(size, 3), nn.Flatten(), nn.Linear(12, 4)), lambda n: torch.randint(size, (n, 4))


def convolution(rng: random.Random) -> tuple[nn.Module, Inputs]:
    groups = rng.choice([1, 2])
    channels = groups * rng.randint(1, 3)
    first = nn.Conv2d(
        channels,
        2 * groups,
        kernel_size=rng.choice([1, 2, (3, 2)]),
        stride=rng.choice([1, 2, (1, 2)]),
        padding=rng.choice([0, 1, (0, 1)]),
        dilation=rng.choice([1, 2]),
        groups=groups,
        bias=rng.random() < 0.5,
    )
    second = nn.Conv2d(2 * groups, 2, 1)
    inside = nn.Sequential(first, nn.ReLU(), second)
    return rng.choice([inside, nn.Sequential(inside, nn.Tanh())]), vectors(channels, 7, 6)


def sequences(rng: random.Random) -> tuple[nn.Module, Inputs]:
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 4)), vectors(rng.randint(1, 4), a)


class Residual(nn.Module):
    """BroNet's form: a chain, then blocks that are added to what went in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(2)
        )
        self.last = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(input=x)


def residual(rng: random.Random) -> tuple[nn.Module, Inputs]:
    return Residual(rng.randint(2, 8)), vectors(5)


class PreActivation(nn.Module):
    """Blocks that begin and end with ReLU: neither what goes in nor the gradient that comes back is theirs alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(inplace=last)) for last in (False, True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def pre_activation(rng: random.Random) -> tuple[nn.Module, Inputs]:
    width = rng.randint(2, 8)
    return PreActivation(width), vectors(width)


def used_twice(rng: random.Random) -> tuple[nn.Module, Inputs]:
    width = rng.randint(2, 6)
    layer = nn.Linear(width, width)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(width, 4)), vectors(width)


def in_two_parents(rng: random.Random) -> tuple[nn.Module, Inputs]:
    width = rng.randint(2, 6)
    layer = nn.Linear(width, width)
    return nn.Sequential(nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer, nn.Sigmoid())), vectors(width)


def tied(rng: random.Random) -> tuple[nn.Module, Inputs]:
    width = rng.randint(2, 6)
    first, second = nn.Linear(width, width), nn.Linear(width, width, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second), vectors(width)


def frozen(rng: random.Random) -> tuple[nn.Module, Inputs]:
    module, inputs = rng.choice([mlp, layer_norm, embedding, tanh_mlp])(rng)
    parameters = list(module.parameters())
    for parameter in rng.sample(parameters, rng.randint(1, len(parameters) - 1)):
        parameter.requires_grad_(False)
    return module, inputs


def task_aware(rng: random.Random) -> tuple[nn.Module, Inputs]:
    network = SharedQNetwork(5 + TASKS, 4, TASKS, rng.randint(1, 4), [rng.randint(1, 8), 6])
    one_hot = torch.eye(TASKS)
    return network, lambda n: torch.cat((torch.randn(n, 5), one_hot.repeat_interleave(n // TASKS, 0)), 1)


def task_embedding_in_the_middle(rng: random.Random) -> tuple[nn.Module, Inputs]:
    middle = TaskEmbedding(TASKS, rng.randint(1, 4))
    return nn.Sequential(nn.Linear(4, 7), middle, nn.ReLU()), vectors(4)


FAMILIES: list[Family] = [
    mlp,
    one_linear,
    tanh_mlp,
    nested,
    layer_norm,
    layer_norm_of_matrices,
    embedding,
    embedding_of_sequences,
    convolution,
    sequences,
    residual,
    pre_activation,
    used_twice,
    in_two_parents,
    tied,
    frozen,
    task_aware,
    task_embedding_in_the_middle,
]


def make(family: Family, seed: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Inputs]:
    torch.set_default_dtype(dtype)
    torch.manual_seed(seed)
    return family(random.Random(seed))


def task_losses(output: Tensor, tasks: int = TASKS) -> Tensor:
    """Non-linear, different for every output entry, O(1)."""
    flat = output.reshape(tasks, -1)
    return (flat.sin() + flat * torch.linspace(-1, 1, flat.shape[1], dtype=flat.dtype)).mean(1)


def reference(losses: Tensor, layout: ParameterLayout) -> Tensor:
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, layout.parameters, retain_graph=True, allow_unused=True)
        pairs = zip(gradients, layout.parameters, strict=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs]))
    return torch.stack(rows)


def assert_rows(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = (actual - expected).abs().amax(1)
    assert bool((error <= factor * TOLERANCE[expected.dtype] * expected.abs().amax(1)).all()), error


def by_task_major(engine: TaskMajorEngine, module: nn.Module, x: Tensor, tasks: int = TASKS) -> Tensor:
    with engine.record():
        losses = task_losses(module(x), tasks)
    return engine.backward(losses).jacobian


# ---------------------------------------------------------------------------------------------- the Jacobian


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_equal_a_loop_of_autograd_update_after_update(
    family: Family, seed: int, dtype: torch.dtype
) -> None:
    module, inputs = make(family, seed, dtype)
    engine = TaskMajorEngine(module, TASKS)
    general = AutogradEngine(engine.layout.parameters)
    kept = []
    for batch in (4, 4, 1, 7, 4):  # scratch memory is reused, and replaced when the batch grows or shrinks
        x = inputs(TASKS * batch)
        kept.append((x, x.clone()))
        expected = reference(task_losses(module(x)), engine.layout)
        with engine.record():
            output = module(x)
        kept.append((output, output.detach().clone()))
        assert_rows(engine.backward(task_losses(output)).jacobian, expected)
        assert_rows(general.backward(task_losses(module(x))).jacobian, expected)
        assert all(parameter.grad is None for parameter in module.parameters())
        with torch.no_grad():
            for parameter in engine.layout.parameters:
                parameter.add_(0.01 * torch.randn_like(parameter))
    for output, as_it_was in kept:
        assert torch.equal(output, as_it_was)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_forward_passes_inside_one_record(family: Family) -> None:
    module, inputs = make(family, 7, torch.float64)
    engine = TaskMajorEngine(module, TASKS)
    for _ in range(2):
        a, b = inputs(TASKS * 3), inputs(TASKS * 2)
        expected = reference(task_losses(module(a)) + 2 * task_losses(module(b)), engine.layout)
        with engine.record():
            losses = task_losses(module(a)) + 2 * task_losses(module(b))
        assert_rows(engine.backward(losses).jacobian, expected)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_any_number_of_tasks(tasks: int) -> None:
    module, inputs = make(layer_norm, 0, torch.float64)
    engine = TaskMajorEngine(module, tasks)
    x = inputs(tasks * 3)
    assert_rows(by_task_major(engine, module, x, tasks), reference(task_losses(module(x), tasks), engine.layout))


@pytest.mark.parametrize("family", [mlp, convolution, residual, pre_activation, layer_norm, task_aware])
def test_the_gradient_of_the_input_is_autograds(family: Family) -> None:
    module, inputs = make(family, 3, torch.float64)
    engine = TaskMajorEngine(module, TASKS)
    x = inputs(TASKS * 2).requires_grad_()
    (expected,) = torch.autograd.grad(task_losses(module(x)).sum(), x)
    caught: list[Tensor] = []
    x.register_hook(caught.append)
    by_task_major(engine, module, x)
    by_task_major(engine, module, inputs(TASKS * 2).requires_grad_())  # must not write into the first one's
    torch.testing.assert_close(caught[0], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-14)


def test_inputs_and_gradients_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6)).double()
    engine = TaskMajorEngine(module, TASKS)
    x = torch.randn(4, 2 * TASKS, dtype=torch.float64).t()

    def losses() -> Tensor:  # `sum` sends back an expanded gradient, the transposition a strided one
        y = module(x)
        return y.view(TASKS, -1).sum(1) + y.t().reshape(6, TASKS, 2).sin().sum((0, 2))

    expected = reference(losses(), engine.layout)
    with engine.record():
        recorded = losses()
    assert_rows(engine.backward(recorded).jacobian, expected)


def test_a_list_of_losses_is_as_good_as_a_tensor() -> None:
    module, inputs = make(mlp, 0)
    engine = TaskMajorEngine(module, TASKS)
    x = inputs(TASKS * 2)
    expected = by_task_major(engine, module, x).clone()
    with engine.record():
        losses = list(task_losses(module(x)))
    assert torch.equal(engine.backward(losses).jacobian, expected)


def test_parameters_that_a_loss_does_not_reach_have_zero_rows() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3), "never": nn.Linear(2, 3)})
    engine = TaskMajorEngine(module, 2)
    general = AutogradEngine(module.parameters())
    x = torch.randn(4, 2)
    for used in ("a", "b"):  # what the last update wrote must be gone
        with engine.record():
            losses = task_losses(module[used](x), 2) * torch.tensor([1.0, 0.0])
        rows = engine.backward(losses).jacobian
        assert bool((rows[1] == 0).all())
        for name, layer in module.items():
            reached = rows[0, engine.layout.slice_of(layer.weight)].any()
            assert bool(reached) == (name == used)
        assert_rows(rows[:1], general.backward(task_losses(module[used](x), 2)).jacobian[:1])


def test_heads_keep_their_ordinary_gradients() -> None:
    encoder, inputs = make(mlp, 1, torch.float64)
    heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(TASKS))
    engine = TaskMajorEngine(encoder, TASKS)
    x = inputs(TASKS * 3)

    def losses() -> list[Tensor]:
        return [head(part).pow(2).mean() for head, part in zip(heads, encoder(x).chunk(TASKS), strict=True)]

    expected = torch.autograd.grad(sum(losses()), list(heads.parameters()))
    rows = reference(torch.stack(losses()), engine.layout)
    for times in (1, 2):
        with engine.record():
            recorded = losses()
        assert_rows(engine.backward(recorded).jacobian, rows)
        for parameter, gradient in zip(heads.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, times * gradient, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------- outside record()


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_record_the_module_is_what_it_was(family: Family) -> None:
    module, inputs = make(family, 2)
    x = inputs(TASKS * 2)
    before = {name: set(vars(layer)) for name, layer in module.named_modules()}
    keys = list(module.state_dict())
    task_losses(module(x)).sum().backward()
    expected = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    engine = TaskMajorEngine(module, TASKS)
    module.zero_grad()
    by_task_major(engine, module, x)
    with suppress(ZeroDivisionError), engine.record():
        module(x)
        raise ZeroDivisionError
    assert {name: set(vars(layer)) for name, layer in module.named_modules()} == before
    assert list(module.state_dict()) == keys
    for twin in (module, copy.deepcopy(module)):
        task_losses(twin(x)).sum().backward()
        for parameter, gradient in zip(twin.parameters(), expected, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient)
    module.zero_grad()
    assert_rows(by_task_major(engine, module, x), reference(task_losses(module(x)), engine.layout))


def test_an_exception_inside_record_leaves_nothing_to_go_backward_through() -> None:
    module, inputs = make(mlp, 0)
    engine = TaskMajorEngine(module, TASKS)
    with suppress(ZeroDivisionError), engine.record():
        module(inputs(TASKS))
        raise ZeroDivisionError
    with engine.record():
        pass
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        engine.backward(task_losses(module(inputs(TASKS))))


def test_where_gradients_are_disabled_layers_run_as_outside() -> None:
    module, inputs = make(mlp, 0)
    engine = TaskMajorEngine(module, TASKS)
    x = inputs(TASKS * 2)
    expected = reference(task_losses(module(x)), engine.layout)
    with engine.record():
        with torch.inference_mode():
            module(inputs(1))  # one row, which does not divide by T
        losses = task_losses(module(x))
        with torch.no_grad():
            assert not module(inputs(1)).requires_grad
    assert_rows(engine.backward(losses).jacobian, expected)


@pytest.mark.parametrize("early", [True, False])
def test_hooks_of_inner_layers_are_called(early: bool) -> None:
    module, inputs = make(nested, 0)
    calls: list[str] = []

    def hook() -> None:
        module[0][0][0].register_forward_hook(lambda *_: calls.append("forward"))
        module[2][0].register_full_backward_hook(lambda *_: calls.append("backward"))

    x = inputs(TASKS * 2)
    expected = reference(task_losses(module(x)), ParameterLayout(module.parameters()))
    if early:
        hook()
    engine = TaskMajorEngine(module, TASKS)
    if not early:
        by_task_major(engine, module, x)
        hook()
    assert_rows(by_task_major(engine, module, x), expected)
    assert calls == ["forward", "backward"]


def test_the_output_of_a_chain_that_ends_in_an_empty_one_is_the_callers() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential())
    engine = TaskMajorEngine(module, 1)
    with engine.record():
        output = module(torch.ones(2, 3))
    as_it_was = output.detach().clone()
    with engine.record():
        module(torch.zeros(2, 3))
    assert torch.equal(output, as_it_was)


# ---------------------------------------------------------------------------------------------- what is refused


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class LinearLike(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5)


def patched() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.BatchNorm1d(3), "BatchNorm1d.*mixes the rows"),
        (lambda: nn.BatchNorm1d(3, affine=False), "BatchNorm1d.*mixes the rows"),
        (lambda: nn.BatchNorm1d(3).eval(), "BatchNorm1d.*no per-task gradient rule; supported: Linear, LayerNorm"),
        (lambda: nn.MultiheadAttention(4, 2), "MultiheadAttention.*no per-task gradient rule"),
        (OwnParameter, "OwnParameter.*no per-task gradient rule"),
        (lambda: LinearLike(3, 3), "LinearLike.*no per-task gradient rule"),
        (pruned, "Linear.*knows no parameter 'weight_orig'"),
        (patched, "Linear.*forward has been replaced"),
        (lambda: nn.Embedding(3, 3, sparse=True), "Embedding.*sparse"),
        (lambda: nn.Embedding(3, 3, max_norm=1.0), "Embedding.*max_norm"),
        (lambda: nn.Conv2d(3, 3, 3, padding="same"), "Conv2d.*padding"),
        (lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), "Conv2d.*padding"),
    ],
)
def test_a_layer_without_a_rule_is_named(layer: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=rf"^layer 'body\.1' \({reason}"):
        TaskMajorEngine(nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), layer())}), 2)


def test_frozen_batch_normalisation_in_evaluation_mode_is_no_obstacle() -> None:
    norm = nn.BatchNorm1d(3).eval().requires_grad_(False)
    module = nn.Sequential(nn.Linear(2, 3), norm, nn.Linear(3, 2)).double()
    engine = TaskMajorEngine(module, 2)
    x = torch.randn(6, 2, dtype=torch.float64)
    assert_rows(by_task_major(engine, module, x, 2), reference(task_losses(module(x), 2), engine.layout))


def test_rows_that_do_not_divide_by_the_tasks_name_the_layer() -> None:
    module = nn.ModuleDict({"body": nn.Linear(3, 3)})
    engine = TaskMajorEngine(module, 3)
    with pytest.raises(ValueError, match=r"layer 'body' got 4 rows, which do not divide into 3 tasks"), engine.record():
        module["body"](torch.randn(4, 3))


def test_wrong_use_is_refused() -> None:
    module, inputs = make(mlp, 0)
    engine = TaskMajorEngine(module, TASKS)
    losses = task_losses(module(inputs(TASKS)))
    with pytest.raises(ValueError, match="got 2 losses for 3 tasks"):
        engine.backward(losses[:2])
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        engine.backward(losses)
    with engine.record():
        losses = task_losses(module(inputs(TASKS)))
    engine.backward(losses)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        engine.backward(losses)
    with engine.record():
        per_row = module(inputs(TASKS)).view(TASKS, -1)
    with pytest.raises(ValueError, match=r"the losses have shape \(3, 4\)"):
        engine.backward(per_row)
    with pytest.raises(ValueError, match="num_tasks is 0"):
        TaskMajorEngine(module, 0)
    with pytest.raises(ValueError, match="no parameters"):
        TaskMajorEngine(nn.ReLU(), 2)


@pytest.mark.parametrize("gradients_there", [False, True])
def test_a_parameter_used_past_its_layer_is_an_error_not_a_wrong_row(gradients_there: bool) -> None:
    module = nn.ModuleDict({"body": nn.Linear(3, 3, bias=False)})
    body = module["body"]
    if gradients_there:
        body.weight.grad = torch.zeros(3, 3)
    engine = TaskMajorEngine(module, 2)
    with engine.record():
        losses = task_losses(F.linear(body(torch.randn(4, 3)), body.weight), 2)
    with pytest.raises(RuntimeError, match=r"reach parameter 'body\.weight' outside a recorded layer"):
        engine.backward(losses)


def test_the_last_shared_layer() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(4, 3)
    for given, weight in ((None, module[4].weight), (module[2], module[2].weight)):
        engine = TaskMajorEngine(module, 2, given)
        with engine.record():
            losses = task_losses(module(x), 2)
        gradients = engine.backward(losses)
        expected = gradients.jacobian[:, engine.layout.slice_of(weight)].double().norm(dim=1)
        torch.testing.assert_close(gradients.layer_norms, expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="among the shared"):
        TaskMajorEngine(module, 2, nn.Linear(3, 3))


# ---------------------------------------------------------------------------------------------- ParameterLayout


def test_layout_lays_parameters_end_to_end() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Conv2d(2, 3, 2), nn.Linear(4, 1, bias=False))
    parameters = list(module.parameters())
    layout = ParameterLayout([*parameters, parameters[0]])  # a duplicate takes one place
    assert layout.size == sum(p.numel() for p in parameters)
    flat = torch.randn(2, layout.size)
    parts = layout.split(flat)
    assert [part.shape for part in parts] == [(2, *p.shape) for p in parameters]
    assert torch.equal(torch.cat([part.reshape(2, -1) for part in parts], 1), flat)
    for parameter, part in zip(parameters, parts, strict=True):
        assert parameter in layout
        assert torch.equal(flat[:, layout.slice_of(parameter)], part.reshape(2, -1))
        part.zero_()  # a view
    assert not flat.any()
    stranger = nn.Parameter(parameters[0].detach().clone())
    assert stranger not in layout
    with pytest.raises(ValueError, match=r"shape \(3, 2\) is not among the shared ones"):
        layout.slice_of(stranger)
    with pytest.raises(ValueError, match="no parameters"):
        ParameterLayout([])


def test_accumulate_grad_adds_as_a_backward_pass_does() -> None:
    parameters = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(4))]
    layout = ParameterLayout(parameters)
    first, second = torch.randn(2, layout.size)
    before = first.clone()
    layout.accumulate_grad(first)
    layout.accumulate_grad(second)
    for parameter, part in zip(parameters, layout.split(first + second), strict=True):
        assert torch.equal(parameter.grad, part)
    assert torch.equal(first, before)


@pytest.mark.parametrize("make_optimizer", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_over_the_flat_vector_is_one_over_the_parameters(make_optimizer: Any) -> None:
    torch.manual_seed(0)
    separate = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    flat = copy.deepcopy(separate)
    x = torch.randn(6, 3)
    layout = ParameterLayout(flat.parameters())
    vector = layout.flatten_()
    engine = TaskMajorEngine(flat, 2)
    of_parameters, of_vector = make_optimizer(separate.parameters()), make_optimizer([vector])
    for step in range(5):
        if step == 3:  # loading copies into the views
            loaded = {name: value + 1 for name, value in separate.state_dict().items()}
            separate.load_state_dict(loaded)
            flat.load_state_dict(loaded)
        of_parameters.zero_grad()
        task_losses(separate(x), 2).sum().backward()
        of_parameters.step()
        vector.grad = by_task_major(engine, flat, x, 2).sum(0)
        of_vector.step()
        for a, b in zip(flat.parameters(), separate.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([p.detach().flatten() for p in flat.parameters()]), vector.detach())
    twin = copy.deepcopy(flat)  # a copy is free of the vector
    with torch.no_grad():
        vector.zero_()
    assert not any(p.any() for p in flat.parameters())
    assert all(p.any() for p in twin.parameters())


# ---------------------------------------------------------------------------------------------- TaskGradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 100)])
def test_task_gradients_are_the_dense_formulas(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    jacobian, vector, coefficients = torch.randn(shape, dtype=dtype), torch.randn(shape[1], dtype=dtype), shape[0]
    weights = torch.randn(coefficients, dtype=torch.float64)
    half = slice(shape[1] // 2, None)
    gradients = TaskGradients(jacobian, half)
    exact = jacobian.double()
    tolerance = {"rtol": 0, "atol": 1e2 * TOLERANCE[dtype]}
    assert gradients.num_tasks == shape[0]
    assert {gradients.gramian.dtype, gradients.layer_norms.dtype, gradients.dot(vector).dtype} == {torch.float64}
    torch.testing.assert_close(gradients.gramian, exact @ exact.T, **tolerance)
    torch.testing.assert_close(gradients.layer_norms, exact[:, half].norm(dim=1), **tolerance)
    torch.testing.assert_close(TaskGradients(jacobian).layer_norms, exact.norm(dim=1), **tolerance)
    torch.testing.assert_close(gradients.dot(vector), exact @ vector.double(), **tolerance)
    combined = gradients.combine(weights)
    assert combined.dtype == dtype
    torch.testing.assert_close(combined.double(), weights @ exact, **tolerance)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("task", range(3))
def test_a_row_that_is_not_finite_names_its_task(task: int, bad: float) -> None:
    jacobian = torch.randn(3, 10)
    TaskGradients(jacobian).check_finite()
    jacobian[task, 4] = bad
    with pytest.raises(NonFiniteGradientError, match=f"the gradient of task {task} is not finite"):
        TaskGradients(jacobian).check_finite()


def test_infinities_that_cancel_are_found() -> None:
    with pytest.raises(NonFiniteGradientError, match="task 1"):
        TaskGradients(torch.tensor([[1.0, 1.0], [torch.inf, -torch.inf]])).check_finite()


def test_huge_rows_are_finite_and_so_are_their_norms() -> None:
    gradients = TaskGradients(torch.full((3, 10), 1e38))
    gradients.check_finite()
    torch.testing.assert_close(gradients.layer_norms, torch.full((3,), 10**0.5 * 1e38, dtype=torch.float64))
    torch.testing.assert_close(gradients.gramian, torch.full((3, 3), 1e77, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------- AutogradEngine


def two_heads() -> tuple[nn.Module, nn.ModuleList, Callable[[], list[Tensor]]]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
    x = torch.randn(5, 3)
    return encoder, heads, lambda: [head(encoder(x)).pow(2).mean() for head in heads]


@pytest.mark.parametrize("gather", [list, tuple, torch.stack])
def test_shared_leaves_are_found_and_heads_are_not_among_them(gather: Any) -> None:
    encoder, heads, losses = two_heads()
    engine = AutogradEngine()
    expected = torch.autograd.grad(sum(losses()), list(heads.parameters()))
    for times in (1, 2):
        gradients = engine.backward(gather(losses()))
        assert {id(p) for p in engine.layout.parameters} == {id(p) for p in encoder.parameters()}
        assert_rows(gradients.jacobian, reference(torch.stack(losses()), engine.layout), 10)
        assert all(p.grad is None for p in encoder.parameters())
        for parameter, gradient in zip(heads.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, times * gradient)
    last = gradients.jacobian[:, engine.layout.slice_of(encoder[2].weight)]
    torch.testing.assert_close(gradients.layer_norms, last.double().norm(dim=1), rtol=1e-6, atol=0)


def test_one_task_shares_all_its_parameters_with_itself() -> None:
    encoder, heads, losses = two_heads()
    engine = AutogradEngine()
    engine.backward(losses()[:1])
    assert {id(p) for p in engine.layout.parameters} == {id(p) for p in [*encoder.parameters(), *heads[0].parameters()]}


def test_a_leaf_of_two_tasks_out_of_three_is_shared() -> None:
    a, b, c = (nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0, 3.0))
    engine = AutogradEngine()
    gradients = engine.backward([(a * b).sum(), (a * b * 2).sum(), (a * c).sum()])
    assert {id(p) for p in engine.layout.parameters} == {id(a), id(b)}
    assert torch.equal(gradients.jacobian[2, engine.layout.slice_of(b)], torch.zeros(1))
    assert torch.equal(c.grad, torch.ones(1))


def test_given_parameters_are_kept_in_order_and_frozen_ones_left_out() -> None:
    encoder, _, losses = two_heads()
    encoder[0].bias.requires_grad_(False)
    engine = AutogradEngine(encoder.parameters(), last_shared_layer=encoder[0].weight)
    assert list(map(id, engine.layout.parameters)) == list(
        map(id, [encoder[0].weight, encoder[2].weight, encoder[2].bias])
    )
    with engine.record():
        recorded = losses()
    gradients = engine.backward(recorded)
    torch.testing.assert_close(gradients.layer_norms, gradients.jacobian[:, :12].double().norm(dim=1))


def test_norms_are_measured_on_a_matrix_that_every_loss_depends_on() -> None:
    encoder, heads, losses = two_heads()
    engine = AutogradEngine([*encoder.parameters(), *heads.parameters()])
    gradients = engine.backward(losses())
    expected = gradients.jacobian[:, engine.layout.slice_of(encoder[2].weight)].double().norm(dim=1)
    torch.testing.assert_close(gradients.layer_norms, expected, rtol=1e-6, atol=0)


def test_leaves_used_by_views_and_slices() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    vector = nn.Parameter(torch.randn(6, dtype=torch.float64))
    losses = [
        (matrix[:2, ::2].T.reshape(-1) * vector.view(2, 3).sum(0).repeat(2)).sum(),
        matrix.view(-1)[5:9].sin().prod() + vector[1:3].exp().sum(),
        matrix.unbind(1)[3].norm() * vector.expand(3, 6).sum(),
    ]
    engine = AutogradEngine()
    expected = reference(torch.stack(losses), ParameterLayout([matrix, vector]))
    rows = engine.backward(losses).jacobian
    order = [*range(24, 30), *range(24)] if engine.layout.parameters[0] is vector else list(range(30))
    assert_rows(rows, expected[:, order])


def test_graph_leaves_are_those_nearest_to_the_loss_first() -> None:
    far, near = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    constant = torch.ones(2)
    found = graph_leaves((near * (far * constant).exp().sin()).sum())
    assert [id(leaf) for leaf in found] == [id(near), id(far)]
    assert graph_leaves(constant.sum()) == []


def test_losses_that_are_no_scalars_or_have_no_graph_are_named() -> None:
    weight = nn.Parameter(torch.ones(2))
    engine = AutogradEngine()
    with pytest.raises(ValueError, match=r"the loss of task 1 has shape \(2,\); a scalar is needed"):
        engine.backward([weight.sum(), weight * 2])
    with pytest.raises(ValueError, match="the loss of task 0 does not depend on any parameter"):
        engine.backward([torch.ones(()), weight.sum()])
    with pytest.raises(ValueError, match="the losses share no parameter"):
        engine.backward([weight.sum(), nn.Parameter(torch.ones(2)).sum()])
    with pytest.raises(ValueError, match="no losses"):
        engine.backward([])


def test_both_engines_are_gradient_engines_of_one_interface() -> None:
    module, inputs = make(residual, 0, torch.float64)
    x = inputs(TASKS * 2)
    engines: list[GradientEngine] = [TaskMajorEngine(module, TASKS), AutogradEngine(module.parameters())]
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for engine in engines:
            with engine.record():
                losses = task_losses(module(x))
            rows.append(engine.backward(losses).jacobian)
    assert_rows(*rows)
