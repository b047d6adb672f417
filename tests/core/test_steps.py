"""Model calls are counted as the steps that they belong to, for every kind of sampler."""

import pytest

from memguard.detectors.attention_entropy_late import is_late
from memguard.steps import Steps, Unlisted

GRID = [10.0, 8.0, 6.0, 4.0, 2.0]
HEUN = [10.0, 8.0, 8.0, 6.0, 6.0, 4.0, 4.0, 2.0, 2.0]
MIDDLE = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
PLMS = [10.0, 8.0, 8.0, 6.0, 4.0, 2.0]
RUNGE_KUTTA = [10.0, 9.0, 9.0, 8.0, 8.0, 7.0, 7.0, 6.0, 6.0, 4.0, 2.0]  # two of five steps by four calls each
KINDS = {
    "plain": (GRID, 0, [0, 1, 2, 3, 4]),
    "heun": (HEUN, 0, [0, 1, 1, 2, 2, 3, 3, 4, 4]),
    "middle": (MIDDLE, 4, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
    "plms": (PLMS, 0, [0, 1, 1, 2, 3, 4]),
    "runge-kutta": (RUNGE_KUTTA, 2, [0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_belongs_to_the_step_whose_level_it_has_reached(kind):
    levels, between, expected = KINDS[kind]
    counter = Steps.of_calls(levels, between)
    assert counter.levels == GRID
    assert (counter.count, [counter.of(level) for level in levels]) == (5, expected)


def test_rounding_does_not_move_a_call_to_the_next_step_and_a_level_above_all_is_the_first():
    counter = Steps(GRID)
    assert [counter.of(level) for level in (8.0004, 8.0 + 8e-4 * 1.01, 7.9996, 11.0, 0.0)] == [1, 0, 1, 0, 4]


@pytest.mark.parametrize("kind", ["plain", "heun", "middle"])
def test_without_a_schedule_late_steps_are_the_same(kind):
    levels, _, expected = KINDS[kind]
    counter = Unlisted(5, 5 if kind == "plain" else 10)
    found = [counter.of(level) for level in levels]
    assert found[0] == 0 and found[3:] == expected[3:]
    assert counter.count == 5
    assert [is_late(step, counter.count) for step in found] == [is_late(step, 5) for step in expected]


def test_a_host_that_does_not_know_the_number_of_steps_counts_levels():
    assert [Unlisted(0, 0).of(1.0), Unlisted(0, 0).count] == [0, 0]
    counter = Unlisted(0, 3)
    assert [counter.of(level) for level in (3.0, 2.0, 2.0)] == [0, 1, 1]
