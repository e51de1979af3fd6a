"""The measurement of gradient noise: its estimates on data with known answers, and that it leaves a training alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.studies.gradient_noise import GradientNoiseConfig, main
from experiments.studies.reports import gradient_noise
from experiments.studies.reports.gradient_noise import Measuring, cosines, downhill
from tests.experiments.test_methods import fails
from tests.support import assert_same, make_agent

SMALL = {"measurements": 2, "batches": 4, "warm_up": 2, "balancers": ("equal", "rgb", "equal+memory")}


def noisy(means, noise, batches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.as_tensor(means, dtype=torch.float64)
    return means + noise * torch.randn(batches, *means.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("angle", [0.4, 1.5, 2.5])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_conflict_is_found_under_noise(angle, noise):
    size = 400
    means = np.zeros((2, size))
    means[0, 0], means[1, :2] = 1.0, (3 * np.cos(angle), 3 * np.sin(angle))
    within, seen, conflict = cosines(noisy(means, noise, 600))
    assert conflict == pytest.approx(np.cos(angle), abs=0.06)
    expected = [1 / (1 + size * noise**2), 9 / (9 + size * noise**2)]  # of unit vectors, for large sizes
    assert within == pytest.approx(np.mean(expected), abs=0.03)
    assert seen == pytest.approx(np.cos(angle) * np.sqrt(np.prod(expected)), abs=0.05)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_an_update_along_the_true_gradient_is_downhill_however_noisy_the_estimate(noise):
    truth = torch.zeros(500, dtype=torch.float64)
    truth[0] = 1.0
    rows = noisy(truth, noise, 40)
    assert downhill(truth[None], rows) == pytest.approx(1, abs=0.05)
    assert downhill(-truth[None], rows) == pytest.approx(-1, abs=0.05)
    across = torch.eye(500, dtype=torch.float64)[1][None]
    assert downhill(across, rows) == pytest.approx(0, abs=0.1)


def test_measuring_leaves_the_training_as_it_would_have_been():
    config = GradientNoiseConfig(total_steps=600, **SMALL)
    measuring = Measuring(config, lambda step: None)
    one, two = make_agent(seed=3).learn(600, measuring), make_agent(seed=3).learn(600)
    assert len(measuring.found) == 2
    assert_same(one.policy.state_dict(), two.policy.state_dict())


def test_the_study_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    real = gradient_noise.SharedDQNConfig
    short = {"learning_starts": 100, "envs_per_task": 2, "buffer_size": 3000, "batch_size": 8}
    monkeypatch.setattr(gradient_noise, "SharedDQNConfig", lambda **settings: real(**short, **settings))
    words = ["--seeds", "0-1", "--total-steps", "600", "--measurements", "2", "--batches", "4", "--warm-up", "2"]
    words += ["--balancers", "equal", "memory", "aim", "gradnorm+memory", "--output-dir", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    for of_seed in results["measured"].values():
        assert [each["step"] for each in of_seed] == [300, 600]
        for each in of_seed:
            assert set(each["downhill"]) == {"equal", "memory", "aim", "gradnorm+memory"}
            for cosine in (each["within"], each["seen"], each["conflict"], *each["downhill"].values()):
                assert -1 <= cosine <= 1
    assert (tmp_path / "out/report.md").read_text().strip() in printed
    assert np.asarray(Image.open(tmp_path / "out/gradient_noise.png")).std() > 5
    assert "is not empty" in fails(main, words, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--balancers", "rgd"], "unknown balancer 'rgd'"),
        (["--batches", "3"], "batches is 3"),
        (["--seeds", "x"], "seeds: 'x'"),
    ],
)
def test_a_wrong_study_is_one_line(words, message, tmp_path, capsys):
    assert message in fails(main, [*words, "--output-dir", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()
