"""The temperature paper's linearised softmax dynamics and momentum against other solvers."""

import dataclasses
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import root
from scipy.special import softmax

from sgdphases.claims.evaluate import verdict_of
from sgdphases.claims.temperature_theory import MEASURES
from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures import style
from sgdphases.figures.temperature_theory import PLOTS
from sgdphases.tables import ExperimentTables
from sgdphases.theory.programs import run_theory
from sgdphases.theory.softmax_kernel import (
    conditioning,
    small_logit_equilibrium,
    softmax_jacobian,
)

EXPERIMENTS = Path(__file__).parents[1] / "config" / "experiments" / "temperature"
THEORY = ("softmax_kernel", "momentum_time")
SAMPLES, CLASSES = 6, 4


def draw(seed=0):
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((SAMPLES, 2 * SAMPLES))
    targets = np.eye(CLASSES)[generator.integers(0, CLASSES, SAMPLES)]
    return features @ features.T / SAMPLES, targets, generator.standard_normal((SAMPLES, CLASSES))


def test_the_jacobian_is_the_derivative_of_the_softmax():
    logits, step = draw()[2], 1e-6
    for j, unit in enumerate(np.eye(CLASSES)):
        change = softmax(logits + step * unit, axis=1) - softmax(logits - step * unit, axis=1)
        np.testing.assert_allclose(
            softmax_jacobian(logits)[:, :, j], change / (2 * step), atol=1e-9
        )


def test_the_equilibrium_is_where_the_force_ends():
    """Of the whole softmax, by a root finder; the distance falls as the fourth power of β."""
    kernel, targets, _ = draw()
    errors = []
    for beta in (0.01, 0.1):
        pull = 0.7

        def force(logits, beta=beta, pull=pull):
            z = logits.reshape(SAMPLES, CLASSES)
            return (beta * kernel @ (targets - softmax(beta * z, axis=1)) - pull * z).ravel()

        exact = root(force, np.zeros(SAMPLES * CLASSES), tol=1e-14).x.reshape(SAMPLES, CLASSES)
        (found,) = small_logit_equilibrium(
            kernel[None], targets[None], np.array([beta]), np.array([pull])
        )
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert errors[0] < 1e-8
    assert errors[1] / errors[0] == pytest.approx(1e4, rel=0.2)


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_conditioning_is_that_of_the_dense_matrix(scale):
    kernel, _, logits = draw()
    columns = conditioning(kernel[None], scale * logits[None])
    jacobian = np.zeros((SAMPLES, CLASSES, SAMPLES, CLASSES))
    for m, block in enumerate(softmax_jacobian(scale * logits)):
        jacobian[m, :, m, :] = block
    size = SAMPLES * CLASSES
    dense = np.kron(kernel, np.eye(CLASSES)) @ jacobian.reshape(size, size)
    rates = np.sort(np.linalg.eigvals(dense).real)[SAMPLES:]
    assert columns["dynamics_condition_number"][0] == pytest.approx(rates[-1] / rates[0], rel=1e-6)
    assert columns["kernel_condition_number"][0] == pytest.approx(np.linalg.cond(kernel), rel=1e-9)
    if scale == 0:
        assert columns["jacobian_condition_number"][0] == pytest.approx(1, rel=1e-9)
        assert columns["dynamics_condition_number"][0] == pytest.approx(np.linalg.cond(kernel))


def simulate(runs, num_steps):
    settings = {
        "experiment": "temperature/test",
        "stopping": {"num_steps": num_steps},
        "measurements": {"every": 1},
    }
    named = [{"run_id": str(i), "seed": 0, **run} for i, run in enumerate(runs)]
    return run_theory(settings, named)[1]


def test_small_steps_follow_the_differential_equation():
    model = {
        "model": "softmax_kernel",
        "num_samples": SAMPLES,
        "num_classes": CLASSES,
        "inverse_temperature": 2.0,
        "logit_scale": 0.5,
        "displacement_l2": 0.0,
        "momentum": 0.0,
        "learning_rate": 1e-4,
    }
    history = simulate([model], 2000)
    # The same draws as the program's.
    generator = np.random.default_rng(0)
    features = generator.standard_normal((SAMPLES, 2 * SAMPLES)) / np.sqrt(2 * SAMPLES)
    kernel = features @ features.T
    targets = np.eye(CLASSES)[generator.integers(0, CLASSES, SAMPLES)]
    start = 0.5 * generator.standard_normal((SAMPLES, CLASSES))

    def flow(_, scaled):
        z = scaled.reshape(SAMPLES, CLASSES)
        return (kernel @ (targets - softmax(z, axis=1))).ravel()

    end = solve_ivp(flow, (0, 2000 * 1e-4 * 4), start.ravel(), rtol=1e-9, atol=1e-9).y[:, -1]
    assert history["scaled_logit_norm"].iloc[-1] == pytest.approx(np.linalg.norm(end), rel=1e-3)


def test_momentum_starts_as_a_free_fall():
    """θ = 1 − τ²/2 + γ̃ τ³/6 in the time √η·t, for a gradient that is still 1."""
    rate, ratio = 1e-8, 2.0
    run = {"model": "quartic", "learning_rate": rate, "momentum": 1 - ratio * np.sqrt(rate)}
    history = simulate([run], 1000)
    time = history["step"] * np.sqrt(rate)
    expected = -(time**2) / 2 + ratio * time**3 / 6
    np.testing.assert_allclose(history["parameter"] - 1, expected, atol=1e-4)
    assert history["parameter"].iloc[-1] - 1 == pytest.approx(expected.iloc[-1], rel=0.03)


@cache
def compute(experiment, scale="quick"):
    spec = load_experiment(EXPERIMENTS / f"{experiment}.yaml", scale, "embedded", {})
    runs, history = run_theory(spec, expand_runs(spec))
    return ExperimentTables(spec, runs, history, None)


def verdict(claim, tables):
    measure = MEASURES[claim]
    return verdict_of(measure.measure(tables).value, measure.low, measure.high)


@pytest.mark.parametrize("claim", [c for c, m in MEASURES.items() if m.experiment in THEORY])
def test_theory_claims_are_reproduced(claim):
    assert verdict(claim, compute(MEASURES[claim].experiment)) == "reproduced"


@pytest.mark.parametrize(
    ("claim", "table", "column", "change"),
    [
        ("TMP-01", "history", "train_loss", lambda v: v + 1e-3 * np.arange(len(v))),
        ("TMP-28", "history", "logit_sum_change", lambda v: v + 1e-6),
        ("TMP-29", "runs", "jacobian_deviation", lambda v: v + 1e-9),
        ("TMP-30", "runs", "dynamics_condition_number", np.log),
        ("TMP-31", "runs", "equilibrium_error", lambda v: v + 1e-3),
        ("TMP-32", "history", "parameter", lambda v: v * np.linspace(1, 2, len(v))),
    ],
)
def test_theory_claims_can_fail(claim, table, column, change):
    tables = compute(MEASURES[claim].experiment)
    changed = getattr(tables, table).copy()
    changed[column] = change(changed[column].astype(float))
    assert verdict(claim, dataclasses.replace(tables, **{table: changed})) == "not reproduced"


@pytest.mark.parametrize("experiment", THEORY)
def test_appendix_figures_draw_data_in_every_panel(experiment, tmp_path):
    style.apply_style()
    tables = compute(experiment)
    for name in tables.spec["figures"]:
        figure, plotted = PLOTS[f"temperature/{name}"](tables)
        figure.savefig(tmp_path / "figure.png")
        assert all(axis.lines for axis in figure.axes)
        assert isinstance(plotted, pd.DataFrame)
        assert set(plotted["panel"]) == set("abc")
    plt.close("all")
