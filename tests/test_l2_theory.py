"""Infinitely wide networks with L2 against other solvers, and the small models with L2."""

import numpy as np
import pytest
from scipy.integrate import quad_vec, solve_ivp
from scipy.linalg import expm

from sgdphases.theory.decay_models import fixed_point
from sgdphases.theory.programs import run_theory
from sgdphases.theory.wide_network import integrate_mode, kernel_solution, mode_solution

TIMES = np.geomspace(1e-3, 300, 40)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("eigenvalue", [1e-3, 0.1, 10.0, 1e3])
def test_the_closed_form_solves_the_differential_equation(degree, eigenvalue):
    mode = (eigenvalue, 0.02, degree, 0.7, -0.4)
    np.testing.assert_allclose(
        mode_solution(TIMES, *mode), integrate_mode(TIMES, *mode), atol=1e-9, rtol=0
    )


def test_a_linear_model_has_a_shorter_closed_form():
    eigenvalue, decay, initial = 0.5, 0.02, 0.3
    rate = eigenvalue + decay
    expected = eigenvalue / rate * (1 - np.exp(-rate * TIMES)) + initial * np.exp(-rate * TIMES)
    found = mode_solution(TIMES, eigenvalue, decay, 1, 1.0, initial)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_large_eigenvalues_do_not_overflow_and_follow_the_target():
    found = mode_solution(np.array([1.0, 5.0]), 1e6, 1e-3, 2)
    kernel = 1e6 * np.exp(-2e-3 * np.array([1.0, 5.0]))
    np.testing.assert_allclose(found, kernel / (kernel + 2e-3), rtol=1e-9)


def test_the_solution_from_any_time_on_is_a_solution():
    eigenvalue, decay, degree = 2.0, 0.05, 3
    halfway = mode_solution(4.0, eigenvalue, decay, degree)
    kernel = eigenvalue * np.exp(-2 * (degree - 1) * decay * 4.0)
    found = mode_solution(6.0, kernel, decay, degree, initial_output=halfway)
    np.testing.assert_allclose(found, mode_solution(10.0, eigenvalue, decay, degree), rtol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_whole_kernel_against_matrix_exponentials_and_the_ode(degree):
    generator = np.random.default_rng(0)
    features = generator.standard_normal((6, 9))
    kernel = features @ features.T
    targets, initial = generator.standard_normal((2, 6))
    decay, times = 0.05, np.array([0.1, 1.0, 8.0])
    found = kernel_solution(times, kernel, targets, initial, decay, degree)
    rate = 2 * (degree - 1) * decay

    def elapsed(start, end):
        """(Θ_start − Θ_end)/q, and Θ times the span where q = 0."""
        if rate == 0:
            return kernel * (end - start)
        return kernel * (np.exp(-rate * start) - np.exp(-rate * end)) / rate

    for time, outputs in zip(times, found, strict=True):
        integral, _ = quad_vec(
            lambda s, t=time: expm(-elapsed(s, t)) * np.exp(-(degree - 2) * decay * s),
            0,
            time,
            epsabs=1e-12,
            epsrel=1e-12,
        )
        inside = expm(-elapsed(0, time)) @ initial + integral @ kernel @ targets
        np.testing.assert_allclose(
            outputs, np.exp(-degree * decay * time) * inside, rtol=1e-8, atol=1e-10
        )
    solution = solve_ivp(
        lambda t, f: -np.exp(-rate * t) * kernel @ (f - targets) - degree * decay * f,
        (0, times[-1]),
        initial,
        method="LSODA",
        t_eval=times,
        rtol=1e-11,
        atol=1e-12,
    )
    np.testing.assert_allclose(found.T, solution.y, atol=1e-8)


def test_a_linear_models_fixed_point_is_ridge_regression():
    generator = np.random.default_rng(1)
    features = generator.standard_normal((5, 5))
    kernel, targets = features @ features.T, generator.standard_normal(5)
    (found,) = kernel_solution(np.array([1e4]), kernel, targets, np.zeros(5), 0.1, 1)
    expected = kernel @ np.linalg.solve(kernel + 0.1 * np.eye(5), targets)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def settings(**changes):
    return {
        "experiment": "l2/tiny",
        "stopping": {"num_steps": 400},
        "measurements": {"points_per_decade": 10},
        **changes,
    }


def a_run(**hyperparameters):
    return {"run_id": "a", "seed": 0, "learning_rate": 0.5, **hyperparameters}


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_mode_step_by_step_is_the_mode_at_once(degree):
    run = a_run(
        model="wide_mode", kernel_mode_eigenvalue=0.8, weight_decay=0.01, homogeneity_degree=degree
    )
    runs, history = run_theory(settings(), [run])
    assert runs["ode_deviation"].iloc[0] < 1e-9
    expected = mode_solution(history["physical_time"], 0.8, 0.01, degree)
    np.testing.assert_allclose(history["output"], expected, rtol=1e-9)
    kernel = 0.8 * np.exp(-2 * (degree - 1) * 0.01 * history["physical_time"])
    np.testing.assert_allclose(history["ntk_top_eigenvalue"], kernel, rtol=1e-9)


def test_the_least_loss_of_a_spectrum():
    run = a_run(
        model="wide_spectrum",
        num_modes=20,
        spectrum_exponent=1.5,
        weight_decay=0.01,
        homogeneity_degree=2,
    )
    runs, _ = run_theory(settings(), [run])
    times = np.arange(1, 401) * 0.5
    eigenvalues = np.arange(1.0, 21) ** -1.5
    losses = np.sum((mode_solution(times[:, None], eigenvalues, 0.01, 2) - 1) ** 2, axis=1) / 2
    assert runs["least_loss_time"].iloc[0] == times[losses.argmin()]
    assert runs["least_loss"].iloc[0] == pytest.approx(losses.min(), rel=1e-9)


@pytest.mark.parametrize(("decay", "output"), [(0.05, 0.5), (0.11, 0.0)])
def test_a_deep_linear_network_ends_at_its_fixed_point(decay, output):
    run = a_run(model="deep_linear", width=100, weight_decay=decay)
    runs, _ = run_theory(settings(stopping={"num_steps": 5000}), [run])
    assert fixed_point(np.array([100.0]), np.array([decay])) == pytest.approx(output, abs=1e-12)
    assert runs["final_output"].iloc[0] == pytest.approx(output, abs=1e-3)


def test_ridge_regression_forgets_its_start_at_the_rate_of_l2():
    run = a_run(model="ridge", num_samples=5, input_dim=30, weight_decay=0.05)
    stopping = {"num_steps": 5000, "converged_output": 1e-3}
    runs, _ = run_theory(settings(stopping=stopping), [run])
    # Outside the span of the inputs nothing but L2 moves the weights.
    expected = np.log(1e-3) / np.log1p(-0.5 * 0.05)
    assert runs["status"].iloc[0] == "stopped"
    assert abs(runs["convergence_step"].iloc[0] / expected - 1) < 0.03
