"""When a run is measured and when it ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdphases.errors import InputError
from sgdphases.rate_schedules import RateSchedule
from sgdphases.schedule import MOST_STEPS, measurement_steps, planned_steps

schedules = st.fixed_dictionaries(
    {},
    optional={
        "dense_until": st.integers(0, 50),
        "every": st.integers(1, 50),
        "points_per_decade": st.integers(1, 30),
        "steps": st.lists(st.integers(0, 3000), max_size=5),
    },
)


def test_steps_by_hand():
    assert measurement_steps({}, 10).tolist() == [0]
    assert measurement_steps({"dense_until": 3}, 10).tolist() == [0, 1, 2, 3]
    assert measurement_steps({"every": 4}, 10).tolist() == [0, 4, 8]
    assert measurement_steps({"points_per_decade": 1}, 1000).tolist() == [0, 1, 10, 100, 1000]
    assert measurement_steps({"points_per_decade": 2}, 100).tolist() == [0, 1, 3, 10, 32, 100]
    assert measurement_steps({"dense_until": 2, "every": 5}, 10).tolist() == [0, 1, 2, 5, 10]


@given(schedules, st.integers(0, 3000))
def test_steps_are_sorted_unique_and_in_range(schedule, last_step):
    steps = measurement_steps(schedule, last_step)
    assert steps[0] == 0
    assert steps[-1] <= last_step
    assert (np.diff(steps) > 0).all()


@given(schedules, st.integers(0, 3000), st.integers(0, 3000))
def test_a_longer_neighbour_does_not_change_the_steps(schedule, short, longer):
    """Runs of different length are measured at the same steps however they are grouped."""
    short, longer = sorted((short, longer))
    steps = measurement_steps(schedule, longer)
    assert measurement_steps(schedule, short).tolist() == steps[steps <= short].tolist()


@given(st.integers(0, 3000), st.integers(0, 50), st.integers(1, 50))
def test_what_was_asked_for_is_there(last_step, dense_until, every):
    steps = set(measurement_steps({"dense_until": dense_until, "every": every}, last_step).tolist())
    assert set(range(min(dense_until, last_step) + 1)) <= steps
    assert set(range(0, last_step + 1, every)) <= steps


@pytest.mark.parametrize(
    ("stopping", "learning_rate", "expected"),
    [
        ({"num_steps": 20}, 0.1, 20),
        ({"physical_time": 250.0}, 0.5, 500),
        ({"physical_time": 250.0}, 0.3, 834),
        ({"physical_time": 1.0}, 0.1, 10),
        ({"physical_time": 0.7}, 0.1, 7),  # 0.7 / 0.1 is 6.999999999999999
        ({"physical_time": 0.3}, 0.1, 3),  # 0.3 / 0.1 is 2.9999999999999996
        ({"physical_time": 1.0}, 100.0, 1),
        ({"num_steps": 20, "physical_time": 1.0}, 0.1, 10),
        ({"num_steps": 5, "physical_time": 1.0}, 0.1, 5),
        ({"num_steps": 5, "physical_time": 1.0}, 1e-300, 5),
        ({"num_steps": MOST_STEPS}, 0.1, MOST_STEPS),
    ],
)
def test_the_first_budget_reached_ends_a_run(stopping, learning_rate, expected):
    steps = planned_steps(stopping, learning_rate)
    assert steps == expected
    assert isinstance(steps, int)


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_whole_numbers_of_steps_are_not_rounded_up(num_steps, denominator):
    learning_rate = 1 / denominator
    assert planned_steps({"physical_time": num_steps * learning_rate}, learning_rate) == num_steps


@pytest.mark.parametrize("learning_rate", [1e-9, 1e-320, float("nan")])
def test_uncountable_steps_are_refused(learning_rate):
    with pytest.raises(InputError, match=r"physical_time.*allowed: at most 2147483647"):
        planned_steps({"physical_time": 250.0}, learning_rate)


def test_min_steps_outlasts_a_short_physical_time():
    stopping = {"physical_time": 3.0, "min_steps": 30}
    assert planned_steps(stopping, 0.5) == 30
    assert planned_steps(stopping, 0.01) == 300
    assert planned_steps({**stopping, "num_steps": 10}, 0.5) == 10


def test_steps_may_be_listed():
    assert measurement_steps({"steps": [30, 7, 7, 200]}, 100).tolist() == [0, 7, 30]
    assert measurement_steps({"steps": [7], "every": 50}, 100).tolist() == [0, 7, 50, 100]


@pytest.mark.parametrize(
    ("stopping", "expected"),
    [
        ({"epochs": 3}, 36),
        ({"epochs": 0.5}, 6),
        ({"epochs": 0.3}, 4),  # 3.6 steps
        ({"epochs": 0.01}, 1),
        ({"epochs": 3, "num_steps": 20}, 20),
        ({"epochs": 1, "num_steps": 20}, 12),
        ({"decay_time": 0.1}, 1000),
        ({"decay_time": 0.07}, 700),
        ({"decay_time": 0.1, "epochs": 3}, 36),
        ({"decay_time": 1e-5}, 1),
        ({"decay_time": 1e-5, "min_steps": 30}, 30),
        ({"decay_time": 0.1, "physical_time": 50.0}, 500),
        ({"num_steps": 8, "train_accuracy": 1.0}, 8),
    ],
)
def test_epochs_and_decay_time_are_budgets_too(stopping, expected):
    steps = planned_steps(stopping, 0.1, weight_decay=1e-3, steps_per_epoch=12)
    assert steps == expected
    assert isinstance(steps, int)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_whole_epochs_are_not_rounded_up(epochs, steps_per_epoch):
    fraction = epochs / steps_per_epoch  # of an epoch, in all `epochs` steps
    assert planned_steps({"epochs": fraction}, 0.1, 0.0, steps_per_epoch) == epochs


def test_without_weight_decay_another_budget_is_needed():
    assert planned_steps({"decay_time": 0.1, "physical_time": 5.0}, 0.1) == 50
    with pytest.raises(
        InputError, match="ends no run of weight_decay 0; allowed: any of num_steps"
    ):
        planned_steps({"decay_time": 0.1}, 0.1)


@pytest.mark.parametrize("stopping", [{}, {"train_accuracy": 1.0}, {"min_steps": 5}])
def test_a_budget_is_needed(stopping):
    with pytest.raises(InputError, match="ends no run; allowed: any of num_steps"):
        planned_steps(stopping, 0.1)


def test_uncountable_decay_times_are_refused():
    with pytest.raises(InputError, match=r"decay_time.*allowed: at most 2147483647"):
        planned_steps({"decay_time": 1.0}, 1e-200, weight_decay=1e-200)


def test_steps_at_a_final_rate_come_after_the_budget():
    """The catapult paper's 475/η steps, then 50 thousand at 2e-5."""
    schedule = RateSchedule("final_rate", learning_rate=2e-5, num_steps=50_000)
    steps = planned_steps({"physical_time": 475.0}, 1e-3, schedule=schedule)
    assert steps == 475_000 + 50_000
    assert planned_steps({"num_steps": 10}, 1e-3, schedule=schedule) == 50_010
    assert planned_steps({"physical_time": 1e-9}, 1e-3, schedule=schedule) == 50_001
    with pytest.raises(InputError, match="allowed: at most"):
        planned_steps({"num_steps": MOST_STEPS - 49_999}, 1e-3, schedule=schedule)


def test_physical_time_counts_the_rates_of_the_schedule():
    halves = RateSchedule("piecewise", boundaries=(0.5,), factors=(0.5,))
    assert planned_steps({"physical_time": 75.0}, 0.1, schedule=halves) == 1000
    cosine = RateSchedule("warmup_cosine", warmup=0.1)
    assert planned_steps({"physical_time": 50.0}, 0.1, schedule=cosine) == 1000
    assert planned_steps({"num_steps": 70}, 0.1, schedule=cosine) == 70
