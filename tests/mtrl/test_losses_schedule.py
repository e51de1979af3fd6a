"""Schedules: their ends, their shapes, and that they are functions of the step alone."""

import math

import pytest

from mtrl.losses import Constant, Cosine, Cyclical, Linear

STEPS = 120
ALL = [Constant(0.7), Linear(0.0, 2.0, STEPS), Cosine(0.0, 2.0, STEPS), Cyclical(0.0, 2.0, STEPS)]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_a_schedule_is_a_function_of_the_step(schedule):
    course = [schedule(step) for step in range(STEPS + 10)]
    assert [schedule(step) for step in reversed(range(STEPS + 10))] == course[::-1]
    assert set(course[STEPS:]) == {course[STEPS]}
    assert all(math.isfinite(value) and 0 <= value <= 2 for value in course)
    assert schedule == type(schedule)(**vars(schedule))
    with pytest.raises(ValueError, match="step is -1"):
        schedule(-1)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (3.0, 0.1), (0.3, 0.3)])
@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_linear_and_cosine_go_one_way_between_their_ends(kind, start, end, steps):
    schedule = kind(start, end, steps)
    course = [schedule(step) for step in range(steps + 1)]
    assert course[0] == start
    assert course[-1] == schedule(10 * steps) == end
    assert sorted(course, reverse=start > end) == course
    middle = (schedule(steps // 2) + schedule(steps - steps // 2)) / 2
    assert middle == pytest.approx((start + end) / 2)  # both are odd about their middle


def test_linear_is_straight_and_cosine_is_half_a_cosine():
    for step in range(STEPS):
        assert Linear(1.0, 3.0, STEPS)(step) == pytest.approx(1 + 2 * step / STEPS)
        assert Cosine(1.0, 3.0, STEPS)(step) == pytest.approx(2 - math.cos(math.pi * step / STEPS))


def test_constant_is_constant():
    assert {Constant(0.3)(step) for step in (0, 1, 10**9)} == {0.3}
    assert Constant()(5) == 1.0


@pytest.mark.parametrize("cycles", [1, 3, 4])
@pytest.mark.parametrize("ramp", [0.25, 0.5, 1.0])
def test_cyclical_is_the_formula_of_fu_et_al(cycles, ramp):
    schedule = Cyclical(0.0, 1.0, STEPS, cycles=cycles, ramp=ramp)
    period = STEPS // cycles
    for step in range(STEPS):
        tau = (step % period) / period
        assert schedule(step) == pytest.approx(tau / ramp if tau <= ramp else 1.0)
        if step + period < STEPS:
            assert schedule(step) == schedule(step + period)
    assert [schedule(k * period) for k in range(cycles)] == [0.0] * cycles
    assert schedule(STEPS) == 1.0


def test_cycles_need_not_divide_the_steps():
    course = [Cyclical(0.0, 1.0, 10, cycles=3)(step) for step in range(10)]
    falls = [step for step in range(1, 10) if course[step] < course[step - 1]]
    assert falls == [4, 7]  # the first steps at or after 10/3 and 20/3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0, 1, 0), "steps is 0"),
        (lambda: Cosine(0, 1, -3), "steps is -3"),
        (lambda: Cyclical(0, 1, 0), "steps is 0"),
        (lambda: Cyclical(0, 1, 10, cycles=11), "cycles is 11; it must be between 1 and steps, 10"),
        (lambda: Cyclical(0, 1, 10, cycles=0), "cycles is 0"),
        (lambda: Cyclical(0, 1, 10, ramp=0), "ramp is 0"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
