"""What every registered balancer does, whatever its method; and GradNorm against its paper."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtrl import checkpoint
from mtrl.balancers import Balance, Balancer, Deferred, GradNorm, _few_tasks, make_balancer, names, register_balancer
from mtrl.balancers.gradnorm import project_weights
from mtrl.balancers.pcgrad import SMALLEST, project
from mtrl.gradients import NonFiniteGradientError, ParameterLayout, TaskGradients, graph_leaves

every_balancer = pytest.mark.parametrize("name", names())
# Settings under which a method's state moves from the first step on.
EAGER: dict[str, dict[str, Any]] = {"gradnorm": {"warmup_steps": 2, "lr": 0.1}, "aim": {"lr": 0.1}}
EAGER["gradnorm_pcgrad"] = EAGER["gradnorm"]
# Methods whose answer depends on a random order of so many tasks or more: there it is the distribution that permutes.
RANDOM_FROM = {"pcgrad": 3, "gradnorm_pcgrad": 3, "random": 2}


def eager(name: str, num_tasks: int, **kwargs: Any) -> Balancer:
    return make_balancer(name, num_tasks, **EAGER.get(name, {}), **kwargs)


def problem(num_tasks: int, seed: int = 0, size: int = 20, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(num_tasks, size, generator=generator, dtype=torch.float64)
    losses = torch.rand(num_tasks, generator=generator, dtype=torch.float64) + 0.1
    return jacobian.to(dtype), losses.to(dtype)


def run(balancer: Balancer, seeds: range, num_tasks: int = 3) -> list[Tensor]:
    return [balancer.combine(*problem(num_tasks, seed)) for seed in seeds]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------------------------------- every balancer

EDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda J: J,
    "one zero row": lambda J: J * torch.tensor([0.0, 1.0, 1.0])[:, None],
    "all zero rows": lambda J: J * 0,
    "identical rows": lambda J: J[:1].expand(3, -1).clone(),
    "opposed rows": lambda J: torch.stack((J[0], -J[0], J[1])),
    "sum of zero": lambda J: torch.stack((J[0], J[1], -J[0] - J[1])),
    "orthogonal rows": lambda J: torch.eye(3, J.shape[1]),
    "tiny": lambda J: 1e-12 * J / J.norm(dim=1, keepdim=True),
    "huge": lambda J: 1e12 * J / J.norm(dim=1, keepdim=True),
    "tiny and huge": lambda J: torch.tensor([1e-12, 1.0, 1e12])[:, None] * J / J.norm(dim=1, keepdim=True),
}


@every_balancer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("edge", EDGES)
def test_the_update_is_finite_whatever_the_rows(name: str, edge: str, dtype: torch.dtype) -> None:
    balancer = eager(name, 3)
    for seed in range(6):
        jacobian, losses = problem(3, seed, dtype=dtype)
        jacobian = EDGES[edge](jacobian).to(dtype)
        gradients = TaskGradients(jacobian)
        with torch.no_grad():
            answer = balancer(gradients, losses)
        update = answer.update(gradients)
        assert update.shape == (20,)
        assert update.dtype == dtype
        assert answer.coefficients.shape == (3,)
        for tensor in (update, answer.coefficients, *answer.diagnostics.values()):
            assert bool(tensor.isfinite().all())
            assert not tensor.requires_grad
        assert all(tensor.shape in ((), (3,), (3, 3)) for tensor in answer.diagnostics.values())
    assert all(bool(tensor.isfinite().all()) for tensor in balancer.parameters())


@pytest.mark.parametrize("name", [name for name in names() if name != "memory"])  # which turns any update
@pytest.mark.parametrize("row_norm", [1e-12, 1.0, 1e12])
def test_the_gradient_of_one_task_is_left_alone(name: str, row_norm: float) -> None:
    balancer = eager(name, 1)
    for seed in range(5):
        jacobian, losses = problem(1, seed)
        torch.testing.assert_close(balancer.combine(row_norm * jacobian, losses), row_norm * jacobian[0])


@every_balancer
@pytest.mark.parametrize("num_tasks", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_of_tasks_permutes_the_coefficients(name: str, num_tasks: int, seed: int) -> None:
    if num_tasks >= RANDOM_FROM.get(name, math.inf):
        pytest.skip("it makes random choices by the tasks' numbers")
    permutation = torch.randperm(num_tasks, generator=torch.Generator().manual_seed(seed))
    straight, permuted = eager(name, num_tasks), eager(name, num_tasks)
    for step in range(4):
        jacobian, losses = problem(num_tasks, 100 * seed + step)
        one = straight(TaskGradients(jacobian), losses)
        other = permuted(TaskGradients(jacobian[permutation]), losses[permutation])
        torch.testing.assert_close(other.coefficients, one.coefficients[permutation])
        for key, tensor in one.diagnostics.items():
            for axis in range(tensor.ndim):
                tensor = tensor.index_select(axis, permutation)  # noqa: PLW2901
            torch.testing.assert_close(other.diagnostics[key], tensor)


@every_balancer
def test_scale_mean_is_scale_sum_over_the_number_of_tasks(name: str) -> None:
    total, mean = eager(name, 3, scale="sum"), eager(name, 3, scale="mean")
    for a, b in zip(run(total, range(5)), run(mean, range(5)), strict=True):
        torch.testing.assert_close(a / 3, b, rtol=1e-12, atol=0)


@every_balancer
def test_state_dict_carries_all_that_the_next_steps_depend_on(name: str, tmp_path: Any) -> None:
    original = eager(name, 3)
    run(original, range(7))
    checkpoint.save(tmp_path / "state.zip", original.state_dict())
    restored, from_file, twin = eager(name, 3), eager(name, 3), copy.deepcopy(original)
    restored.load_state_dict(original.state_dict())
    from_file.load_state_dict(checkpoint.load(tmp_path / "state.zip"))
    expected = run(original, range(7, 14))  # the copies must not follow
    assert_same(run(restored, range(7, 14)), expected)
    assert_same(run(from_file, range(7, 14)), expected)
    assert_same(run(twin, range(7, 14)), expected)


@every_balancer
def test_reset_restores_the_initial_behaviour(name: str) -> None:
    balancer = eager(name, 3)
    expected = run(balancer, range(6))
    balancer.record_returns(torch.tensor([1.0, 2.0, 3.0]))
    balancer.reset()
    assert_same(run(balancer, range(6)), expected)
    assert_same(run(eager(name, 3), range(6)), expected)


@every_balancer
def test_returns_may_be_recorded_and_may_be_unknown(name: str) -> None:
    balancer = eager(name, 3)
    balancer.record_returns(torch.tensor([math.nan, -100.0, 200.0]))
    assert all(bool(update.isfinite().all()) for update in run(balancer, range(4)))


@every_balancer
def test_arguments_are_not_changed(name: str) -> None:
    balancer = eager(name, 3)
    for seed in range(4):
        jacobian, losses = problem(3, seed)
        before = jacobian.clone(), losses.clone()
        balancer.combine(jacobian, losses)
        assert torch.equal(jacobian, before[0])
        assert torch.equal(losses, before[1])


@every_balancer
def test_earlier_answers_stay_as_they_were(name: str) -> None:
    balancer = eager(name, 3)
    answers: list[Balance] = [balancer(TaskGradients(J), losses) for J, losses in (problem(3, s) for s in range(3))]
    before = copy.deepcopy(answers)
    run(balancer, range(3, 8))
    for answer, old in zip(answers, before, strict=True):
        assert torch.equal(answer.coefficients, old.coefficients)
        assert_same(list(answer.diagnostics.values()), list(old.diagnostics.values()))


@every_balancer
def test_a_wrong_number_of_tasks_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="this balancer was made for 2 tasks and got 3"):
        eager(name, 2).combine(*problem(3))
    jacobian, losses = problem(3)
    with pytest.raises(ValueError, match=r"got losses of shape \(2,\) and 3 gradients"):
        eager(name, 3).combine(jacobian, losses[:2])
    with pytest.raises(ValueError, match=r"got losses of shape \(3, 1\) and 3 gradients"):
        eager(name, 3).combine(jacobian, losses[:, None])


@every_balancer
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_names_its_task_and_changes_nothing(name: str, bad: float) -> None:
    balancer = eager(name, 3)
    run(balancer, range(4))
    jacobian, losses = problem(3)
    jacobian[1, 5] = bad
    twin = copy.deepcopy(balancer)
    with pytest.raises(NonFiniteGradientError, match="task 1"):
        balancer.combine(jacobian, losses)
    assert_same(run(balancer, range(4)), run(twin, range(4)))


@every_balancer
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_loss_that_the_method_cannot_use_names_its_task(name: str, bad: float) -> None:
    balancer = eager(name, 3)
    jacobian, losses = problem(3)
    losses[2] = bad
    if balancer.needs_positive_losses:
        with pytest.raises(ValueError, match="needs finite losses >= 0; task 2 has"):
            balancer.combine(jacobian, losses)
    elif math.isfinite(bad):
        assert bool(balancer.combine(jacobian, losses).isfinite().all())


@every_balancer
def test_zero_losses_are_allowed(name: str) -> None:
    balancer = eager(name, 3)
    for seed in range(5):
        jacobian, losses = problem(3, seed)
        assert bool(balancer.combine(jacobian, losses * (seed > 2)).isfinite().all())


@pytest.mark.parametrize("name", ["Gradnorm", "", "sum"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"^unknown balancer '.*'; balancers are .*") as error:
        make_balancer(name, 2)
    assert all(known in str(error.value) for known in names())


@every_balancer
def test_an_unknown_argument_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"^balancer '{name}' has no argument 'alhpa'; it has .*scale"):
        make_balancer(name, 2, alhpa=1)


@every_balancer
@pytest.mark.parametrize(("num_tasks", "kwargs"), [(0, {}), (-1, {}), (2, {"scale": "max"})])
def test_a_value_out_of_range_is_refused_in_one_line(name: str, num_tasks: int, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_tasks is|unknown scale 'max'; choose from sum, mean") as error:
        make_balancer(name, num_tasks, **kwargs)
    assert "\n" not in str(error.value)


def test_a_registered_balancer_is_made_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.balancers._REGISTRY", {})

    class First(Balancer):
        def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
            coefficients = torch.zeros(gradients.num_tasks)
            coefficients[0] = 1
            return Balance(coefficients, direction=torch.ones(gradients.jacobian.shape[1]))

    register_balancer("first", First)
    assert names() == ("first",)
    jacobian = torch.randn(3, 4)
    losses = torch.ones(3)
    assert torch.equal(make_balancer("first", 3).combine(jacobian, losses), jacobian[0] + 1)
    torch.testing.assert_close(make_balancer("first", 3, scale="mean").combine(jacobian, losses), (jacobian[0] + 1) / 3)


@every_balancer
def test_guidance_is_taken_by_those_that_want_it_alone(name: str) -> None:
    balancer = make_balancer(name, 3)
    balancer.set_guidance(None)
    if balancer.wants_guidance:
        balancer.set_guidance(torch.zeros_like, eta=0.1)
    else:
        with pytest.raises(ValueError, match=f"^{type(balancer).__name__} takes no guidance$"):
            balancer.set_guidance(torch.zeros_like, eta=0.1)


@every_balancer
def test_how_much_of_the_gradients_it_looks_at(name: str) -> None:
    asked = set()

    class Watched(TaskGradients):
        """Notes what it is asked for, besides the check of its rows."""

        @property
        def jacobian(self) -> Tensor:
            asked.add("rows")
            return super().jacobian

        @property
        def gramian(self) -> Tensor:
            asked.add("gramian")
            return super().gramian

        def prepare(self, looks_at: str) -> None:
            pass

    balancer = make_balancer(name, 3)
    jacobian, losses = problem(3, 0)
    balancer(Watched(jacobian), losses)
    assert bool(asked) == (balancer.looks_at != "nothing")
    assert ("gramian" in asked) == (balancer.looks_at == "gramian")


# ---------------------------------------------------------------------------------------------- backward


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        self.register_buffer("x", torch.randn(5, 3))

    def losses(self) -> list[Tensor]:
        features = self.encoder(self.x)
        return [scale * head(features).pow(2).mean() for scale, head in zip((1.0, 3.0), self.heads, strict=True)]

    def found(self) -> list[Tensor]:
        """The shared parameters in the order of the graph, which is that of a consensus over them."""
        shared = {id(p) for p in self.encoder.parameters()}
        return [leaf for leaf in graph_leaves(self.losses()[0]) if id(leaf) in shared]

    def gradients(self, parameters: list[Tensor]) -> TaskGradients:
        rows = [torch.autograd.grad(loss, parameters) for loss in (self.losses()[0], self.losses()[1])]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        return TaskGradients(jacobian, ParameterLayout(parameters).slice_of(self.encoder[2].weight))


@pytest.fixture
def model() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads().double()


@every_balancer
@pytest.mark.parametrize("gather", [list, torch.stack, lambda losses: [loss.reshape(1) for loss in losses]])
@pytest.mark.parametrize("listed", [False, True])
def test_backward_balances_shared_parameters_and_leaves_heads_alone(
    name: str, gather: Any, listed: bool, model: TwoHeads
) -> None:
    balancer = eager(name, 2)
    ordinary = torch.autograd.grad(sum(model.losses()), list(model.heads.parameters()))
    shared = list(model.encoder.parameters()) if listed else model.found()
    total = torch.zeros(ParameterLayout(shared).size, dtype=torch.float64)
    for times in range(1, 6):  # `.grad` adds up as in torch
        before = copy.deepcopy(balancer)
        coefficients = balancer.backward(gather(model.losses()), iter(shared) if listed else None)
        assert coefficients.shape == (2,)
        gradients = model.gradients(shared)
        answer = before(gradients, torch.stack(model.losses()).detach())
        torch.testing.assert_close(coefficients, answer.coefficients)
        total += answer.update(gradients)
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in shared]), total)
        for parameter, gradient in zip(model.heads.parameters(), ordinary, strict=True):
            torch.testing.assert_close(parameter.grad, times * gradient)
    torch.optim.SGD(model.parameters(), 0.1).step()


@every_balancer
def test_combine_backward_and_a_call_agree(name: str) -> None:
    by_call, by_combine, by_backward = (eager(name, 3) for _ in range(3))
    for seed in range(6):
        jacobian, losses = problem(3, seed)
        gradients = TaskGradients(jacobian)
        answer = by_call(gradients, losses)
        update = answer.update(gradients)
        assert torch.equal(by_combine.combine(jacobian, losses), update)
        # A vector: there is no matrix, so norms are measured on all of it, as in the other two.
        parameter = nn.Parameter(torch.zeros(20, dtype=torch.float64))
        coefficients = by_backward.backward(
            [row @ parameter + loss for row, loss in zip(jacobian, losses, strict=True)]
        )
        torch.testing.assert_close(coefficients, answer.coefficients)
        torch.testing.assert_close(parameter.grad, update)


@every_balancer
def test_a_few_steps_of_training_lower_the_losses(name: str, model: TwoHeads) -> None:
    balancer, optimizer = eager(name, 2), torch.optim.SGD(model.parameters(), 0.02)
    before = sum(model.losses()).item()
    for _ in range(50):
        optimizer.zero_grad()
        balancer.backward(model.losses())
        optimizer.step()
    assert sum(model.losses()).item() < 0.7 * before


# ---------------------------------------------------------------------------------------------- project_weights

floors = st.one_of(st.just(0.0), st.floats(0, 0.999))
positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


@given(positive, floors)
@settings(deadline=None, max_examples=200)
def test_projected_weights(values: list[float], floor: float) -> None:
    weights = np.array(values)
    projected = project_weights(weights, floor)
    assert weights.tolist() == values
    assert projected.sum() == pytest.approx(len(values), rel=1e-12)
    assert projected.min() >= floor * (1 - 1e-12)
    assert (np.diff(projected[weights.argsort()]) >= -1e-12).all()
    np.testing.assert_allclose(project_weights(projected, floor), projected, rtol=1e-9, atol=1e-12)
    free = projected > floor * (1 + 1e-9)
    if free.sum() > 1:  # those above the floor keep their ratios
        ratios = projected[free] / weights[free]
        np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-9)


# ---------------------------------------------------------------------------------------------- GradNorm


def gradnorm(num_tasks: int, **kwargs: Any) -> GradNorm:
    return GradNorm(num_tasks, **{"warmup_steps": 1, "weight_floor": 0.0, **kwargs})


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_weight_gradient_is_autograds_double_backward(alpha: float, seed: int) -> None:
    torch.manual_seed(seed)
    tasks = 4
    encoder = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    heads = [nn.Linear(5, 2).double() for _ in range(tasks)]
    x, ys = torch.randn(8, 3, dtype=torch.float64), torch.randn(tasks, 8, 2, dtype=torch.float64)
    shared = encoder[2].weight
    losses = torch.stack([(h(encoder(x).tanh()) - y).pow(2).mean() for h, y in zip(heads, ys, strict=True)])
    initial = torch.rand(tasks, dtype=torch.float64) + 0.5
    drawn = torch.rand(tasks, dtype=torch.float64) + 0.1
    weights = (drawn * (tasks / drawn.sum())).requires_grad_()

    weighted = weights * losses
    norms = torch.stack([torch.autograd.grad(loss, shared, create_graph=True)[0].norm() for loss in weighted])
    rates = (losses / initial) / (losses / initial).mean()
    targets = (norms.mean() * rates**alpha).detach()
    (expected,) = torch.autograd.grad((norms - targets).abs().sum(), weights)

    balancer = gradnorm(tasks, alpha=alpha)
    balancer.initial_losses.copy_(initial)
    plain = torch.stack([torch.autograd.grad(loss, shared, retain_graph=True)[0].norm() for loss in losses])
    own_rates = balancer.training_rates(losses.detach().numpy())
    gradient, target, mean = balancer.weight_gradient(weights.detach().numpy(), plain.numpy(), own_rates)
    torch.testing.assert_close(torch.from_numpy(target), targets, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.from_numpy(gradient), expected, rtol=1e-6, atol=0)
    assert mean == pytest.approx(norms.mean().item())


def test_the_first_step_is_the_one_by_hand() -> None:
    balancer = gradnorm(2, alpha=0.0, lr=0.1)
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    answer = balancer(TaskGradients(jacobian), torch.tensor([2.0, 5.0]))
    # G = (1, 3), target and mean 2: log w = 0.1 * (1 / 2, -3 / 2).
    assert answer.coefficients.tolist() == [1, 1]
    assert answer.diagnostics["norm"].tolist() == [1, 3]
    assert answer.diagnostics["target"].tolist() == [2, 2]
    assert answer.diagnostics["rate"].tolist() == [1, 1]
    high, low = math.exp(0.05), math.exp(-0.15)
    expected = torch.tensor([2 * high, 2 * low], dtype=torch.float64) / (high + low)
    torch.testing.assert_close(balancer.weights, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("lr", [0.001, 0.02, 0.5])
def test_plain_steps_are_those_of_the_pseudocode(lr: float) -> None:
    """GradNorm as it is often written, by autograd, without floors and with the first batch as L(0)."""
    balancer = GradNorm(3, warmup_steps=1, weight_floor=0, initial_loss_floor=1e-9, lr=lr, weight_steps="plain")
    weights, first = np.ones(3), None
    for seed in range(12):
        jacobian, losses = problem(3, seed)
        assert balancer.weights.numpy() == pytest.approx(weights)
        balancer.combine(jacobian, losses)
        first = losses if first is None else first
        rates = losses / first
        rates = rates / rates.mean()
        w = torch.tensor(weights, requires_grad=True)
        norms = w * jacobian.norm(dim=1)
        target = (norms.mean() * rates**1.5).detach()
        (slope,) = torch.autograd.grad((norms - target).abs().sum(), w)
        stepped = np.maximum(weights - lr * slope.numpy(), 0)
        stepped = stepped if stepped.any() else weights
        weights = 3 * stepped / stepped.sum()
        balancer.check_state(4)  # a training with a weight that has come to 0 is taken up again
    assert (lr == 0.5) == (balancer.weights == 0).any()


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_many_steps_descend_the_relative_loss_in_the_log_weights_by_autograd(alpha: float) -> None:
    balancer = gradnorm(3, alpha=alpha, lr=0.05)
    log_weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.SGD([log_weights], lr=0.05)
    initial = problem(3, 0)[1]
    for seed in range(40):
        jacobian, losses = problem(3, seed)
        balancer.combine(jacobian, losses)
        norms = log_weights.exp() * jacobian.norm(dim=1)
        rates = losses / initial / (losses / initial).mean()
        descent.zero_grad()
        mean = norms.mean().detach()
        ((norms - mean * rates**alpha).abs().sum() / mean).backward()
        descent.step()
        with torch.no_grad():
            log_weights += math.log(3) - log_weights.logsumexp(0)
        torch.testing.assert_close(balancer.weights, log_weights.exp().detach(), rtol=1e-9, atol=0)


def test_reset_forgets_returns() -> None:
    balancer = gradnorm(2, progress="return", return_range=(0.0, 100.0))
    balancer.record_returns(torch.tensor([0.0, 90.0]))
    assert balancer.training_rates(np.ones(2)).tolist() != [1, 1]
    balancer.reset()
    assert balancer.training_rates(np.ones(2)).tolist() == [1, 1]


def test_coefficients_are_the_weights_before_the_step() -> None:
    balancer = gradnorm(3)
    for seed in range(10):
        before = balancer.weights.clone()
        answer = balancer(TaskGradients(problem(3, seed)[0]), problem(3, seed)[1])
        assert torch.equal(answer.coefficients, before)
        assert torch.equal(answer.diagnostics["weight"], before)
        assert not torch.equal(balancer.weights, before)


def test_alpha_zero_equalises_the_weighted_norms() -> None:
    balancer = gradnorm(4, alpha=0.0, lr=0.02)
    norms = torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
    jacobian, losses = norms.diag(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    weighted = []
    for step in range(1500):
        balancer.combine(jacobian, losses * (1 - step / 3000))
        weighted.append(balancer.weights * norms)
    final = torch.stack(weighted[-200:]).mean(0)  # the sign makes it hover
    torch.testing.assert_close(final / final.mean(), torch.ones_like(final), rtol=0.03, atol=0)


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e12])] * 6), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.05, 0.5, 0.99]),
    st.sampled_from([0.0, 1.5, 4.0]),
)
@settings(deadline=None, max_examples=60)
def test_weights_sum_to_the_number_of_tasks_and_stay_above_the_floor(
    steps: list[tuple[float, ...]], floor: float, alpha: float
) -> None:
    balancer = gradnorm(3, weight_floor=floor, alpha=alpha, lr=1.0)
    for numbers in steps * 3:
        balancer.combine(torch.tensor(numbers[:3]).diag(), torch.tensor(numbers[3:]))
        weights = balancer.weights
        assert weights.sum().item() == pytest.approx(3, rel=1e-9)
        assert weights.min().item() >= floor * (1 - 1e-9)


def test_the_default_floor_stops_a_collapse_and_is_reported() -> None:
    balancer = GradNorm(3, warmup_steps=1, lr=0.1)
    jacobian = torch.tensor([0.01, 1.0, 1000.0]).diag()
    for _ in range(200):
        answer = balancer(TaskGradients(jacobian), torch.ones(3))
    assert answer.coefficients.min().item() == pytest.approx(0.1)
    assert answer.diagnostics["floor_active"].tolist() == [0, 0, 1]
    fresh = GradNorm(3, warmup_steps=1)(TaskGradients(jacobian), torch.ones(3))
    assert fresh.diagnostics["floor_active"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("warmup", [1, 2, 10])
def test_the_initial_loss_is_the_mean_over_the_warm_up_and_stays(warmup: int) -> None:
    balancer = GradNorm(3, warmup_steps=warmup)
    losses = []
    for seed in range(warmup):
        jacobian, loss = problem(3, seed)
        losses.append(loss)
        if seed > 0:
            assert torch.equal(balancer.weights, torch.ones(3, dtype=torch.float64))
        balancer.combine(jacobian, loss)
    expected = torch.stack(losses).mean(0)
    moved = not torch.equal(balancer.weights, torch.ones(3, dtype=torch.float64))
    assert moved == (warmup == 1)  # one step of warm-up is the paper's rule: L(0) is there at once
    for seed in range(20):
        torch.testing.assert_close(balancer.initial_losses, expected, rtol=1e-12, atol=0)
        balancer.combine(problem(3, seed)[0], 100 * problem(3, seed)[1])
    assert not torch.equal(balancer.weights, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("slow", [0, 1])
def test_a_slower_task_gets_more_weight_at_equal_norms(slow: int) -> None:
    balancer = gradnorm(2)
    losses = torch.tensor([5.0, 0.2])  # their own size does not matter
    balancer.combine(torch.eye(2), losses)
    losses[1 - slow] *= 0.1
    for _ in range(20):
        answer = balancer(TaskGradients(torch.eye(2)), losses)
    assert balancer.weights[slow] > 1.1
    assert balancer.weights[1 - slow] < 0.9
    assert answer.diagnostics["rate"][slow].item() == pytest.approx(1 / 0.55)


@pytest.mark.parametrize("slow", [0, 1])
def test_progress_by_return_gives_the_task_further_from_done_more_weight(slow: int) -> None:
    balancer = gradnorm(2, progress="return", return_range=(-200.0, 200.0))
    returns = torch.tensor([150.0, 150.0])
    returns[slow] = -100.0
    balancer.record_returns(returns)
    for seed in range(20):
        answer = balancer(TaskGradients(torch.eye(2)), -problem(2, seed)[1])  # losses play no part, nor does their sign
    assert balancer.weights[slow] > 1.1
    assert balancer.weights[1 - slow] < 0.9
    left = torch.tensor([300 / 400, 50 / 400], dtype=torch.float64)  # of the way
    assert answer.diagnostics["rate"][slow].item() == pytest.approx((left / left.mean())[0].item())


def test_progress_by_return_without_episodes_and_beyond_the_range() -> None:
    balancer = gradnorm(3, progress="return", return_range=(0.0, 100.0))
    losses = np.ones(3)
    assert balancer.training_rates(losses).tolist() == [1, 1, 1]  # nothing known: no progress anywhere
    balancer.record_returns(torch.tensor([math.nan, -50.0, 1000.0]))
    rates = balancer.training_rates(losses)
    np.testing.assert_allclose(rates, np.array([1, 1, 0.01]) / 0.67)


def test_a_floor_under_the_initial_loss_tames_a_first_loss_of_zero() -> None:
    balancer = gradnorm(2, initial_loss_floor=0.02, weight_floor=0.1)
    balancer.combine(torch.eye(2), torch.tensor([0.0, 1.0]))
    answer = balancer(TaskGradients(torch.eye(2)), torch.tensor([0.5, 0.5]))
    left = torch.tensor([0.5 / 0.01, 0.5 / 1.0], dtype=torch.float64)  # 0.01 = 0.02 times the mean of 0 and 1
    torch.testing.assert_close(answer.diagnostics["rate"], left / left.mean())


def test_initial_losses_that_are_all_zero_say_nothing_about_rates() -> None:
    balancer = gradnorm(2)
    balancer.combine(torch.eye(2), torch.zeros(2))
    answer = balancer(TaskGradients(torch.eye(2)), torch.tensor([1e12, 1.0]))
    assert answer.diagnostics["rate"].tolist() == [1, 1]


def test_only_the_last_shared_layer_is_measured() -> None:
    jacobian = torch.randn(3, 10)
    answer = gradnorm(3)(TaskGradients(jacobian, slice(4, 8)), torch.ones(3))
    torch.testing.assert_close(answer.diagnostics["norm"], jacobian[:, 4:8].double().norm(dim=1))


def test_rows_whose_squares_overflow_do_no_harm() -> None:
    balancer = gradnorm(2, alpha=0.0, lr=0.1)
    for _ in range(5):
        balancer.combine(torch.tensor([[1e37, 1e37], [3e37, 3e37]]), torch.ones(2))
    assert balancer.weights[0] > 1 > balancer.weights[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha": math.nan}, "alpha is nan; it must be between 0 and 100"),
        ({"alpha": -1.0}, "alpha is -1.0; it must be between 0 and 100"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"lr": math.nan}, "lr is nan; it must be above 0"),
        ({"warmup_steps": 0}, "warmup_steps is 0; it must be at least 1"),
        ({"weight_floor": 1.0}, "weight_floor is 1.0; it must be at least 0 and below 1"),
        ({"weight_floor": -0.1}, "weight_floor is -0.1; it must be at least 0 and below 1"),
        ({"initial_loss_floor": 0.0}, "initial_loss_floor is 0.0; it must be above 0 and at most 1"),
        ({"initial_loss_floor": 1.1}, "initial_loss_floor is 1.1; it must be above 0 and at most 1"),
        ({"progress": "reward"}, "unknown progress 'reward'; choose from loss, return"),
        ({"progress": "return"}, "return_range is None; progress='return' needs"),
        ({"progress": "return", "return_range": (1.0, 1.0)}, r"return_range is \(1.0, 1.0\)"),
        ({"progress": "return", "return_range": (0.0, math.inf)}, r"return_range is \(0.0, inf\)"),
    ],
)
def test_gradnorm_refuses_values_out_of_range(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        make_balancer("gradnorm", 2, **kwargs)
    assert "\n" not in str(error.value)


def test_the_weights_do_not_depend_on_the_scale_of_the_gradients() -> None:
    plain, scaled = gradnorm(3), gradnorm(3)
    for seed in range(20):
        jacobian, losses = problem(3, seed)
        plain.combine(jacobian, losses)
        scaled.combine(jacobian * 1e-9 ** (seed % 2), losses)
    torch.testing.assert_close(plain.weights, scaled.weights, rtol=1e-9, atol=0)


def test_the_state_stays_in_float64_on_the_cpu() -> None:
    balancer = gradnorm(3, lr=0.1)
    run(balancer, range(3))
    before = copy.deepcopy(balancer)
    halved = balancer.half().to("meta")
    assert {name: (t.dtype, t.device) for name, t in halved.state_dict().items()} == {
        name: (t.dtype, t.device) for name, t in before.state_dict().items()
    }
    assert_same(run(halved, range(3, 6)), run(before, range(3, 6)))


@every_balancer
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_told_from_rows_whose_squares_overflow(name: str, bad: float) -> None:
    balancer, losses = eager(name, 3), torch.ones(3)
    jacobian = torch.full((3, 10), 1e37)
    assert bool(balancer.combine(jacobian, losses).isfinite().all())
    jacobian[2, 3] = bad
    with pytest.raises(NonFiniteGradientError, match="task 2"):
        balancer.combine(jacobian, losses)


def test_diagnostics_are_worked_out_once_and_only_when_somebody_looks():
    calls = []

    def make():
        calls.append(1)
        return {"weight": torch.ones(2)}

    diagnostics = Balance(torch.ones(2), diagnostics=Deferred(make)).diagnostics
    assert not calls
    assert list(diagnostics) == ["weight"]
    assert len(diagnostics) == 1
    assert diagnostics["weight"].tolist() == [1, 1]
    assert calls == [1]
    for again in (copy.deepcopy(diagnostics), pickle.loads(pickle.dumps(Deferred(make)))):
        assert torch.equal(again["weight"], torch.ones(2))


@every_balancer
def test_diagnostics_looked_at_late_are_those_of_their_call(name: str) -> None:
    early, late = eager(name, 3), eager(name, 3)
    answers, seen = [], []
    for seed in range(4):
        rows = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        losses = torch.tensor([1.0, 2.0, 3.0]) + seed
        seen.append({key: tensor.clone() for key, tensor in early(TaskGradients(rows), losses).diagnostics.items()})
        answers.append(late(TaskGradients(rows.clone()), losses))
    for answer, at_once in zip(answers, seen, strict=True):
        assert answer.diagnostics.keys() == at_once.keys()
        assert_same(list(answer.diagnostics.values()), list(at_once.values()))


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 20])
def test_pcgrad_projects_alike_by_numbers_and_by_arrays(num_tasks):
    rng = np.random.default_rng(num_tasks)
    rows = rng.standard_normal((num_tasks, 5))
    gramian = rows @ rows.T
    others = [[other for other in range(num_tasks) if other != task] for task in range(num_tasks)]
    partners = [rng.permutation(others_of_one).tolist() for others_of_one in others]
    few, many = (form(gramian.tolist(), partners, SMALLEST) for form in (_few_tasks.project, project))
    np.testing.assert_allclose(few[0], many[0], rtol=1e-12)
    np.testing.assert_array_equal(few[1], many[1])
    assert num_tasks < 3 or sum(few[1]) > 0


def test_coefficients_that_are_no_tensor_are_refused_where_they_are_given():
    with pytest.raises(TypeError, match=r"^the coefficients of a Balance are a list, not a tensor \(T,\)$"):
        Balance([1.0, 2.0])
