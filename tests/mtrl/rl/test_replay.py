import numpy as np
import pytest
import torch

from agents import TaskReplayBuffer

T, K, SIZE = 3, 2, 4


def step(number):
    """A recognisable step of T * K environments: every value tells the column and the step."""
    columns = np.arange(T * K, dtype=np.float32)
    observations = np.repeat((100 * columns + number)[:, None], SIZE, 1)
    actions = np.arange(T * K) % 4
    return observations, observations + 0.5, actions, columns + number, columns.astype(int) % 2 == 0


def filled(steps, capacity=10, seed=0):
    buffer = TaskReplayBuffer(capacity, T, SIZE, seed)
    for number in range(steps):
        buffer.add(*step(number))
    return buffer


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 23])
def test_each_task_samples_its_own_columns_and_only_what_is_kept(steps):
    buffer = filled(steps)
    batch = buffer.sample(500)
    observed = batch.observations.view(T, 500, SIZE)
    kept = range(max(0, steps - 5), steps)  # 10 transitions per task at 2 a step
    for task in range(T):
        expected = {100.0 * column + number for column in (2 * task, 2 * task + 1) for number in kept}
        assert set(observed[task, :, 0].tolist()) == expected


def test_fields_of_a_transition_stay_together():
    batch = filled(8).sample(100)
    column, number = batch.observations[:, 0] // 100, batch.observations[:, 0] % 100
    torch.testing.assert_close(batch.next_observations, batch.observations + 0.5)
    torch.testing.assert_close(batch.rewards, column + number)
    assert torch.equal(batch.actions, column.long() % 4)
    assert torch.equal(batch.discounts, (column.long() % 2 == 0).float())
    assert batch.actions.dtype == torch.int64


def test_a_step_wider_than_what_is_left_wraps_around():
    buffer = filled(4, capacity=3)  # 2 columns a step into 3 places
    assert len(buffer) == 3
    assert buffer.position == 8 % 3
    kept = set(buffer.sample(300).observations.view(T, 300, SIZE)[0, :, 0].tolist())
    assert kept == {3.0, 103.0, 102.0}


def test_sampling_depends_on_the_buffers_own_seed_only():
    one, two, other = filled(5, seed=1), filled(5, seed=1), filled(5, seed=2)
    torch.manual_seed(0)
    first = one.sample(50).observations
    torch.manual_seed(1)
    np.random.seed(3)
    assert torch.equal(first, two.sample(50).observations)
    assert not torch.equal(first, other.sample(50).observations)


def test_state_dict_round_trip_samples_on_identically():
    buffer, copy = filled(7), TaskReplayBuffer(10, T, SIZE, seed=9)
    buffer.sample(5)
    copy.load_state_dict(buffer.state_dict())
    for _ in range(3):
        for mine, theirs in zip(buffer.sample(20), copy.sample(20), strict=True):
            assert torch.equal(mine, theirs)
    buffer.add(*step(7))
    copy.add(*step(7))
    assert torch.equal(buffer.sample(20).observations, copy.sample(20).observations)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="capacity is 0"):
        TaskReplayBuffer(0, T, SIZE, seed=0)
    with pytest.raises(ValueError, match="empty"):
        TaskReplayBuffer(5, T, SIZE, seed=0).sample(1)
    with pytest.raises(ValueError, match="has the shape"):
        TaskReplayBuffer(5, T, SIZE, seed=0).load_state_dict(filled(8).state_dict())
