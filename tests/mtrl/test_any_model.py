"""`balancer.backward` in any training loop: missing tasks, micro-batches, mixed precision, and who shares what."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.balancers import AIM, RGB, Balancer, EqualWeights, GradNorm, make_balancer, names
from mtrl.balancers.gradnorm import project_weights
from mtrl.gradients import AutogradEngine, NonFiniteGradientError, TaskGradients, TaskMajorEngine

every_balancer = pytest.mark.parametrize("name", names())
EAGER: dict[str, dict[str, Any]] = {"gradnorm": {"warmup_steps": 1, "lr": 0.1}, "aim": {"lr": 0.1}}
EAGER["gradnorm_pcgrad"] = EAGER["gradnorm"]
TASKS = 4
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def eager(name: str, num_tasks: int = TASKS, **kwargs: Any) -> Balancer:
    return make_balancer(name, num_tasks, **EAGER.get(name, {}), **kwargs)


class Model(nn.Module):
    def __init__(self, tasks: int = TASKS) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(tasks))

    def losses(self, x: Tensor) -> list[Tensor]:
        z = self.encoder(x)
        return [(head(z) - task).pow(2).mean() for task, head in enumerate(self.heads)]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def batch(seed: int = 0, rows: int = 8) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grads(module: nn.Module) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    return found


def assert_close(left: list[Tensor], right: list[Tensor], **tolerance: Any) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or EXACT))


# ---------------------------------------------------------------------------------------------- missing tasks

THERE = [0, 2, 3]
MASK = [task in THERE for task in range(TASKS)]


@every_balancer
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_without_a_task_all_is_as_if_it_did_not_exist(name: str, scale: str, model: Model) -> None:
    smaller, whole = eager(name, len(THERE), scale=scale), eager(name, scale=scale)
    for seed in range(4):
        losses = model.losses(batch(seed))
        expected = smaller.backward([losses[task] for task in THERE], model.encoder.parameters())
        expected_grads = grads(model)
        losses = model.losses(batch(seed))
        actual = whole.backward([*losses[:1], None, *losses[2:]], model.encoder.parameters())
        assert actual.shape == (TASKS,)
        assert float(actual[1]) == 0
        torch.testing.assert_close(actual[THERE], expected, **EXACT)
        assert model.heads[1].weight.grad is None
        assert_close(grads(model), expected_grads)


@every_balancer
@pytest.mark.parametrize("gather", [list, torch.stack])
def test_a_mask_is_as_good_as_none(name: str, gather: Callable[[list[Tensor]], Any], model: Model) -> None:
    by_none, by_mask = eager(name), eager(name)
    losses = model.losses(batch())
    expected = by_none.backward([loss if there else None for loss, there in zip(losses, MASK, strict=True)])
    expected_grads = grads(model)
    losses = model.losses(batch())
    losses[1] = losses[1] * math.nan  # not looked at
    assert torch.equal(by_mask.backward(gather(losses), mask=torch.tensor(MASK)), expected)
    assert model.heads[1].weight.grad is None
    assert_close(grads(model), expected_grads)


@every_balancer
def test_a_missing_task_finds_its_state_as_it_left_it(name: str, model: Model) -> None:
    balancer = eager(name)
    for seed in range(3):
        balancer.backward(model.losses(batch(seed)), model.encoder.parameters())
    owners = [(module, key) for module in balancer.modules() for key in getattr(module, "task_state", ())]
    before = [torch.as_tensor(getattr(module, key)).clone() for module, key in owners]
    balancer.backward(model.losses(batch(3)), model.encoder.parameters(), mask=MASK)
    for (module, key), old in zip(owners, before, strict=True):
        new = torch.as_tensor(getattr(module, key))
        assert new.shape == old.shape
        for axis in range(new.ndim):
            assert torch.equal(new.select(axis, 1).nan_to_num(-1), old.select(axis, 1).nan_to_num(-1))
    for module, key in owners:
        if key in ("weights", "tau", "angles"):  # the others' has moved
            assert any(not torch.equal(torch.as_tensor(getattr(module, key)), old) for old in before)
    balancer.backward(model.losses(batch(4)), model.encoder.parameters())


@every_balancer
def test_a_first_batch_without_a_task(name: str, model: Model) -> None:
    balancer = eager(name)
    twin = eager(name)
    for seed, mask in enumerate([MASK, [not there for there in MASK], [True] * TASKS, MASK]):
        coefficients = balancer.backward(model.losses(batch(seed)), model.encoder.parameters(), mask=mask)
        assert bool(coefficients.isfinite().all())
        twin.load_state_dict(balancer.state_dict())
        for tensor in grads(model):
            assert bool(tensor.isfinite().all())


def test_diagnostics_of_a_missing_task_are_nan() -> None:
    jacobian = torch.randn(3, 20, dtype=torch.float64)
    gradients = TaskGradients(jacobian, mask=MASK, losses=torch.rand(3).double() + 0.1)
    for name in names():
        answer = eager(name)(gradients)
        assert answer.update(gradients).shape == (20,)
        for part in answer.diagnostics.values():
            assert part.shape in ((), (TASKS,), (TASKS, TASKS))
            for axis in range(part.ndim):
                assert bool(part.select(axis, 1).isnan().all())
            there = torch.tensor(THERE)
            for axis in range(part.ndim):
                part = part.index_select(axis, there)  # noqa: PLW2901
            assert bool(part.isfinite().all())


def test_the_weights_of_gradnorm_keep_their_sum_while_tasks_are_missing(model: Model) -> None:
    balancer = GradNorm(TASKS, warmup_steps=1, lr=0.3)
    for seed in range(40):
        mask = [seed % 2 == 0 or task != seed % TASKS for task in range(TASKS)]
        balancer.backward(model.losses(batch(seed)), model.encoder.parameters(), mask=mask)
        torch.testing.assert_close(balancer.weights.sum().item(), float(TASKS))
        assert float(balancer.weights.min()) >= balancer.weight_floor - 1e-9
    assert float(balancer.weights.std()) > 0.01


def test_projected_weights_of_some_tasks_keep_their_total() -> None:
    weights = project_weights(torch.tensor([0.01, 2.0, 0.5], dtype=torch.float64), 0.1, 2.0)
    torch.testing.assert_close(weights.sum().item(), 2.0)
    torch.testing.assert_close(weights[0].item(), 0.1)


def test_every_task_of_gradnorm_has_its_own_warm_up(model: Model) -> None:
    balancer = GradNorm(TASKS, warmup_steps=3, lr=0.3)
    values: list[list[float]] = [[] for _ in range(TASKS)]
    for seed in range(8):
        mask = [task != 1 or seed >= 4 for task in range(TASKS)]
        losses = model.losses(batch(seed))
        for task in range(TASKS):
            if mask[task]:
                values[task].append(losses[task].item())
        before = balancer.weights.clone()
        balancer.backward(losses, model.encoder.parameters(), mask=mask)
        assert bool((balancer.weights != before).any()) == (seed in (3, 7))  # all that are there are through it
    expected = torch.tensor([sum(of_task[:3]) / 3 for of_task in values], dtype=torch.float64)
    torch.testing.assert_close(balancer.initial_losses, expected, **EXACT)
    assert balancer.steps.tolist() == [8, 4, 8, 8]


def test_errors_name_the_task_as_it_is_counted_with_the_missing_ones(model: Model) -> None:
    losses = model.losses(batch())
    with pytest.raises(NonFiniteGradientError, match="task 2"):
        EqualWeights().backward([None, losses[1], losses[2] * math.nan, losses[3]])
    losses = model.losses(batch())
    with pytest.raises(ValueError, match="task 2 has -1"):
        GradNorm(TASKS).backward([None, losses[1], losses[2] - losses[2].detach() - 1, losses[3]])
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="the loss of task 2 has shape"):
        EqualWeights().backward([None, losses[1], losses[2].expand(2), losses[3]])
    for wrong in ([True] * 3, torch.ones(5)):
        with pytest.raises(ValueError, match=r"got a mask of . tasks and 4 losses"):
            EqualWeights().backward(losses, mask=wrong)
    with pytest.raises(ValueError, match="no losses"):
        EqualWeights().backward(losses, mask=[False] * TASKS)
    with pytest.raises(ValueError, match="do not carry their losses"):
        EqualWeights()(TaskGradients(torch.ones(2, 3)))


def test_torchjd_methods_do_with_fewer_tasks_where_they_can(model: Model) -> None:
    pytest.importorskip("torchjd")
    for name, able in (("UPGrad", True), ("ConFIG", True), ("NashMTL", False)):
        balancer = make_balancer(f"torchjd:{name}", TASKS)
        losses = model.losses(batch())
        if able:
            balancer.backward(losses, model.encoder.parameters(), mask=MASK)
            continue
        model.zero_grad()
        with pytest.raises(ValueError, match=rf"torchjd:{name} needs all tasks in every batch; missing: 1"):
            balancer.backward(losses, model.encoder.parameters(), mask=MASK)
        assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------- micro-batches


@every_balancer
def test_calls_add_up_as_backward_passes_do(name: str, model: Model) -> None:
    balancer, twin = eager(name), eager(name)
    separate = []
    for seed in range(3):
        twin.backward(model.losses(batch(seed)), model.encoder.parameters())
        separate.append(grads(model))
    for seed in range(3):
        balancer.backward(model.losses(batch(seed)), model.encoder.parameters())
    assert_close(grads(model), [a + b + c for a, b, c in zip(*separate, strict=True)])


@every_balancer
def test_gathered_micro_batches_are_balanced_as_one_batch(name: str, model: Model) -> None:
    balancer, twin = eager(name), eager(name)
    engine = AutogradEngine(model.encoder.parameters())
    for step in range(3):
        x = batch(step, rows=12)
        expected = twin.backward(model.losses(x), model.encoder.parameters())
        expected_grads = grads(model)
        first, second, last = ([loss / 3 for loss in model.losses(part)] for part in x.chunk(3))
        engine.gather(first)
        engine.gather(torch.stack(second))
        torch.testing.assert_close(balancer.backward(last, engine=engine), expected, **EXACT)
        assert_close(grads(model), expected_grads)


def test_a_task_may_be_missing_from_some_micro_batches(model: Model) -> None:
    engine = AutogradEngine(model.encoder.parameters())
    a, b = batch(0), batch(1)
    expected = AutogradEngine(model.encoder.parameters()).backward([*model.losses(a)[:2], model.losses(b)[3]])
    model.zero_grad()
    engine.gather([*model.losses(a)[:2], None, None])
    gradients = engine.backward([None, None, None, model.losses(b)[3]])
    assert gradients.mask == (True, True, False, True)
    torch.testing.assert_close(gradients.jacobian, expected.jacobian, **EXACT)
    torch.testing.assert_close(gradients.losses, expected.losses, **EXACT)


def test_what_was_gathered_can_be_discarded_and_must_fit(model: Model) -> None:
    engine = AutogradEngine(model.encoder.parameters())
    expected = engine.backward(model.losses(batch())).jacobian
    engine.gather(model.losses(batch(1)))
    with pytest.raises(ValueError, match="got 2 losses after micro-batches of 4"):
        engine.backward(model.losses(batch())[:2])
    engine.discard()
    assert torch.equal(engine.backward(model.losses(batch())).jacobian, expected)
    with pytest.raises(ValueError, match="pass `parameters`"):
        AutogradEngine().gather(model.losses(batch()))
    for kwargs in ({"low_memory": True}, {"group": None}, {"parameters": model.encoder.parameters()}):
        with pytest.raises(ValueError, match="give what describes an engine to the engine"):
            EqualWeights().backward(model.losses(batch()), engine=engine, **kwargs)


def test_an_engine_must_have_the_parameters_of_the_guidance(model: Model) -> None:
    aim = AIM(TASKS)
    aim.set_guidance(torch.zeros_like)
    with pytest.raises(ValueError, match="in the order of the guidance"):
        aim.backward(model.losses(batch()), engine=AutogradEngine())


# ---------------------------------------------------------------------------------------------- mixed precision


@every_balancer
@pytest.mark.parametrize("low_memory", [False, True])
def test_autocast_balances_in_full_precision(name: str, low_memory: bool) -> None:
    torch.manual_seed(0)
    model = Model()
    x = batch().float()
    inside, outside = eager(name), eager(name)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(x)
            assert model.encoder(x).dtype == torch.bfloat16
        expected = outside.backward(losses, model.encoder.parameters(), low_memory=low_memory)
        expected_grads = grads(model)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(x)
            actual = inside.backward(losses, model.encoder.parameters(), low_memory=low_memory)
        assert torch.equal(actual, expected)
        found = grads(model)
        assert {tensor.dtype for tensor in found} == {torch.float32}
        for a, b in zip(found, expected_grads, strict=True):
            assert torch.equal(a, b)


def test_losses_in_low_precision_and_parameters_of_several_precisions(model: Model) -> None:
    model.encoder[0].float()
    x = batch()
    z = model.encoder[2](torch.tanh(model.encoder[0](x.float())).double())
    losses = [(head(z) - task).pow(2).mean() for task, head in enumerate(model.heads)]
    losses[0] = losses[0].bfloat16()
    GradNorm(TASKS).backward(losses, model.encoder.parameters())
    for parameter in model.encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype


def test_the_task_major_engine_keeps_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4))
    engine = TaskMajorEngine(module, 2)
    x = torch.randn(10, 3)
    rows = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            with engine.record():
                losses = module(x).pow(2).view(2, -1).mean(1)
            gradients = engine.backward(losses)
            rows.append(gradients.jacobian.clone())
            assert gradients.gramian.dtype == torch.float64
            rows.append(gradients.gramian)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[3])
    with torch.autocast("cpu", torch.bfloat16), engine.record():
        assert module(x @ torch.eye(3)).dtype == torch.float32  # what comes in is in low precision


@every_balancer
def test_scaled_losses_scale_the_gradients(name: str, model: Model) -> None:
    factor = 2.0**16
    scaled, plain = eager(name), eager(name)
    for seed in range(4):
        expected = plain.backward(model.losses(batch(seed)), model.encoder.parameters())
        expected_grads = grads(model)
        losses = [factor * loss for loss in model.losses(batch(seed))]
        actual = scaled.backward(losses, model.encoder.parameters())
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
        assert_close([tensor / factor for tensor in grads(model)], expected_grads, rtol=1e-9, atol=1e-12)


def test_a_gradient_scaler_skips_what_overflows() -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    balancer, first = GradNorm(TASKS), [parameter.clone() for parameter in model.parameters()]
    skipped = 0
    for _ in range(20):
        optimizer.zero_grad()
        try:
            balancer.backward([scaler.scale(loss) for loss in model.losses(batch().float())])
        except (NonFiniteGradientError, ValueError):
            assert all(parameter.grad is None for parameter in model.parameters())
            skipped += 1
            scaler.update(scaler.get_scale() / 16)
            continue
        scaler.step(optimizer)
        scaler.update()
    assert 0 < skipped < 20
    for parameter, before in zip(model.parameters(), first, strict=True):
        assert bool(parameter.isfinite().all())
        assert not torch.equal(parameter, before)


# ---------------------------------------------------------------------------------------------- who shares what


def leaf(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64))


@every_balancer
@pytest.mark.parametrize("low_memory", [False, True])
def test_shared_by_all_by_some_by_one_by_none_and_tied(name: str, low_memory: bool) -> None:
    torch.manual_seed(0)
    everyone, some, nested, tied, own, never = (leaf(3, 3) for _ in range(6))
    frozen = leaf(3, 3).requires_grad_(False)
    x = batch()

    def losses() -> list[Tensor]:
        h = (x @ everyone @ frozen).tanh()
        inner = (h @ some).relu() @ nested
        return [
            (inner @ tied).pow(2).mean(),
            (inner + h @ tied + h @ everyone).sin().mean() + 1,
            (h @ tied @ own @ tied).pow(2).mean(),
        ]

    rows = [
        torch.autograd.grad(loss, (everyone, some, nested, tied), allow_unused=True, retain_graph=True)
        for loss in losses()
    ]
    (of_own,) = torch.autograd.grad(losses()[2], own)
    balancer = eager(name, 3)
    weight = balancer.backward(losses(), low_memory=low_memory)
    if name != "rgb":  # its update is not a combination of the rows
        for index, parameter in enumerate((everyone, some, nested, tied)):
            parts = [row[index] for row in rows]
            expected = sum(w * part for w, part in zip(weight, parts, strict=True) if part is not None)
            torch.testing.assert_close(parameter.grad, expected, **EXACT)
    torch.testing.assert_close(own.grad, of_own, **EXACT)
    assert never.grad is None
    assert frozen.grad is None


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_listed_parameter_may_be_out_of_every_loss_reach_and_an_unlisted_one_in_several(low_memory: bool) -> None:
    torch.manual_seed(0)
    shared, left_out, unreached = leaf(3), leaf(3), leaf(3)
    losses = [(shared * left_out).sum(), (2 * shared * left_out).sum()]
    EqualWeights().backward(losses, [shared, unreached], low_memory=low_memory)
    torch.testing.assert_close(shared.grad, 3 * left_out.detach())
    torch.testing.assert_close(left_out.grad, 3 * shared.detach())
    assert unreached.grad is None  # as after PyTorch's own backward pass


@pytest.mark.parametrize("low_memory", [False, True])
def test_gradients_of_private_parameters_do_not_share_memory(low_memory: bool) -> None:
    shared, a, b = leaf(3), leaf(3), leaf(3)
    EqualWeights().backward([(shared + a + b).sum(), shared.sum()], low_memory=low_memory)
    assert a.grad is not None
    assert b.grad is not None
    a.grad.mul_(2)
    assert torch.equal(b.grad, torch.ones(3, dtype=torch.float64))


def test_training_with_a_mask_and_heads_of_several_depths_lowers_every_loss(model: Model) -> None:
    model.heads[0] = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = batch()
    before = [loss.item() for loss in model.losses(x)]
    optimizer, balancer = torch.optim.Adam(model.parameters(), 0.01), RGB()
    for step in range(60):
        optimizer.zero_grad()
        mask = [task != step % 5 for task in range(TASKS)]
        balancer.backward(model.losses(x), model.encoder.parameters(), mask=mask)
        optimizer.step()
    assert all(loss.item() < old for loss, old in zip(model.losses(x), before, strict=True))


def test_a_copy_of_a_model_is_trained_by_itself(model: Model) -> None:
    twin = copy.deepcopy(model)
    EqualWeights().backward(model.losses(batch()))
    assert all(parameter.grad is None for parameter in twin.parameters())


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_shared_parameter_may_be_a_scalar(low_memory: bool) -> None:
    scale = nn.Parameter(torch.tensor(2.0))
    make_balancer("equal", 2).backward([3 * scale, scale**2], low_memory=low_memory)
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(3 + 2 * 2)
