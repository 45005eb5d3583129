"""The diffusion process against single steps, Bayes' formula, and a best denoiser that is known."""

import itertools

import numpy as np
import pytest

from sgdphases.diffusion.process import (
    clean_estimate,
    ddim_step,
    ddpm_step,
    diffuse,
    guided,
    linear_schedule,
    sampling_steps,
    velocity_of,
)
from sgdphases.diffusion.sampling import plan_moves

NUM_STEPS = 400
SCHEDULE = linear_schedule(NUM_STEPS, 1e-4, 0.02)


def test_schedule_is_the_published_one():
    assert SCHEDULE.num_steps == NUM_STEPS
    assert (SCHEDULE.beta[0], SCHEDULE.signal[0], SCHEDULE.noise[0]) == (0, 1, 0)
    assert SCHEDULE.beta[[1, -1]] == pytest.approx([1e-4, 0.02], rel=1e-15)
    np.testing.assert_allclose(np.diff(SCHEDULE.beta[1:], n=2), 0, atol=1e-15)
    np.testing.assert_allclose(SCHEDULE.signal**2 + SCHEDULE.noise**2, 1, rtol=1e-14)


def test_closed_form_is_many_single_steps():
    """Mean and variance of x_t given x_0, one step after the other: x ← √(1−β) x + √β z."""
    mean, variance = 1.0, 0.0
    for step in range(1, NUM_STEPS + 1):
        beta = SCHEDULE.beta[step]
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert SCHEDULE.signal[step] == pytest.approx(mean, rel=1e-12)
        assert SCHEDULE.noise[step] ** 2 == pytest.approx(variance, rel=1e-12)


def test_diffused_samples_have_these_moments_and_can_be_undone():
    generator = np.random.default_rng(0)
    clean = np.full((200_000, 1), 0.7)
    noise = generator.standard_normal(clean.shape)
    steps = np.repeat([1, 50, 200, 400], 50_000)
    signal, spread = SCHEDULE.signal[steps], SCHEDULE.noise[steps]
    noisy = diffuse(clean, noise, signal, spread)
    groups = noisy.reshape(4, -1)
    expected, deviation = (x[[1, 50, 200, 400]] for x in (SCHEDULE.signal, SCHEDULE.noise))
    # Four standard errors.
    assert (np.abs(groups.mean(axis=1) - 0.7 * expected) < 4 * deviation / 50_000**0.5).all()
    np.testing.assert_allclose(groups.std(axis=1), deviation, rtol=0.015)
    np.testing.assert_allclose(clean_estimate(noisy, noise, signal, spread), clean, rtol=1e-12)


@pytest.mark.parametrize("step", [1, 2, 37, 200, 400])
def test_ddpm_step_is_bayes_formula(step):
    """p(x_{t-1} | x_t, x_0) from the two Gaussians q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    clean, noisy, beta = 0.3, -1.1, SCHEDULE.beta[step]
    prior_mean = SCHEDULE.signal[step - 1] * clean
    prior_variance = SCHEDULE.noise[step - 1] ** 2
    back = ddpm_step(SCHEDULE, step)
    mean = back.of_clean * clean + back.of_noisy * noisy
    if step == 1:
        assert mean == pytest.approx(clean, rel=1e-12)
        assert back.deviation == 0
        return
    precision = 1 / prior_variance + (1 - beta) / beta
    expected = (prior_mean / prior_variance + np.sqrt(1 - beta) * noisy / beta) / precision
    assert mean == pytest.approx(expected, rel=1e-10)
    assert back.deviation**2 == pytest.approx(1 / precision, rel=1e-10)


def test_ddim_with_eta_1_and_every_step_is_ddpm():
    for step in range(1, NUM_STEPS + 1):
        np.testing.assert_allclose(
            ddim_step(SCHEDULE, step, step - 1, 1.0),
            ddpm_step(SCHEDULE, step),
            rtol=1e-9,
            atol=1e-14,
        )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("step", "next_step"), [(400, 380), (60, 20), (8, 0)])
def test_ddim_step_keeps_the_marginal(step, next_step, eta):
    """From q(x_t | x_0) it leads to q(x_s | x_0), whatever η."""
    back = ddim_step(SCHEDULE, step, next_step, eta)
    mean = back.of_clean + back.of_noisy * SCHEDULE.signal[step]
    variance = (back.of_noisy * SCHEDULE.noise[step]) ** 2 + back.deviation**2
    assert mean == pytest.approx(SCHEDULE.signal[next_step], rel=1e-12)
    assert variance == pytest.approx(SCHEDULE.noise[next_step] ** 2, rel=1e-12, abs=1e-15)


def test_sampling_steps_go_all_the_way_down():
    np.testing.assert_array_equal(sampling_steps(400, 400), np.arange(400, -1, -1))
    np.testing.assert_array_equal(sampling_steps(400, 4), [400, 300, 200, 100, 0])
    np.testing.assert_array_equal(sampling_steps(400, 1), [400, 0])
    for count in (3, 7, 50, 399):
        assert (np.diff(sampling_steps(400, count)) < 0).all()


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"sampler": "ddpm"}, 0.02),
        ({"sampler": "ddim", "num_steps": 400, "eta": 0.0}, 0.02),
        ({"sampler": "ddim", "num_steps": 400, "eta": 1.0}, 0.02),
        ({"sampler": "ddim", "num_steps": 50, "eta": 0.0}, 0.06),
    ],
)
def test_samplers_recover_gaussian_data(settings, tolerance):
    """Of x_0 ~ N(m, s²) the best prediction of the noise is known: E[ε | x_t].

    The start is drawn from q(x_T), so that all of the error is that of the steps.
    """
    data_mean, data_deviation, count = 0.4, 0.5, 40_000
    generator = np.random.default_rng(1)
    deviations = np.sqrt((SCHEDULE.signal * data_deviation) ** 2 + SCHEDULE.noise**2)
    noisy = SCHEDULE.signal[-1] * data_mean + deviations[-1] * generator.standard_normal(count)
    for move in plan_moves(SCHEDULE, settings):
        centred = noisy - move.signal * data_mean
        noise = move.spread * centred / deviations[move.step] ** 2
        clean = clean_estimate(noisy, noise, move.signal, move.spread)
        noisy = move.back.of_clean * clean + move.back.of_noisy * noisy
        if move.back.deviation:
            noisy += move.back.deviation * generator.standard_normal(count)
    assert noisy.mean() == pytest.approx(data_mean, abs=0.02)
    assert noisy.std() == pytest.approx(data_deviation, rel=tolerance)


def test_velocity_has_unit_variance_and_gives_the_noise_back():
    mean, deviation, count = 0.13, 0.31, 400_000
    generator = np.random.default_rng(3)
    velocity = velocity_of(SCHEDULE, mean, deviation)
    clean = mean + deviation * generator.standard_normal((count, 1))
    noise = generator.standard_normal((count, 1))
    steps = np.repeat([1, 30, 200, 400], count // 4)
    noisy = diffuse(clean, noise, SCHEDULE.signal[steps], SCHEDULE.noise[steps])
    read = velocity.read(noisy, steps)
    target = velocity.target(read, noise, steps)
    standardised = (clean - mean) / deviation
    cosine, sine = (x[steps][:, None] for x in (velocity.cosine, velocity.sine))
    np.testing.assert_allclose(target, cosine * noise - sine * standardised, atol=1e-9)
    np.testing.assert_allclose(velocity.noise(read, target, steps), noise, rtol=1e-9, atol=1e-12)
    for values in (read, target):
        np.testing.assert_allclose(values.reshape(4, -1).mean(axis=1), 0, atol=0.015)
        np.testing.assert_allclose(values.reshape(4, -1).std(axis=1), 1, atol=0.015)


def test_guidance_0_is_the_conditional_model():
    conditional, unconditional = np.random.default_rng(2).standard_normal((2, 5))
    np.testing.assert_array_equal(guided(conditional, unconditional, 0.0), conditional)
    np.testing.assert_allclose(
        guided(conditional, unconditional, 2.0), 3 * conditional - 2 * unconditional
    )


def test_moves_join():
    for settings in ({"sampler": "ddpm"}, {"sampler": "ddim", "num_steps": 7, "eta": 0.3}):
        moves = plan_moves(SCHEDULE, settings)
        assert moves[0].step == NUM_STEPS
        assert moves[-1].next_step == 0
        assert moves[-1].back.deviation == 0
        assert all(a.next_step == b.step for a, b in itertools.pairwise(moves))
