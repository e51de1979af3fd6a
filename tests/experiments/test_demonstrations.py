"""The demonstrations run, show what they say, and answer bad input in one line."""

import re
import subprocess
import sys

import pytest

from experiments.demonstrations import loss_aggregation, mtl_flow, rgb_balancing

COMMANDS = {"rgb_balancing": rgb_balancing, "loss_aggregation": loss_aggregation, "mtl_flow": mtl_flow}
DOCUMENTED = [
    "recon_loss", "kl_z", "hierarchical_kl", "attention_kl", "cluster_entropy", "gram_enc_loss", "total_vae_loss",
    "perceiver_loss", "attention_dynamics_loss", "attention_diversity", "attention_loss", "adversarial_loss",
]  # fmt: skip


def shown(command, capsys, *argv):
    assert COMMANDS[command].main(argv) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command):
    code = (
        "import sys\n"
        f"sys.argv = ['x', '--help']\nfrom experiments.demonstrations.{command} import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--seed" in done.stdout


@pytest.mark.parametrize("tasks", [2, 4, 10])
def test_rgb_makes_conflict_smaller(tasks, capsys):
    text = shown("rgb_balancing", capsys, "--tasks", str(tasks), "--cosine", "-0.1", "--steps", "20")
    rows = re.findall(r"^ +\d+ +(\S+) +(\S+) +(\d+)% +(\d+)% +(\S+)°$", text, re.MULTILINE)
    assert len(rows) == 20
    before, after, _, _, turn = (float(number) for number in rows[-1])
    assert before < after
    assert turn > 0
    assert float(rows[-1][3]) <= float(rows[-1][2])
    served = re.search(r"served least: cosine (\S+) with the update, (\S+) with the plain sum", text)
    assert float(served[1]) > float(served[2])


def test_rgb_turns_only_where_it_should(capsys):
    text = shown("rgb_balancing", capsys, "--steps", "4", "--update-interval", "2")
    turns = [float(turn) for turn in re.findall(r"(\S+)°$", text, re.MULTILINE)]
    assert turns[0] == turns[2] == 0
    assert turns[1] > 0
    assert turns[3] > 0


@pytest.mark.parametrize("command", ["rgb_balancing", "loss_aggregation"])
def test_a_seed_gives_the_same_output(command, capsys):
    first = shown(command, capsys, "--seed", "3")
    assert shown(command, capsys, "--seed", "3") == first
    assert shown(command, capsys, "--seed", "4") != first


def test_aggregation_shows_every_term(capsys):
    text = shown("loss_aggregation", capsys)
    values = dict(re.findall(r"^  (\w+) +(-?\d+\.\d+)", text, re.MULTILINE))
    assert set(DOCUMENTED) <= set(values)
    tasks = re.search(r"takes them: elbo (\S+), perceiver (\S+), predictive (\S+), adversarial (\S+)", text)
    totals = ("total_vae_loss", "perceiver_loss", "attention_loss", "adversarial_loss")
    assert list(tasks.groups()) == [values[name] for name in totals]


def test_aggregation_without_a_discriminator_and_with_other_weights(capsys):
    plain = shown("loss_aggregation", capsys)
    text = shown("loss_aggregation", capsys, "--no-adversarial", "--beta", "0", "--lambda-recon", "2")
    assert "adversarial: none" in text
    assert "adversarial_loss" not in text
    number = r" +(\d+\.\d+)"
    assert re.search("recon_loss" + number, text)[1] == re.search("recon_loss" + number, plain)[1]
    assert re.search("total_vae_loss" + number, text)[1] != re.search("total_vae_loss" + number, plain)[1]


@pytest.mark.parametrize("balancer", ["rgb", "equal"])
def test_losses_fall_on_the_whole_way(balancer, capsys):
    text = shown("mtl_flow", capsys, "--steps", "40", "--sequences", "4", "--balancer", balancer)
    verdicts = {
        task: (float(first), float(last), verdict)
        for task, first, last, verdict in re.findall(
            r"^(\w+) +(\S+) -> (\S+)  (fell|did not fall)$", text, re.MULTILINE
        )
    }
    assert list(verdicts) == ["elbo", "perceiver", "predictive", "adversarial"]
    for task in ("elbo", "perceiver", "predictive"):
        first, last, verdict = verdicts[task]
        assert verdict == "fell"
        assert last < 0.95 * first, task


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("rgb_balancing", "--tasks 1", "tasks is 1; it must be between 2 and 10"),
        ("rgb_balancing", "--cosine -0.9", "cosine is -0.9; for 4 tasks it must be above -1/3 = -0.333 and below 1"),
        ("rgb_balancing", "--mu 1", "mu is 1.0; it must be at least 0 and below 1"),
        ("rgb_balancing", "--norm-ratio nan", "norm_ratio is nan; it must be between 1 and 1e12"),
        ("rgb_balancing", "--size 99999999", "size is 99999999; it must be between 4 and 2500000"),
        ("loss_aggregation", "--frames 1", "frames is 1; it must be between 2 and 64"),
        ("loss_aggregation", "--beta -1", "beta is -1.0; it must be at least 0 and finite"),
        ("loss_aggregation", "--seed -1", "seed is -1; it must be between 0 and 2**63 - 1"),
        ("mtl_flow", "--balancer rbg", "unknown balancer 'rbg'; balancers are "),
        ("mtl_flow", "--steps 3", "steps is 3; it must be between 10 and 1000000"),
        ("mtl_flow", "--learning-rate nan", "learning_rate is nan; it must be above 0 and at most 1"),
    ],
)
def test_bad_input_is_answered_in_one_line(command, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command].main(words.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith(f"experiments.demonstrations.{command}: {message}")
    assert captured.err.count("\n") == 1
