"""The world model: its video, its outputs, its two optimizers, its runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import make_task_env
from experiments.program.flags import UsageError
from experiments.world_model import figures, landing, readout
from experiments.world_model.checkpoints import FREE_SETTINGS
from experiments.world_model.config import QUICK, WorldModelConfig
from experiments.world_model.discriminator import Hearing, real_and_fake
from experiments.world_model.evaluate import main as evaluate_main
from experiments.world_model.evaluation import evaluate, look, windows_of
from experiments.world_model.frames import ModelSettings
from experiments.world_model.land import main as land_main
from experiments.world_model.layers import MapDynamics, SlotAttention
from experiments.world_model.model import WorldModel
from experiments.world_model.recording import HEIGHT, WIDTH, VideoSettings, load_or_record, read, record
from experiments.world_model.runner import PICTURES
from experiments.world_model.saving import load_model
from experiments.world_model.teacher import Teacher
from experiments.world_model.tokens import Tokenizer
from experiments.world_model.train import main
from experiments.world_model.training import Trainer
from mtrl import checkpoint
from mtrl.losses import TASKS, LossAggregator, expected_log_weights

SHORTEST = QUICK["context"] + QUICK["horizon"]
SETTINGS = VideoSettings(("Standard", "Windy"), frames=360, frame_skip=5, shortest=SHORTEST, seed=3)
FLAGS = ("--quick", "--tasks", "Standard", "Windy", "--recording-seed", "3", "--quiet")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results that holds the recording already."""
    folder = tmp_path_factory.mktemp("world_model")
    load_or_record(folder / "recordings", SETTINGS)
    return folder


@pytest.fixture(scope="module")
def video(results):
    return read(results / "recordings" / SETTINGS.file_name, SETTINGS)


@pytest.fixture
def trainer(video):
    return Trainer(WorldModelConfig(sequences=2, length=4, steps=50), video)


def shown(model, seed=0, sequences=2, frames=4):
    """A model's outputs on noise."""
    generator = torch.Generator().manual_seed(seed)
    settings = model.settings
    observations = torch.rand(
        sequences, frames, settings.channels, settings.height, settings.width, generator=generator
    )
    actions = torch.eye(settings.actions)[torch.randint(settings.actions, (sequences, frames), generator=generator)]
    return observations, actions, model.forward_sequence(observations, actions, generator=generator)


def small_model(seed=0, **sizes):
    torch.manual_seed(seed)
    settings = ModelSettings(height=16, width=24, channels=2, actions=3, features=8, latent=4, state=16, **sizes)
    model = WorldModel(settings, torch.rand(2, 16, 24))
    torch.nn.init.normal_(model.decoder.change[-1].weight)  # so that latents matter
    return model


# The video


def test_video_is_the_game_and_its_seed_makes_it(video):
    again = record(SETTINGS)
    assert np.array_equal(video.frames, again.frames)
    assert np.array_equal(video.actions, again.actions)
    other = record(replace(SETTINGS, frames=100, shortest=6, seed=4))
    assert not np.array_equal(other.frames[:50], video.frames[:50])

    assert video.frames.shape[1:] == (HEIGHT, WIDTH, 3)
    assert set(video.actions.tolist()) == {0, 1, 2, 3}
    assert set(video.episode_tasks.tolist()) == {0, 1}
    frames = video.frames.astype(float) / 255
    assert frames[:, -1].mean() > 0.5  # the ground is white
    assert frames[:, HEIGHT // 4].mean() < 0.1  # the sky is black
    moves = np.abs(np.diff(frames, axis=0)).max(-1) > 0.05
    inside = np.ones(len(moves), bool)
    inside[video.starts[1:] - 1] = False
    assert (moves[inside].any((1, 2))).mean() > 0.8  # something moves in nearly every frame
    assert moves[inside].mean() < 0.1  # and most stands still


def test_sequences_stay_within_an_episode_and_held_out_ones_apart(video):
    length = 6
    starts = {held_out: video.windows(length, held_out) for held_out in (False, True)}
    ends = np.append(video.starts[1:], len(video.frames))
    for held_out, at in starts.items():
        episode = np.searchsorted(video.starts, at, side="right") - 1
        assert (at + length <= ends[episode]).all()
        spans = video.episodes(held_out)
        assert sum(max(0, part.stop - part.start - length + 1) for _, part in spans) == len(at)
    assert not {part.start for _, part in video.episodes(True)} & {part.start for _, part in video.episodes(False)}
    assert len(video.episodes(True)) + len(video.episodes(False)) == len(video.starts)

    frames, actions = video.sequences(starts[False][:3], length)
    assert frames.shape == (3, length, 3, HEIGHT, WIDTH)
    assert actions.shape == (3, length, 4)
    assert (actions.sum(-1) == 1).all()
    place = int(starts[False][2]) + 4
    assert torch.equal((frames[2, 4] * 255).round().byte(), torch.from_numpy(video.frames[place]).movedim(-1, 0))
    assert actions[2, 4].argmax() == video.actions[place]


def test_a_recording_of_other_settings_or_damaged_is_refused(results, tmp_path, video):
    path = results / "recordings" / SETTINGS.file_name
    with pytest.raises(UsageError, match="no recording of these settings"):
        read(path, replace(SETTINGS, seed=5))
    torn = tmp_path / "torn.zip"
    torn.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match="delete it to record anew"):
        read(torn, SETTINGS)
    state = checkpoint.load(path)
    checkpoint.save(tmp_path / "short.zip", {**state, "actions": state["actions"][:-1]})
    with pytest.raises(UsageError, match="do not fit"):
        read(tmp_path / "short.zip", SETTINGS)
    with pytest.raises(UsageError, match="no held-out episode has 500 frames"):
        video.windows(500, held_out=True)


def test_the_settings_of_a_recording_decide_it_in_whatever_order_runs_come(tmp_path):
    settings = [replace(SETTINGS, frames=240, shortest=shortest) for shortest in (6, 40)]
    for folder, order in ((tmp_path / "one", settings), (tmp_path / "other", settings[::-1])):
        for each in order:
            load_or_record(folder, each)
    for each in settings:
        one, other = (read(tmp_path / folder / each.file_name, each) for folder in ("one", "other"))
        assert np.array_equal(one.frames, other.frames)
        assert np.diff(np.append(one.starts, len(one.frames))).min() >= each.shortest


# The model


def test_outputs_fit_the_contract_and_the_past_is_all_that_the_prior_knows():
    model = small_model()
    observations, actions, outputs = shown(model)
    losses, task_losses = LossAggregator().compute_losses(outputs, observations)
    assert len(task_losses) == 3
    assert all(loss.isfinite() for loss in losses.values())
    assert torch.allclose(outputs["responsibilities"].sum(-1), torch.ones(2, 4))

    changed = observations.clone()
    changed[:, 2] += 0.5
    turned = actions.clone()
    turned[:, 2] = actions[:, 2].roll(1, -1)
    by_frame = model.forward_sequence(changed, actions, generator=torch.Generator().manual_seed(1))
    by_action = model.forward_sequence(observations, turned, generator=torch.Generator().manual_seed(1))
    for other in (by_frame, by_action):
        same = (other["prior_mean"] == outputs["prior_mean"]).flatten(2).all(-1)
        assert same[:, :3].all()  # of frames 0, 1 and 2
        assert not same[:, 3].any()  # of frame 3, after the change
    assert not torch.equal(by_frame["latent_mean"][:, 2], outputs["latent_mean"][:, 2])
    assert torch.equal(by_action["latent_mean"][:, 2], outputs["latent_mean"][:, 2])
    assert not torch.equal(by_action["predicted_attention"][:, 2], outputs["predicted_attention"][:, 2])


def test_a_hidden_frame_is_expected_not_seen():
    model = small_model()
    observations, actions, _ = shown(model)
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    hidden[:, 3] = True

    def outputs(frames, hidden):
        return model.forward_sequence(frames, actions, hidden, torch.Generator().manual_seed(1))

    there = outputs(observations, hidden)
    weights = expected_log_weights(there["stick_a"], there["stick_b"]).softmax(-1)
    expected = (weights.unsqueeze(-1) * there["prior_mean"]).sum(-2)
    assert torch.allclose(there["latent_mean"][:, 3], expected[:, 3], atol=1e-6)
    assert not torch.allclose(there["latent_mean"][:, 2], expected[:, 2], atol=1e-3)
    changed = observations.clone()
    changed[:, 3] += 0.5
    assert torch.equal(there["reconstruction"][:, 3], outputs(changed, hidden)["reconstruction"][:, 3])
    assert not torch.equal(
        outputs(changed, None)["latent_mean"][:, 3], outputs(observations, None)["latent_mean"][:, 3]
    )


def test_a_displacement_that_is_not_a_number_is_an_error_and_not_the_end_of_the_process():
    model = small_model()
    torch.nn.init.constant_(model.decoder.displacement.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="a displacement of the decoder is not finite"):
        shown(model)


def test_a_roll_out_is_prediction_after_prediction_in_training_too():
    model = small_model()
    observations, actions, _ = shown(model, frames=7)
    rolled = model.roll_out(observations[:, :4], actions[:, :6])
    unrolled = model.forward_sequence(observations, actions, unroll=3)["unrolled"]
    assert torch.allclose(unrolled.clamp(0, 1), rolled, atol=1e-5)
    (gradient,) = torch.autograd.grad(unrolled[:, 2].sum(), model.expectation.weight)
    assert gradient.abs().sum() > 0
    frames = observations[:, :4]
    for length in (4, 5, 6):
        frames = torch.cat([frames, model.next_frames(frames, actions[:, :length])[:, -1:]], 1)
    assert torch.allclose(rolled, frames[:, 4:], atol=1e-5)
    assert not torch.allclose(rolled[:, 2], model.roll_out(observations[:, :4], actions[:, :6].roll(1, -1))[:, 2])


def test_an_untrained_model_that_moves_nothing_copies_the_frame_before(video):
    model = WorldModel(ModelSettings(HEIGHT, WIDTH, 3, 4), video.mean_frame())
    torch.nn.init.zeros_(model.decoder.displacement.weight)
    errors = evaluate(model, windows_of(video, 3, 3, 4), SETTINGS.tasks)
    for pixels in ("all_pixels", "changed_pixels"):
        assert errors[pixels]["next_frame"] == pytest.approx(errors[pixels]["copy_last"], rel=1e-5)
        assert errors[pixels]["reconstruction"] == pytest.approx(errors[pixels]["copy_last"], rel=1e-5)
    assert errors["roll_out"]["model"] == pytest.approx(errors["roll_out"]["copy_last"], rel=1e-5)


def test_slots_share_positions_and_maps_move():
    torch.manual_seed(0)
    slots, maps = SlotAttention(4, 8)(torch.randn(3, 30, 8))
    assert slots.shape == (3, 4, 8)
    assert torch.allclose(maps.sum(-1), torch.ones(3, 4))

    dynamics = MapDynamics(state=5, slots=2)
    with torch.no_grad():
        dynamics.displacement.weight.zero_()
        dynamics.displacement.bias.view(2, 5, 5)[0, 2, 1] = 100.0  # takes what is one position to the left
        dynamics.displacement.bias.view(2, 5, 5)[1, 0, 2] = 100.0  # and what is two above
    maps = torch.rand(3, 2, 6, 7)
    moved = dynamics(torch.randn(3, 5), maps)
    assert torch.allclose(moved.sum((-2, -1)), torch.ones(3, 2))
    for slot, (down, right) in enumerate(((0, 1), (2, 0))):
        expected = maps[:, slot, : 6 - down, : 7 - right]
        inside = moved[:, slot, down:, right:]
        assert torch.allclose(
            inside / inside.sum((-2, -1), keepdim=True), expected / expected.sum((-2, -1), keepdim=True)
        )


def test_a_token_is_of_its_patch_alone_and_the_first_guess_is_that_it_stays():
    model = small_model(codes=32)
    patches, frames = torch.rand(1, 24, 8), torch.rand(1, 2, 16, 24)
    other = frames.clone()
    other[0, :, 5, 5:7] = 0.0  # in the second row and column of patches
    before, after = (model.tokenizer(patches, each)[0] for each in (frames, other))
    same = (before.encoding == after.encoding).all(-1)[0]
    assert same.tolist() == [place != 7 for place in range(24)]

    _, _, outputs = shown(model)
    assert torch.equal(outputs["next_token_logits"].argmax(-1), outputs["token_index"][:, :-1])


def test_idle_codes_come_back_into_use():
    torch.manual_seed(0)
    tokenizer = Tokenizer(features=8, grid=(2, 3), codes=32, size=6, channels=1)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(64, 6, 8), torch.rand(64, 1, 8, 12)
    (encoding, _, _), frames = tokenizer(*given)
    assert frames.shape == given[1].shape
    assert torch.allclose(encoding.norm(dim=-1), torch.ones(64, 6))
    tokenizer.codebook.data[8:] = -encoding.mean((0, 1))  # no token is near these
    index = used = tokenizer(*given)[0].chosen
    for _ in range(40):
        tokenizer.revive(encoding, index, generator)
        index = tokenizer(*given)[0].chosen
    assert len(index.unique()) > len(used.unique())
    tokenizer.codebook.data[30:] = -encoding.mean((0, 1))
    tokenizer.usage.fill_(0.0)
    before, index = tokenizer.codebook.clone(), tokenizer(*given)[0].chosen
    tokenizer.revive(encoding, index, generator)
    counts = index.flatten().bincount(minlength=32)
    assert not counts[30:].any()
    assert (tokenizer.codebook != before).any(-1)[30:].all()
    assert torch.equal(tokenizer.codebook[counts > 1], before[counts > 1])  # those in use stay


def test_the_teacher_follows_the_trunk_and_holds_it_to_what_patches_have_in_common():
    model = small_model()
    teacher, frames = Teacher(model.trunk), torch.rand(1, 2, 2, 16, 24)
    teacher.follow(model.trunk)
    own = model.trunk(frames[0]).patches.flatten(2).mT
    assert torch.equal(teacher.patches(frames)[0], own)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for parameter in model.trunk.parameters():
        parameter.data += 1.0
    teacher.follow(model.trunk)
    for name, parameter in model.trunk.named_parameters():
        moved = teacher.state_dict()[f"module.{name}"] - before[f"module.{name}"]
        assert torch.allclose(moved, torch.full_like(parameter, 0.01), atol=1e-5)


def test_real_and_fake_pairs_are_of_the_same_places():
    observations = torch.rand(2, 6, 1, 4, 4)
    outputs = {"reconstruction": observations + 10, "unrolled": observations[:, -2:] + 20}
    real, fake = real_and_fake(outputs, observations)
    assert real.frames.shape == (2, 7, 1, 4, 4)
    away = torch.tensor([10.0] * 5 + [20.0] * 2).view(1, 7, 1, 1, 1)
    assert torch.allclose(fake.frames - real.frames, away.expand_as(real.frames), atol=1e-5)
    before = torch.tensor([0.0] * 6 + [20.0]).view(1, 7, 1, 1, 1)  # a roll-out's second frame comes after its first
    assert torch.allclose(fake.before - real.before, before.expand_as(real.frames), atol=1e-5)
    places = [1, 2, 3, 4, 5, 4, 5]
    assert torch.equal(real.frames, observations[:, places])
    assert torch.equal(real.before, observations[:, [place - 1 for place in places]])


def test_a_discriminator_is_heard_after_the_warm_up_while_it_beats_chance():
    hearing = Hearing(warm_up=50)
    changes = [step for step in range(100) if hearing.follow(0.9, step)]
    assert changes == [50]
    assert hearing.heard
    assert [step for step in range(100, 200) if hearing.follow(0.5, step)]
    assert not hearing.heard
    chance = Hearing(warm_up=0)
    assert not any(chance.follow(0.5 + 0.1 * (-1) ** step, step) for step in range(200))


# Training


def parameters(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def gradients(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def same(before, after):
    return all(
        (old is None and after[name] is None) or (old is not None and torch.equal(old, after[name]))
        for name, old in before.items()
    )


def test_each_step_leaves_the_other_network_alone(trainer):
    trainer.update()  # both have gradients and optimizer states now
    observations, actions = trainer.video.sequences(trainer.video.windows(4, False)[:2], 4)
    outputs = trainer.model.forward_sequence(observations, actions, unroll=2)
    model, discriminator = trainer.model, trainer.discriminator
    trainer.hearing.heard = True

    before = parameters(discriminator), gradients(discriminator), parameters(model)
    losses = trainer.update_model(outputs, observations)
    assert same(before[0], parameters(discriminator))
    assert same(before[1], gradients(discriminator))
    assert not same(before[2], parameters(model))
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert {"generator_loss", "feature_matching_loss", "adversarial_loss"} <= losses.keys()

    before = parameters(model), gradients(model), parameters(discriminator)
    loss = trainer.update_discriminator(outputs, observations)
    assert loss > 0
    assert same(before[0], parameters(model))
    assert same(before[1], gradients(model))
    assert not same(before[2], parameters(discriminator))


def test_all_four_objectives_reach_the_trunk_and_the_balancer_combines_them(trainer, video):
    trainer.update()
    observations, actions = video.sequences(video.windows(4, False)[:2], 4)
    from experiments.world_model.discriminator import judged  # noqa: PLC0415

    outputs = judged(trainer.model.forward_sequence(observations, actions), trainer.discriminator, observations)
    outputs["teacher_features"] = trainer.teacher.patches(observations)
    _, task_losses = trainer.aggregator.compute_losses(outputs, observations)
    assert len(task_losses) == len(TASKS)
    trunk = list(trainer.model.trunk.parameters())
    for loss in task_losses:
        assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, trunk, retain_graph=True))


@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "pcgrad", "aim", "random"])
def test_any_balancer_by_name_leaves_out_the_adversarial_objective_until_it_is_heard(video, balancer):
    trainer = Trainer(WorldModelConfig(balancer=balancer, sequences=2, length=3, unroll=2), video)
    answers = []
    trainer.balancer.register_forward_hook(lambda _, __, answer: answers.append(answer.coefficients))
    before = parameters(trainer.model)
    losses = trainer.update()
    assert "adversarial_loss" not in losses
    trainer.hearing.heard = True
    losses |= trainer.update()
    assert "adversarial_loss" in losses
    assert all(loss.isfinite() for loss in losses.values())
    assert answers[0][3] == 0 != answers[1][3]
    assert not same(before, parameters(trainer.model))


def test_more_and_more_frames_are_unrolled(video):
    trainer = Trainer(WorldModelConfig(sequences=1, length=5, unroll=4, unroll_ramp=0.5, steps=12), video)
    counts = []
    for step in range(12):
        trainer.steps = step
        counts.append(trainer.unrolled)
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]
    for unroll, most in ((0, 0), (9, 1)):
        assert Trainer(WorldModelConfig(length=2, unroll=unroll, unroll_ramp=0.0), video).unrolled == most


@pytest.mark.slow
def test_training_learns_to_predict_the_next_frame(video):
    config = WorldModelConfig(sequences=6, length=4, unroll=1, steps=60)
    trainer = Trainer(config, video)
    for _ in range(config.steps):
        trainer.update()
    windows = windows_of(video, 3, 3, 60)
    errors = evaluate(trainer.model, windows, SETTINGS.tasks)["changed_pixels"]
    assert errors["next_frame"] < 0.85 * errors["copy_last"]
    turned = replace(windows, actions=windows.actions.flip(0))
    assert not torch.equal(look(trainer.model, windows).next_frame, look(trainer.model, turned).next_frame)


# Runs


@pytest.fixture(scope="module")
def finished(results):
    """The folder of a finished run."""
    assert main([*FLAGS, "--results-dir", str(results), "--checkpoint-interval", "0"]) == 0
    return results / "rgb" / "seed_0"


def test_a_run_leaves_its_files(finished):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["steps"] == QUICK["steps"]
    assert set(evaluation["tasks"]) <= {"Standard", "Windy"}
    assert len(evaluation["roll_out"]["model"]) == QUICK["horizon"]
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["balancer"] == "rgb"
    assert config["objectives"] == list(TASKS)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    keys = {key for line in lines for key in line}
    there = TASKS[:3]  # so short a run ends before the discriminator is heard
    assert {f"balancer/cosine/{a}_{b}" for i, a in enumerate(there) for b in there[i + 1 :]} <= keys
    assert {f"train/{task}/loss" for task in there} <= keys
    assert not any("adversarial" in key for key in keys)
    assert all(0 <= line["discriminator/accuracy"] <= 1 for line in lines if "loss/discriminator_loss" in line)
    assert {"loss/discriminator_loss", "loss/kl_z", "eval/next_frame", "eval/changed_next_frame"} <= keys
    for name in (*PICTURES, "losses.png", "cosines.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    for name in ("reconstructions.mp4", "roll_outs.mp4"):
        assert (finished / name).read_bytes()[4:8] == b"ftyp"
    assert not list(finished.glob("checkpoint*"))
    model = load_model(finished / "model.zip").model
    windows = windows_of(read_video(finished), QUICK["context"], QUICK["horizon"], QUICK["eval_windows"])
    assert evaluate(model, windows, ("Standard", "Windy"))["all_pixels"] == evaluation["all_pixels"]


def read_video(folder):
    return read(folder.parents[1] / "recordings" / SETTINGS.file_name, SETTINGS)


def test_a_finished_run_is_evaluated_on_any_video(finished, capsys):
    flags = ["--results-dir", str(finished.parents[1]), "--frames", "360"]
    windows = ["--context", str(QUICK["context"]), "--horizon", str(QUICK["horizon"])]
    windows += ["--windows", str(QUICK["eval_windows"])]
    assert evaluate_main([*flags, *windows, "--recording-seed", "3"]) == 0  # that of the training video
    held_out = json.loads((finished / "fresh_video.json").read_text())
    trained = json.loads((finished / "evaluation.json").read_text())
    assert held_out["held_out_episodes_only"]
    for key in ("all_pixels", "changed_pixels", "next_token", "discriminator"):
        assert held_out[key] == pytest.approx(trained[key], rel=1e-5)
    assert held_out["roll_out"]["model"] == pytest.approx(trained["roll_out"]["model"], rel=1e-5)
    assert "is right on" in capsys.readouterr().out
    assert (finished / "fresh_roll_outs.png").read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit) as stop:
        evaluate_main([*flags, "--seed", "7"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "seed_7" in error
    assert error.count("\n") == 1


def test_a_landing_policy_flies_inside_the_model_and_outside(finished, capsys, monkeypatch):
    monkeypatch.setattr(landing, "LEARNING_FLIGHTS", 1)
    monkeypatch.setattr(readout, "UPDATES", 50)
    flags = ["--results-dir", str(finished.parents[1]), "--flights", "1", "--context", "3", "--horizon", "2"]
    assert land_main(flags) == 0
    numbers = json.loads((finished / "landing.json").read_text())
    assert numbers["frames"] == 2
    assert numbers["windows"] > 2
    assert all(-1 <= value <= 1 for value in numbers["correlation"].values())
    assert set(numbers["readout_explains"]) == set(readout.QUANTITIES)
    assert f"way down: r = {numbers['correlation']['way down']:.2f}" in capsys.readouterr().out
    assert (finished / "landing.png").read_bytes().startswith(b"\x89PNG")


def test_a_readout_finds_what_the_state_holds(monkeypatch):
    monkeypatch.setattr(readout, "UPDATES", 200)
    torch.manual_seed(0)
    known, mixing = torch.randn(600, 10), torch.randn(10, 8)
    observations = 3 + known @ mixing
    found = readout.Readout(10)
    found.fit(known[:500], observations[:500], torch.Generator().manual_seed(0))
    explained = readout.explained(found(known[500:]).detach(), observations[500:])
    assert list(explained) == list(readout.QUANTITIES)
    assert min(explained.values()) > 0.9
    nothing = readout.explained(observations.mean(0).expand(600, 8), observations)
    assert list(nothing.values()) == pytest.approx([0] * 8, abs=1e-4)


def test_the_shaped_return_is_the_games_reward():
    env = make_task_env("Standard")
    observations, actions, rewards = [env.reset(seed=1)[0]], [], 0.0
    for step in range(40):
        actions.append(step % 4)
        observation, reward, terminated, _, _ = env.step(actions[-1])
        assert not terminated
        observations.append(observation)
        rewards += reward
    seen, taken = torch.from_numpy(np.stack(observations))[None], torch.tensor(actions)[None]
    assert readout.shaped_return(seen, taken, frame_skip=1).item() == pytest.approx(rewards, abs=1e-2)


def test_a_finished_run_is_kept(finished, capsys):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main([*FLAGS, "--results-dir", str(finished.parents[1])])
    assert stop.value.code == 2
    assert "holds a finished run; give --existing replace" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "recordings").symlink_to(finished.parents[1] / "recordings")
    flags = [*FLAGS, "--results-dir", str(tmp_path), "--checkpoint-interval", "0.0001"]
    for name in (name for name in vars(figures) if name.endswith(("_figure", "_film"))):
        monkeypatch.setattr(figures, name, lambda *_: None)  # they take many seconds
    update, count = Trainer.update, 0

    def stopping(self):
        nonlocal count
        count += 1
        if count == 13:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", stopping)
        with pytest.raises(SystemExit):
            main(flags)
    folder = tmp_path / "rgb" / "seed_0"
    assert (folder / "checkpoint.zip").exists()
    assert not (folder / "evaluation.json").exists()
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--learning-rate", "0.5"])
    assert stop.value.code == 2
    assert "learning_rate was 0.002 and is 0.5" in capsys.readouterr().err
    # Earlier versions wrote the settings that must stay the same, without what may differ and without the versions.
    state = checkpoint.load(folder / "checkpoint.zip")
    settings = {name: value for name, value in state["description"]["settings"].items() if name not in FREE_SETTINGS}
    del settings["existing"]
    former = {"kind": state["kind"], "settings": settings, "seconds": state["seconds"], "trainer": state["trainer"]}
    checkpoint.save(folder / "checkpoint.zip", former)

    assert main(flags) == 0
    for one, other in zip(load_model(finished / "model.zip"), load_model(folder / "model.zip"), strict=True):
        assert same(one.state_dict(), other.state_dict())

    def numbers(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]

    assert numbers(folder) == numbers(finished)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--balancer", "rgbb"], "unknown balancer 'rgbb'; balancers are equal"),
        (["--tasks", "Standard", "Windey"], "unknown task 'Windey'; tasks are Standard"),
        (["--steps", "0"], "steps is 0; it must be between 1 and"),
        (["--hidden-share", "2"], "hidden_share is 2.0; it must be between 0 and 1"),
        (["--observation-std", "nan"], "observation_std is nan; it must be above 0"),
        (["--unroll", "64"], "unroll is 64; it must be between 0 and 63"),
        (["--frames", "12"], "frames is 12; it must be between 100 and"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(["--quick", "--results-dir", str(tmp_path / "new"), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_help_is_fast_to_load():
    code = (
        "import sys\nfrom experiments.world_model.train import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for flag in WorldModelConfig.__dataclass_fields__:
        assert f"--{flag.replace('_', '-')}" in done.stdout


def test_the_model_file_is_checked(tmp_path):
    checkpoint.save(tmp_path / "other.zip", {"kind": "supervised"})
    with pytest.raises(checkpoint.CheckpointError, match="it is no world model"):
        load_model(tmp_path / "other.zip")
    checkpoint.save(tmp_path / "former.zip", {"kind": "world_model", "model": {}, "weights": {}})
    with pytest.raises(checkpoint.CheckpointError, match="it is of an earlier version"):
        load_model(tmp_path / "former.zip")
    with pytest.raises(checkpoint.CheckpointError):
        load_model(Path(tmp_path / "none.zip"))
