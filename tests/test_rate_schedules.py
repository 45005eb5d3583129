"""Learning-rate schedules against those of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgdphases.errors import InputError
from sgdphases.rate_schedules import (
    RateSchedule,
    physical_time,
    rate_factor,
    read_rate_schedule,
    schedule_of_run,
)
from sgdphases.schedule import planned_steps

CONSTANT = RateSchedule()
PIECEWISE = RateSchedule("piecewise", boundaries=(0.3, 0.6, 0.9), factors=(0.2, 0.2, 0.5))
COSINE = RateSchedule("warmup_cosine", warmup=0.05)
FINAL = RateSchedule("final_rate", learning_rate=0.02, num_steps=50)
EVERY_SCHEDULE = [CONSTANT, PIECEWISE, COSINE, RateSchedule("warmup_cosine"), FINAL]


def factors(schedule, num_steps, learning_rate=0.1, dtype=jnp.float64):
    """The factors of all steps of a run, by one compiled program in which all is traced."""

    @jax.jit
    def all_steps(steps, total, base, rate, final):
        return jax.vmap(lambda step: rate_factor(schedule, step, total, base, rate, final))(steps)

    base = num_steps - schedule.extra_steps
    rates = (jnp.asarray(rate, dtype) for rate in (learning_rate, schedule.learning_rate))
    return all_steps(jnp.arange(num_steps), num_steps, base, *rates)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("num_steps", [1, 7, 100, 1000])
def test_constant(num_steps):
    assert (factors(CONSTANT, num_steps) == 1).all()


@pytest.mark.parametrize("num_steps", [10, 100, 1000, 12_000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_piecewise_agrees_with_optax(num_steps, dtype):
    boundaries = {round(b * num_steps): f for b, f in [(0.3, 0.2), (0.6, 0.2), (0.9, 0.5)]}
    expected = optax.piecewise_constant_schedule(1.0, boundaries)(jnp.arange(num_steps))
    result = factors(PIECEWISE, num_steps, dtype=dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=1e-6 if dtype == jnp.float32 else 1e-14)


def test_factors_accumulate_from_their_boundaries_on():
    result = np.asarray(factors(PIECEWISE, 10))
    np.testing.assert_allclose(result, [1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04, 0.02], rtol=1e-14)


@pytest.mark.parametrize("num_steps", [20, 99, 1000])
@pytest.mark.parametrize("warmup", [0.05, 0.5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_warmup_and_cosine_agree_with_optax(num_steps, warmup, dtype):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, round(warmup * num_steps), num_steps)
    expected = schedule(jnp.arange(num_steps, dtype=jnp.float64))
    result = factors(RateSchedule("warmup_cosine", warmup=warmup), num_steps, dtype=dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=1e-6 if dtype == jnp.float32 else 1e-14)


def test_cosine_without_warmup_agrees_with_optax():
    expected = optax.cosine_decay_schedule(1.0, 30)(jnp.arange(30, dtype=jnp.float64))
    np.testing.assert_allclose(factors(RateSchedule("warmup_cosine"), 30), expected, atol=1e-14)


def test_the_rate_stays_at_zero_once_a_cosine_has_ended():
    assert float(rate_factor(COSINE, 1500, 1000, 1000, 0.1, 0.0)) == pytest.approx(0, abs=1e-15)


def test_final_rate_is_absolute():
    rates = 0.5 * factors(FINAL, 80, learning_rate=0.5)
    np.testing.assert_allclose(rates, [0.5] * 30 + [0.02] * 50, rtol=1e-14)


def test_a_run_may_have_a_final_rate_and_steps_of_its_own():
    own = {"final_learning_rate": 0.5, "final_steps": 0}
    assert schedule_of_run(FINAL, own) == RateSchedule("final_rate", learning_rate=0.5)
    assert schedule_of_run(FINAL, dict.fromkeys(own)) == FINAL
    assert schedule_of_run(COSINE, dict.fromkeys(own)) == COSINE


def test_runs_of_different_length_share_a_program():
    num_steps = jnp.array([60, 100, 1000])
    learning_rates = jnp.array([0.1, 0.2, 0.3])
    for schedule in EVERY_SCHEDULE:
        base = num_steps - schedule.extra_steps
        final = jnp.array([0.02, 0.02, 0.01])
        run = jax.vmap(lambda n, b, r, f, s=schedule: rate_factor(s, 55, n, b, r, f))
        expected = [
            rate_factor(schedule, 55, int(n), int(b), float(r), float(f))
            for n, b, r, f in zip(num_steps, base, learning_rates, final, strict=True)
        ]
        found = run(num_steps, base, learning_rates, final)
        np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
@pytest.mark.parametrize("num_steps", [51, 64, 1000])
def test_physical_time_is_the_sum_of_the_rates(schedule, num_steps):
    rates = 0.1 * np.asarray(factors(schedule, num_steps))
    expected = np.concatenate([[0.0], np.cumsum(rates)])
    steps = np.arange(num_steps + 1)
    times = physical_time(schedule, steps, num_steps, 0.1)
    np.testing.assert_allclose(times, expected, rtol=1e-11, atol=1e-14)
    assert physical_time(schedule, 7, num_steps, 0.1).shape == ()


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_a_physical_time_is_that_of_the_changing_rate(schedule):
    """However the rate changes, a run's rates add up to the budget, to a step's worth."""
    num_steps = planned_steps({"physical_time": 50.0}, 0.03, schedule=schedule)
    base_steps = num_steps - schedule.extra_steps
    time = physical_time(schedule, base_steps, num_steps, 0.03)
    assert time == pytest.approx(50.0, abs=2 * 0.03)


def test_reading():
    assert read_rate_schedule(None) == read_rate_schedule({"kind": "constant"}) == CONSTANT
    piecewise = {"kind": "piecewise", "boundaries": [0.3, 0.6, 0.9], "factors": [0.2, 0.2, 0.5]}
    assert read_rate_schedule(piecewise) == PIECEWISE
    assert read_rate_schedule({"kind": "warmup_cosine", "warmup": 0.05}) == COSINE
    final = {"kind": "final_rate", "learning_rate": 0.02, "num_steps": 50}
    assert read_rate_schedule(final) == FINAL
    assert final["kind"] == "final_rate"
    assert len({read_rate_schedule(final), FINAL, CONSTANT}) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"schedule\.kind: None is not allowed; allowed: constant, piecewise"),
        ({"kind": "linear"}, r"schedule\.kind: 'linear' is not allowed"),
        ({"kind": "constant", "warmup": 0.1}, r"schedule: warmup beside kind constant is not"),
        ({"kind": "warmup_cosine"}, r"nothing beside kind warmup_cosine .* allowed: warmup"),
        ({"kind": "warmup_cosine", "warmup": 1}, r"schedule\.warmup: 1 is not allowed"),
        ({"kind": "warmup_cosine", "warmup": "5%"}, r"schedule\.warmup: '5%' is not allowed"),
        ({"kind": "piecewise", "boundaries": [], "factors": []}, r"schedule\.boundaries: \[\]"),
        ({"kind": "piecewise", "boundaries": [0.5, 0.4], "factors": [1, 1]}, "increasing"),
        ({"kind": "piecewise", "boundaries": [0.5, 1], "factors": [1, 1]}, "between 0 and 1"),
        ({"kind": "piecewise", "boundaries": [0.5], "factors": [0.1, 0.1]}, "for each of the"),
        ({"kind": "piecewise", "boundaries": [0.5], "factors": [-0.1]}, r"schedule\.factors"),
        ({"kind": "piecewise", "boundaries": [float("nan")], "factors": [0.1]}, "increasing"),
        ({"kind": "final_rate", "learning_rate": 0, "num_steps": 5}, r"schedule\.learning_rate: 0"),
        ({"kind": "final_rate", "learning_rate": 0.1, "num_steps": 0.5}, r"schedule\.num_steps"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        read_rate_schedule(settings)
    assert "\n" not in str(caught.value)
