"""AIM against its own definition in full dimension, its guidance against finite differences, and what it learns."""

import copy
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mtrl.balancers import AIM, make_balancer
from mtrl.gradients import NonFiniteGradientError, TaskGradients
from mtrl.guidance import LookaheadGuidance, combined

T, D = 4, 15
KINDS = [("matrix", False), ("scalar", False), ("matrix", True)]
only_guidance = {"magnitude_weight": 0.0, "progress_weight": 0.0}


class Quadratic:
    """`L_guide(theta) = (theta - optimum)^T A (theta - optimum) / 2` and where theta stands."""

    def __init__(self, seed: int = 0, size: int = D) -> None:
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        self.A = root @ root.T / size
        self.theta, self.optimum = torch.randn(2, size, generator=generator, dtype=torch.float64)

    def loss(self, theta: Tensor) -> Tensor:
        return (theta - self.optimum) @ self.A @ (theta - self.optimum) / 2

    def __call__(self, step: Tensor) -> Tensor:
        return self.A @ (self.theta - step - self.optimum)


def problem(seed: int, tasks: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)[:tasks, None]
    jacobian = torch.randn(tasks, D, generator=generator, dtype=torch.float64)
    return scales * (jacobian + 0.5 * jacobian[0]), torch.rand(tasks, generator=generator, dtype=torch.float64)


def intervened(jacobian: Tensor, tau: Tensor, k: float = 10.0, gate: bool = False) -> Tensor:
    """`sum_i g_i'`, pair by pair as the paper writes it, and with gates each row with itself."""
    rows = []
    for i, g_i in enumerate(jacobian):
        row = g_i
        for j, g_j in enumerate(jacobian):
            if j != i or gate:
                threshold = tau if tau.ndim == 0 else tau[i, j]
                w = torch.sigmoid(k * (threshold - torch.cosine_similarity(g_i, g_j, 0)))
                row = row - w * (g_i @ g_j) / (g_j @ g_j) * g_j
        rows.append(row)
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize(("kind", "gate"), KINDS)
@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("guided", [False, True])
def test_fifty_steps_of_the_policy_are_those_of_autograd_in_full_dimension(
    kind: Literal["matrix", "scalar"], gate: bool, scale: Literal["sum", "mean"], guided: bool
) -> None:
    weights = {"guidance_weight": 0.7, "magnitude_weight": 0.3, "progress_weight": 0.2}
    aim = AIM(T, tau=kind, gate=gate, lr=0.05, scale=scale, **weights)
    guide, eta = Quadratic(), 0.1
    if guided:
        aim.set_guidance(guide, eta)
    tau = aim.tau.clone().requires_grad_()
    adam = torch.optim.Adam([tau], lr=0.05)
    for step in range(50):
        jacobian, losses = problem(step)
        answer = aim(TaskGradients(jacobian), losses)
        g = intervened(jacobian, tau, gate=gate)
        share = 1.0 if scale == "sum" else 1.0 / T
        torch.testing.assert_close(answer.update(TaskGradients(jacobian)), share * g.detach(), rtol=1e-9, atol=1e-12)
        N = jacobian.norm(dim=1).sum()
        magnitude = (g.norm() - N) ** 2 / N**2
        progress = (losses / losses.sum()) @ (jacobian @ g) / N**2
        loss = 0.3 * magnitude - 0.2 * progress
        if guided:
            ahead = share * eta * g
            loss = loss + 0.7 * guide.loss(guide.theta - ahead) / (share * eta * N * guide(ahead.detach()).norm())
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.testing.assert_close(aim.tau, tau.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(answer.diagnostics["magnitude"], magnitude.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(answer.diagnostics["progress"], progress.detach(), rtol=1e-9, atol=1e-12)
    assert aim.tau.abs().max() > 0.1


def guidance_gradient(aim: AIM, jacobian: Tensor, h: Tensor, eta: float) -> Tensor:
    """dL_guide/dtau of the step that `aim` has just made, its first, from Adam's first moment."""
    N = jacobian.double().norm(dim=1).sum()
    return aim.exp_avg / 0.1 * eta * N * h.double().norm()


def finite_differences(aim: AIM, jacobian: Tensor, loss_after: Any, eta: float) -> Tensor:
    """Central differences of L_guide(theta - eta g(tau)) in every threshold."""
    gradient = torch.zeros_like(aim.tau)
    for place in range(aim.tau.numel()):
        values = []
        for shift in (1e-5, -1e-5):
            moved = copy.deepcopy(aim)
            moved.tau.view(-1)[place] += shift
            values.append(loss_after(eta * moved.combine(jacobian, torch.ones(len(jacobian)))))
        gradient.view(-1)[place] = (values[0] - values[1]) / 2e-5
    return gradient


@pytest.mark.parametrize(("kind", "gate"), KINDS)
@pytest.mark.parametrize("eta", [1e-3, 0.1, 1.0])
def test_guidance_reaches_the_thresholds_as_finite_differences_say(
    kind: Literal["matrix", "scalar"], gate: bool, eta: float
) -> None:
    jacobian, losses = problem(0)
    guide = Quadratic()
    aim = AIM(T, tau=kind, gate=gate, **only_guidance)
    aim.tau.add_(0.1 * torch.randn(aim.tau.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    unguided = copy.deepcopy(aim)
    expected = finite_differences(unguided, jacobian, lambda step: guide.loss(guide.theta - step), eta)
    aim.set_guidance(guide, eta)
    step = eta * aim.combine(jacobian, losses)
    found = guidance_gradient(aim, jacobian, guide(step), eta)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    unguided.combine(jacobian, losses)  # at the parameters themselves the loss does not depend on tau
    assert not unguided.exp_avg.any()


class Network(nn.Module):
    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(tasks))
        self.x, self.held_out = torch.randn(2, 20, 3, dtype=torch.float64)
        self.double()

    def losses(self, x: Tensor) -> list[Tensor]:
        features = self.encoder(x).tanh()
        targets = (x.sum(1, keepdim=True), -x.sum(1, keepdim=True), x[:, :1] ** 2)
        return [(head(features) - y).pow(2).mean() for head, y in zip(self.heads, targets, strict=True)]

    def guide(self) -> Tensor:
        return self.losses(self.held_out)[0]


def test_guidance_on_a_network_is_what_finite_differences_say() -> None:
    model, eta = Network(), 0.05
    parameters = list(model.encoder.parameters())
    rows = [torch.autograd.grad(model.losses(model.x)[task], parameters) for task in range(3)]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    guidance = LookaheadGuidance(model.guide, parameters)

    def loss_after(step: Tensor) -> float:
        guidance(step)
        assert guidance.value is not None
        return guidance.value.item()

    aim = AIM(3, **only_guidance)
    expected = finite_differences(aim, jacobian, loss_after, eta)
    aim.set_guidance(guidance, eta)
    model.zero_grad()
    aim.backward(model.losses(model.x))
    step = eta * torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    found = guidance_gradient(aim, jacobian, guidance(step), eta)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_the_policy_does_not_depend_on_the_scale_of_the_gradients_or_of_the_guidance() -> None:
    plain, scaled = AIM(T, lr=0.05), AIM(T, lr=0.05)
    h = torch.randn(D, dtype=torch.float64)
    plain.set_guidance(lambda step: h)
    scaled.set_guidance(lambda step: 1e6 * h, eta=1e-6)
    for step in range(20):
        jacobian, losses = problem(step)
        one, other = plain(TaskGradients(jacobian), losses), scaled(TaskGradients(1e-9 * jacobian), 1e3 * losses)
        for key, tensor in one.diagnostics.items():
            torch.testing.assert_close(other.diagnostics[key], tensor, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled.tau, plain.tau, rtol=1e-9, atol=1e-12)


def sabotage(guided: bool, steps: int = 400) -> tuple[AIM, float]:
    """Task 1 wants the opposite of task 0; the guidance is task 0 on data that it does not train on."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    truth = torch.randn(4, 1)
    x, held_out = torch.randn(2, 64, 4)

    def loss(inputs: Tensor, sign: float) -> Tensor:
        return (model(inputs) - sign * (inputs @ truth).tanh()).pow(2).mean()

    aim = AIM(2, lr=0.005)
    if guided:
        aim.set_guidance(LookaheadGuidance(lambda: loss(held_out, 1.0), model.parameters()), eta=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        aim.backward([loss(x, 1.0), loss(x, -1.0)])
        optimizer.step()
    return aim, loss(held_out, 1.0).item()


def test_a_task_that_conflicts_with_the_guidance_is_quarantined() -> None:
    guided, with_guidance = sabotage(True)
    _, without = sabotage(False)
    assert guided.tau[1, 0] > 0.1  # task 1 gives up what opposes task 0,
    assert guided.tau[0, 1] < -0.1  # and task 0 keeps what opposes task 1
    assert guided.alignment[0] > 0 > guided.alignment[1]
    assert with_guidance < 0.25 * without


def test_interventions_grow_with_the_conflict() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]])
    w = AIM(3)(TaskGradients(jacobian), torch.ones(3)).diagnostics["intervention"]
    assert w.diagonal().tolist() == [0, 0, 0]
    assert w[0, 1] > 0.99
    assert w[1, 2] == pytest.approx(0.5)
    assert w[0, 2] < 0.01


def test_a_gate_scales_the_whole_gradient_of_its_task() -> None:
    """Between orthogonal gradients thresholds of pairs can do nothing, and a gate everything."""
    jacobian = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    aim, pairs = AIM(3, gate=True), AIM(3)
    assert aim.tau.diagonal().tolist() == [0.5, 0.5, 0.5]
    aim.tau[0, 0], aim.tau[1, 1], aim.tau[2, 2] = -10.0, 1.0, 10.0
    pairs.tau.fill_(10.0)
    pairs.tau.fill_diagonal_(0.0)
    answer = aim(TaskGradients(jacobian), torch.ones(3))
    wanted = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(answer.coefficients, wanted)
    torch.testing.assert_close(answer.diagnostics["gate"], wanted)
    torch.testing.assert_close(answer.diagnostics["intervention"].diagonal(), 1 - wanted)
    assert answer.diagnostics["gate_tau"].tolist() == [-10.0, 1.0, 10.0]
    plain = pairs(TaskGradients(jacobian), torch.ones(3))
    assert plain.coefficients.tolist() == [1.0, 1.0, 1.0]
    assert not {"gate", "gate_tau"} & set(plain.diagnostics)


def noisy(aim: AIM, steps: int = 150) -> Tensor:
    """The last coefficients, with guidance by the logarithms of losses of which the second is one of pure noise."""
    torch.manual_seed(0)
    truth, x, held_out = torch.randn(8), torch.randn(24, 8), torch.randn(24, 8)
    noise, fresh = torch.randn(24), torch.randn(24)
    theta = nn.Parameter(torch.zeros(8))

    def losses(inputs: Tensor, chance: Tensor) -> list[Tensor]:
        return [(inputs @ theta - inputs @ truth).pow(2).mean(), (inputs @ theta - chance).pow(2).mean()]

    aim.set_guidance(LookaheadGuidance(lambda: losses(held_out, fresh), [theta], aim.guidance_loss), eta=0.05)
    optimizer = torch.optim.SGD([theta], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        answers: list[Tensor] = []
        hook = aim.register_forward_hook(lambda _m, _a, answer, answers=answers: answers.append(answer.coefficients))
        aim.backward(losses(x, noise), [theta])
        hook.remove()
        optimizer.step()
    return answers[-1]


def test_a_gate_shuts_out_a_task_of_noise_and_keeps_the_other_one() -> None:
    settings: dict[str, Any] = {"lr": 0.05, "guidance_loss": "log_sum", "magnitude_weight": 0.01}
    with_gate = noisy(AIM(2, gate=True, progress_weight=0.01, **settings))
    without = noisy(AIM(2, progress_weight=0.01, **settings))
    assert with_gate[1] < 0.1
    assert with_gate[0] > 0.5
    assert without[1] > 0.3


def test_a_state_from_before_there_were_gates_is_loaded_with_and_without_gates() -> None:
    old = AIM(T)
    for step in range(3):
        old.combine(*problem(step))
    for aim in (AIM(T), AIM(T, gate=True)):
        aim.load_state_dict(old.state_dict())
        aim.check_state(D)
        assert torch.equal(aim.tau, old.tau)
        assert bool(aim.combine(*problem(3)).isfinite().all())
    gated = AIM(T, gate=True)
    gated.combine(*problem(0))
    gated.reset()
    assert torch.equal(gated.tau, 0.5 * torch.eye(T, dtype=torch.float64))


def test_every_nth_update_trains_the_policy() -> None:
    calls: list[Tensor] = []
    aim, guide = AIM(T, policy_interval=3), Quadratic()
    aim.set_guidance(lambda step: calls.append(step) or guide(step))  # type: ignore[func-returns-value]
    taus = [aim.tau.clone()]
    for step in range(7):
        aim.combine(*problem(step))
        taus.append(aim.tau.clone())
    moved = [not torch.equal(before, after) for before, after in pairwise(taus)]
    assert moved == [True, False, False, True, False, False, True]
    assert len(calls) == 3


def test_without_guidance_set_the_other_terms_train_and_alignment_is_zero() -> None:
    silent, none = AIM(T), make_balancer("aim", T, guidance="none")
    for step in range(5):
        jacobian, losses = problem(step)
        answer = silent(TaskGradients(jacobian), losses)
        assert torch.equal(none.combine(jacobian, losses), answer.update(TaskGradients(jacobian)))
        assert not answer.diagnostics["alignment"].any()
    assert silent.tau.any()
    with pytest.raises(ValueError, match="this balancer was made with guidance='none'"):
        none.set_guidance(Quadratic())
    none.set_guidance(None)
    assert silent.wants_guidance
    assert not none.wants_guidance


def test_loading_keeps_the_learning_rate_and_reset_keeps_the_guidance() -> None:
    aim, other = AIM(T, lr=0.1), AIM(T, lr=0.01)
    calls: list[Tensor] = []
    guide = Quadratic()
    aim.set_guidance(lambda step: calls.append(step) or guide(step))  # type: ignore[func-returns-value]
    aim.combine(*problem(0))
    other.load_state_dict(aim.state_dict())
    assert other.lr == 0.01
    aim.reset()
    assert not any(buffer.any() for buffer in aim.buffers())
    aim.combine(*problem(0))
    assert len(calls) == 2


def test_state_stays_in_float64_and_a_copy_shares_the_guidance() -> None:
    guide, calls = Quadratic(), []
    aim = AIM(T)
    aim.set_guidance(lambda step: calls.append(step) or guide(step))  # type: ignore[func-returns-value]
    twin = copy.deepcopy(aim.half())
    assert twin.tau.dtype == torch.float64
    twin.combine(*problem(0))
    assert twin.tau.any()
    assert len(calls) == 1
    assert not aim.tau.any()


# ---------------------------------------------------------------------------------------------- LookaheadGuidance


@pytest.mark.parametrize("fails", [False, True])
def test_parameters_and_their_gradients_are_restored_bit_for_bit(fails: bool) -> None:
    model = Network().float()
    model.x, model.held_out = model.x.float(), model.held_out.float()
    sum(model.losses(model.x)).backward()  # type: ignore[union-attr]
    before = [(p.data_ptr(), p.clone(), None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    seen: list[Tensor] = []

    def loss() -> Tensor:
        seen.append(model.encoder[0].weight.detach().clone())
        if fails:
            raise RuntimeError("no")
        return model.guide()

    guidance = LookaheadGuidance(loss, model.encoder.parameters())
    step = torch.randn(guidance.layout.size) / 3
    with torch.no_grad():
        if fails:
            with pytest.raises(RuntimeError, match="no"):
                guidance(step)
        else:
            assert guidance(step).shape == step.shape
    assert torch.equal(seen[0], before[0][1] - step[:24].view(8, 3))
    for parameter, (pointer, value, grad) in zip(model.parameters(), before, strict=True):
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)
        assert grad is not None
        assert torch.equal(parameter.grad, grad)


def test_a_parameter_without_part_in_the_guidance_loss_has_no_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    guidance = LookaheadGuidance(lambda: used @ used, [unused, frozen, used])
    assert guidance(torch.full((5,), 0.5)).tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"got a step of shape \(4,\) for 5 shared parameters"):
        guidance(torch.ones(4))
    with pytest.raises(ValueError, match="does not depend on any parameter"):
        LookaheadGuidance(lambda: torch.ones(()), [used])(torch.ones(2))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_three_guidance_losses_are_what_they_say(as_tensor: bool) -> None:
    model = Network()
    parameters = list(model.encoder.parameters())

    def losses() -> Any:
        found = model.losses(model.held_out)
        return torch.stack(found) if as_tensor else found

    zero = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    parts = model.losses(model.held_out)
    rows = torch.stack(
        [LookaheadGuidance(lambda t=t: model.losses(model.held_out)[t], parameters)(zero) for t in range(3)]
    )
    values = torch.stack(parts).detach()
    wanted = {
        "sum": rows.sum(0),
        "log_sum": (rows / values[:, None]).sum(0),
        "unit_norm": (rows / rows.norm(dim=1, keepdim=True)).sum(0),
    }
    for name, expected in wanted.items():
        guidance = LookaheadGuidance(losses, parameters, name)  # type: ignore[arg-type]
        torch.testing.assert_close(guidance(zero), expected)
        torch.testing.assert_close(combined(rows, values, name), expected)  # type: ignore[arg-type]
        assert guidance.value is not None
        torch.testing.assert_close(guidance.value, values.log().sum() if name == "log_sum" else values.sum())
    with pytest.raises(ValueError, match="unknown guidance_loss 'mean'; choose from sum, log_sum, unit_norm"):
        LookaheadGuidance(losses, parameters, "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["log_sum", "unit_norm"])
def test_guidance_without_a_scale_does_not_change_with_the_scale_of_a_loss(
    name: Literal["log_sum", "unit_norm"],
) -> None:
    model = Network()
    parameters = list(model.encoder.parameters())
    factors = torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    step = torch.full((sum(p.numel() for p in parameters),), 1e-3, dtype=torch.float64)
    plain = LookaheadGuidance(lambda: model.losses(model.held_out), parameters, name)(step)
    scaled = LookaheadGuidance(lambda: factors * torch.stack(model.losses(model.held_out)), parameters, name)(step)
    torch.testing.assert_close(scaled, plain)


def test_a_loss_without_a_logarithm_is_refused_by_its_task_and_one_of_zero_counts_for_nothing() -> None:
    used = nn.Parameter(torch.ones(2))
    for bad in (-1.0, float("nan")):
        guidance = LookaheadGuidance(lambda bad=bad: [used.sum(), bad * used.sum()], [used], "log_sum")
        with pytest.raises(ValueError, match="guidance_loss='log_sum' needs finite losses >= 0; task 1 has"):
            guidance(torch.zeros(2))
        assert used.tolist() == [1, 1]
    guidance = LookaheadGuidance(lambda: [used.sum(), (used - used.detach()).pow(2).sum()], [used], "log_sum")
    assert guidance(torch.zeros(2)).tolist() == [0.5, 0.5]


def test_backward_takes_the_parameters_and_the_order_of_the_guidance() -> None:
    model = Network()
    backwards = list(model.encoder.parameters())[::-1]
    aim, own = AIM(3), AIM(3)
    aim.set_guidance(LookaheadGuidance(model.guide, backwards))
    aim.backward(model.losses(model.x))
    aim.backward(model.losses(model.x), backwards)
    with pytest.raises(ValueError, match="`parameters` are not those of the guidance"):
        aim.backward(model.losses(model.x), backwards[::-1])
    own.set_guidance(torch.clone)
    with pytest.raises(ValueError, match="pass `parameters`, in the order"):
        own.backward(model.losses(model.x))


def test_a_guidance_gradient_that_cannot_be_used_changes_nothing() -> None:
    aim = AIM(T)
    aim.set_guidance(lambda step: step * torch.nan)
    with pytest.raises(NonFiniteGradientError, match="guidance loss is not finite"):
        aim.combine(*problem(0))
    aim.set_guidance(lambda step: step[:3])
    with pytest.raises(ValueError, match=r"has shape \(3,\); it must be .*\(15,\)"):
        aim.combine(*problem(0))
    assert not any(buffer.any() for buffer in aim.buffers())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tau": "vector"}, "unknown tau 'vector'; choose from matrix, scalar"),
        ({"guidance": "now"}, "unknown guidance 'now'; choose from lookahead, none"),
        ({"guidance_loss": "mean"}, "unknown guidance_loss 'mean'; choose from sum, log_sum, unit_norm"),
        ({"gate": True, "tau": "scalar"}, "gate is True, which needs tau='matrix'"),
        ({"k": 0.0}, "k is 0.0; it must be above 0"),
        ({"lr": -1.0}, "lr is -1.0; it must be above 0"),
        ({"policy_interval": 0}, "policy_interval is 0; it must be at least 1"),
        ({"guidance_weight": -1.0}, "guidance_weight is -1.0; it must be at least 0"),
        ({"magnitude_weight": float("nan")}, "magnitude_weight is nan"),
        ({"progress_weight": float("inf")}, "progress_weight is inf"),
    ],
)
def test_aim_refuses_values_out_of_range(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_balancer("aim", 2, **kwargs)


def test_only_progress_needs_positive_losses() -> None:
    jacobian, losses = problem(0)
    with pytest.raises(ValueError, match="AIM needs finite losses >= 0; task 0"):
        AIM(T).combine(jacobian, -1 - losses)
    aim = AIM(T, progress_weight=0.0)
    assert bool(aim.combine(jacobian, -1 - losses).isfinite().all())
    assert bool(aim.combine(jacobian, losses * torch.nan).isfinite().all())
    logarithms = AIM(T, progress_weight=0.0, guidance_loss="log_sum")
    with pytest.raises(ValueError, match="use progress_weight=0 and guidance_loss='unit_norm'"):
        logarithms.combine(jacobian, -1 - losses)
