"""Figures of trained networks, on made-up tables."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.figures import catapult, style
from sgdphases.selection import trainable_edge
from sgdphases.tables import ExperimentTables

RATES = [0.1, 0.5, 1.0, 2.0, 5.0, 7.0]


@pytest.fixture(autouse=True)
def styled():
    style.apply_style()
    yield
    plt.close("all")


@pytest.fixture
def tables():
    runs, history = [], []
    for seed in (0, 1):
        for index, rate in enumerate(RATES):
            run_id = f"{seed}-{rate}"
            # 5.0 stays finite without training, 7.0 diverges.
            final = np.inf if rate > 6 else 2.0 if rate > 4 else 0.1
            runs.append(
                {
                    "run_id": run_id,
                    "seed": seed,
                    "activation": ["tanh", "relu", "identity"][index % 3],
                    "momentum": 0.9 if index >= 3 else 0.0,
                    "learning_rate": 6 * rate,
                    "relative_learning_rate": rate,
                    "status": "diverged" if rate > 6 else "finished",
                    "initial_train_loss": 1.0,
                    "final_train_loss": final,
                    "final_test_accuracy": 0.5,
                    "final_ntk_top_eigenvalue": 0.3 / rate,
                }
            )
            for step in range(4):
                history.append(
                    {
                        "run_id": run_id,
                        "step": step,
                        "physical_time": step * 6 * rate,
                        "train_loss": 1.0 / (1 + step),
                        "ntk_top_eigenvalue": np.nan if step == 1 else 0.3 - 0.01 * step,
                    }
                )
    return ExperimentTables({}, pd.DataFrame(runs), pd.DataFrame(history), None)


def shades(axis):
    return [patch for patch in axis.patches if patch.get_facecolor()[:3] != (0.0, 0.0, 0.0)]


@pytest.mark.parametrize("name", catapult.PLOTS)
def test_every_figure_draws_what_it_reports(tables, name):
    figure, plotted = catapult.PLOTS[name](tables)
    assert len(plotted) > 0
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    assert all(axis.lines for axis in figure.axes)


def test_curves_are_those_of_the_first_seed_that_trained(tables):
    _, plotted = catapult.plot_early_loss(tables)
    assert set(plotted["run_id"]) == {f"0-{rate}" for rate in RATES if rate < 4}


def test_steps_without_a_measurement_are_left_out(tables):
    _, plotted = catapult.plot_curvature_over_time(tables)
    assert set(plotted["step"]) == {0, 2, 3}


def test_shade_starts_between_the_last_rate_that_trains_and_the_next(tables):
    figure, _ = catapult.plot_final_curvature(tables)
    assert trainable_edge(tables.runs) == (2.0, 5.0)
    (shade,) = shades(figure.axes[0])
    assert shade.get_x() == pytest.approx(np.sqrt(2.0 * 5.0))


def test_no_shade_where_every_rate_trains(tables):
    every = tables.runs[tables.runs["relative_learning_rate"] < 4]
    figure, _ = catapult.plot_final_curvature(ExperimentTables({}, every, tables.history, None))
    assert shades(figure.axes[0]) == []


def test_momentum_figure_shades_once_and_marks_three_rates(tables):
    figure, _ = catapult.plot_momentum_curvature(tables)
    axis = figure.axes[0]
    assert len(shades(axis)) == 1
    marked = sorted(line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1)
    assert marked == pytest.approx([0.1, 1.0, 1.9])


def test_relative_eigenvalue_starts_at_one(tables):
    _, plotted = catapult.plot_momentum_activations(tables)
    assert (plotted.loc[plotted["step"] == 0, "relative_eigenvalue"] == 1).all()
    assert plotted["relative_eigenvalue"].min() == pytest.approx(0.27 / 0.3)
