"""The recorder beside real losses, against what the balancer and the gradients themselves say."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import MultiTaskDQN
from envs import make_task_vec_env
from mtrl import AIM, RGB, Balance, Balancer, EqualWeights, GradNorm, GradNormPCGrad, PCGrad, Recorder
from mtrl.conflict import conflict_metrics
from mtrl.gradients import AutogradEngine, NonFiniteGradientError, TaskGradients
from mtrl.recorder import RecordingError, named, read_recording

TASKS = ["depth", "normals", "edges"]


class Model(nn.Module):
    """A shared encoder and a head per task."""

    def __init__(self, num_tasks: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 5))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(num_tasks))

    def losses(self, step: int) -> list[Tensor]:
        """The losses of a batch that depends on `step` alone."""
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        shared = self.encoder(x)
        return [((head(shared) - x[:, i : i + 1] * (i + 1)) ** 2).mean() for i, head in enumerate(self.heads)]


def train(
    model: Model, balancer: Balancer, steps: range, each: Callable[[int], Any] = lambda _: None, **how: Any
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in steps:
        optimizer.zero_grad()
        balancer.backward(model.losses(step), **how)
        optimizer.step()
        each(step)


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("kind", [EqualWeights, GradNorm, PCGrad, GradNormPCGrad, RGB, AIM])
def test_a_line_says_what_losses_gradients_and_balancer_say(
    tmp_path: Path, kind: type[Balancer], low_memory: bool
) -> None:
    options = {"guidance": "none"} if kind is AIM else {}
    model, balancer, twin = Model(), kind(num_tasks=3, **options), kind(num_tasks=3, **options)
    losses = model.losses(0)
    gradients = AutogradEngine(list(model.encoder.parameters())).backward(losses)
    expected = {f"train/{task}/loss": loss.item() for task, loss in zip(TASKS, losses, strict=True)}
    expected |= dict(named(twin(gradients).diagnostics, TASKS)) | dict(
        named(conflict_metrics(gradients.gramian), TASKS)
    )
    with Recorder(tmp_path / "metrics.jsonl", balancer, TASKS):
        balancer.backward(model.losses(0), low_memory=low_memory)
    (line,) = lines_of(tmp_path / "metrics.jsonl")
    assert next(iter(line)) == "env_step"
    assert line.pop("env_step") == 1
    assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    J = gradients.jacobian
    cosine = torch.nn.functional.cosine_similarity(J[0], J[2], dim=0).item()
    assert line["balancer/cosine/depth_edges"] == pytest.approx(cosine, abs=1e-5)
    assert {"balancer/conflict_share", "balancer/norm_ratio", "balancer/magnitude_similarity/depth_normals"} <= set(
        line
    )
    assert "balancer/cosine/edges_depth" not in line


@pytest.mark.parametrize("balancer", ["aim", "gradnorm_pcgrad", "rgb"])
def test_names_and_numbers_are_those_of_a_training_run(tmp_path: Path, balancer: str) -> None:
    env = make_task_vec_env(["Standard", "Heavy"], envs_per_task=1, seed=0, variant="aware")
    agent = MultiTaskDQN(
        "MlpPolicy", env, balancer=balancer, seed=0, learning_starts=60, batch_size=8, conflict_interval=1, device="cpu"
    )
    with Recorder(tmp_path / "metrics.jsonl", agent.balancer, agent.task_names, every=1) as recorder:
        agent.learn(80)
    env.close()
    line = lines_of(tmp_path / "metrics.jsonl")[-1]
    assert line["env_step"] == recorder.step == agent._n_updates
    of_balancer = {key: value for key, value in line.items() if key.startswith("balancer/")}
    assert of_balancer == pytest.approx(agent.diagnostics, rel=1e-12, nan_ok=True)  # the products are summed anew
    assert {"train/Standard/loss", "train/Heavy/loss"} <= set(line)


def test_recording_changes_nothing(tmp_path: Path) -> None:
    plain, recorded = Model(), Model()
    balancers = PCGrad(seed=3), PCGrad(seed=3)
    train(plain, balancers[0], range(12))
    with Recorder(tmp_path / "metrics.jsonl", balancers[1], TASKS, every=2):
        train(recorded, balancers[1], range(12))
    for one, two in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(one, two)
    states = [balancer.state_dict() for balancer in balancers]
    assert states[0] == states[1]


def test_lines_come_at_the_interval_and_are_there_at_once(tmp_path: Path) -> None:
    path, balancer, seen = tmp_path / "deep" / "metrics.jsonl", EqualWeights(), []
    with Recorder(path, balancer, TASKS, every=5) as recorder:
        train(Model(), balancer, range(17), lambda _: seen.append(len(lines_of(path))))
        assert recorder.step == 17
    assert [line["env_step"] for line in lines_of(path)] == [1, 5, 10, 15]
    assert seen == [1] * 4 + [2] * 5 + [3] * 5 + [4] * 3
    train(Model(), balancer, range(5))  # nobody listens any more
    assert len(lines_of(path)) == 4


def test_lines_of_ones_own(tmp_path: Path) -> None:
    path, balancer = tmp_path / "metrics.jsonl", EqualWeights()
    with Recorder(path, balancer, TASKS, every=100) as recorder:
        train(Model(), balancer, range(7))
        recorder.record({"eval/depth/error": 0.25, "eval/broken": math.nan})
    assert lines_of(path)[-1] == {"env_step": 7, "eval/depth/error": 0.25}


def test_what_is_missing_or_not_finite_is_left_out(tmp_path: Path) -> None:
    path, balancer, model = tmp_path / "metrics.jsonl", GradNorm(num_tasks=3), Model()
    with Recorder(path, balancer, TASKS, every=1) as recorder:
        balancer.backward(model.losses(0), mask=[True, False, True])
        with pytest.raises(NonFiniteGradientError):
            EqualWeights().backward([model.losses(0)[0] * math.nan])
        with pytest.raises((NonFiniteGradientError, ValueError)):
            balancer.backward([loss * math.nan for loss in model.losses(1)])
        assert recorder.step == 1  # what the balancer refuses is no update
    (line,) = lines_of(path)
    assert not [key for key in line if "normals" in key]
    assert {"train/depth/loss", "train/edges/loss", "balancer/edges/weight", "balancer/cosine/depth_edges"} <= set(line)
    assert "NaN" not in path.read_text()


def test_a_balancer_of_ones_own_and_tasks_without_names(tmp_path: Path) -> None:
    class Halves(Balancer):
        """Half of every gradient; says nothing about it."""

        def balance(self, gradients: Any, losses: Tensor) -> Balance:
            return Balance(torch.full((gradients.num_tasks,), 0.5), diagnostics={"share": torch.tensor(0.5)})

    balancer = Halves()
    with Recorder(tmp_path / "metrics.jsonl", balancer):
        balancer.combine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), losses=torch.tensor([3.0, 4.0]))
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {
            "env_step": 1,
            "train/0/loss": 3,
            "train/1/loss": 4,
            "balancer/share": 0.5,
            "balancer/cosine/0_1": -1,
            "balancer/conflict_share": 1,
            "balancer/norm_ratio": 1,
            "balancer/magnitude_similarity/0_1": 1,
        }
    ]


# --------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("cut", [1, 5, 60, -1])
def test_a_half_written_last_line_is_dropped_and_the_recording_goes_on(tmp_path: Path, cut: int) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    model, balancer = Model(), GradNorm(num_tasks=3)
    with Recorder(whole, balancer, TASKS, every=5):
        train(model, balancer, range(20))
    text = whole.read_bytes()
    begins = text.rstrip(b"\n").rfind(b"\n") + 1
    broken.write_bytes(text[: begins + cut] if cut > 0 else text[:cut])
    assert read_recording(broken) == lines_of(whole)[:-1]
    with Recorder(broken, balancer, TASKS, every=5) as recorder:
        assert recorder.step == 15
        train(model, balancer, range(5))
    assert [line["env_step"] for line in read_recording(broken)] == [1, 5, 10, 15, 20]
    assert broken.read_bytes().startswith(text[:begins])


def test_a_first_line_that_is_half_written_is_dropped_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for text in (b"", b"{", b'{"env_step"', b'{"env_step": 1, "train/0/lo'):
        path.write_bytes(text)
        with Recorder(path, EqualWeights()) as recorder:
            assert recorder.step == 0
        assert path.read_bytes() == b""


def test_a_loop_that_goes_back_to_a_checkpoint_leaves_the_file_of_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed, resumed = tmp_path / "undisturbed.jsonl", tmp_path / "resumed.jsonl"
    model, balancer = Model(), GradNorm(num_tasks=3)
    with Recorder(undisturbed, balancer, TASKS, every=4):
        train(model, balancer, range(30))

    model, balancer, saved = Model(), GradNorm(num_tasks=3), {}

    def save(step: int) -> None:
        if step == 9:  # ten updates have been made
            saved.update(copy.deepcopy({"model": model.state_dict(), "balancer": balancer.state_dict()}))

    with Recorder(resumed, balancer, TASKS, every=4):
        train(model, balancer, range(23), save)
    model, balancer = Model(seed=1), GradNorm(num_tasks=3)
    model.load_state_dict(saved["model"])
    balancer.load_state_dict(saved["balancer"])
    with Recorder(resumed, balancer, TASKS, every=4, step=10):
        train(model, balancer, range(10, 30))
    assert resumed.read_bytes() == undisturbed.read_bytes()


def test_step_0_begins_anew(tmp_path: Path) -> None:
    path, balancer = tmp_path / "metrics.jsonl", EqualWeights()
    for _ in range(2):
        with Recorder(path, balancer, TASKS, step=0):
            train(Model(), balancer, range(3))
    assert len(lines_of(path)) == 1


# ----------------------------------------------------------------------------------------------------------- errors


FOREIGN = ["hello", "hello\n", '{"a": 1}', '{"a": 1}\n', "[1]\n", '{"env_step": "one"}\n']


@pytest.mark.parametrize(
    ("text", "step"),
    [*((text, step) for text in FOREIGN for step in (None, 0)), ('{"env_step": 1}\nhello\n', None)],
)
def test_a_foreign_file_is_left_alone(tmp_path: Path, text: str, step: int | None) -> None:
    path, balancer = tmp_path / "notes.txt", EqualWeights()
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"notes\.txt' is no recording: line \d") as raised:
        Recorder(path, balancer, step=step)
    assert len(str(raised.value).splitlines()) == 1
    assert path.read_text() == text
    with pytest.raises(RecordingError):
        read_recording(path)
    assert not balancer._forward_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; it must be at least 1"),
        ({"step": -1}, "step is -1; it must be at least 0"),
        ({"tasks": ["a", "b", "a"]}, "tasks must be distinct names without '/', not a, b, a"),
        ({"tasks": ["a", "b", "c/d"]}, "without '/'"),
        ({"tasks": ["a", "b"]}, "got names for 2 tasks, a, b, and 3 tasks"),
    ],
)
def test_bad_arguments_leave_no_trace(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recorder(tmp_path / "metrics.jsonl", GradNorm(num_tasks=3), **options)
    assert list(tmp_path.iterdir()) == []


def test_names_for_another_number_of_tasks_stop_the_first_update(tmp_path: Path) -> None:
    balancer, model = EqualWeights(), Model()
    with Recorder(tmp_path / "metrics.jsonl", balancer, ["a", "b"]), pytest.raises(ValueError, match="got names for 2"):
        balancer.backward(model.losses(0))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_between_its_lines_it_looks_at_nothing(tmp_path: Path) -> None:
    asked: list[int] = []

    class Watched(TaskGradients):
        """Notes when it is asked for its Gramian."""

        @property
        def gramian(self) -> Tensor:
            asked.append(recorder.step)
            return super().gramian

    balancer = EqualWeights()
    with Recorder(tmp_path / "metrics.jsonl", balancer, every=10) as recorder:
        for _ in range(25):
            balancer(Watched(torch.eye(3)), torch.ones(3))
    assert set(asked) == {1, 10, 20}
