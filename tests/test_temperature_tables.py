"""The temperature paper's claims and figures on early training, on tables made up to be known."""

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims.evaluate import verdict_of
from sgdphases.claims.temperature_theory import MEASURES
from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures import style
from sgdphases.figures.temperature_theory import PLOTS
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_analysis import DEPARTED, departures, early_timescales
from sgdphases.workflow import make_plan

PROJECT = Path(__file__).parents[1]
DATASETS = {path.stem: path for path in (PROJECT / "config/datasets").glob("*.yaml")}
BETAS = (0.01, 0.1, 1.0, 10.0, 100.0)
CORRELATIONS = (-1 + 1e-10, -1 + 1e-8, -1 + 1e-6, -1 + 1e-4, -0.99, 0.0)
# ‖Z⁰‖ at β = 1 and c = 0, in samples and classes of which there are 1000.
NORM, COUNT = 60.0, 1000.0


def tables_of(runs, history):
    return ExperimentTables({}, pd.DataFrame(runs), pd.DataFrame(history), None)


def make_timescales(nonlinear=lambda beta, norm: 100 * beta, exponent=1.0):
    """τ_z = ‖Z‖/4 at small and ‖Z‖/12 at large logits; estimates from 50 steps are exact."""
    runs, history = [], []
    for beta in BETAS:
        for correlation in CORRELATIONS:
            name = f"{beta}, {correlation}"
            norm = beta * np.sqrt(1 + correlation) * NORM
            size = norm / np.sqrt(COUNT)
            speed = (4 if size < 1 else 12) * beta ** (exponent - 1)
            rate = 1e-5 / beta
            time = 50 * rate * beta**2
            runs.append(
                {
                    "run_id": name,
                    "seed": 0,
                    "activation": "relu",
                    "inverse_temperature": beta,
                    "head_correlation": correlation,
                    "linearize_at": np.nan,
                    "learning_rate": rate,
                    "status": "finished",
                }
            )
            slow = nonlinear(beta, norm)
            history += [
                {
                    "run_id": name,
                    "step": 0,
                    "scaled_logit_norm": norm,
                    "scaled_logit_size": size,
                    "logit_timescale": norm / speed,
                    "nonlinear_timescale": slow,
                    "logit_speed": speed,
                    "small_logit_speed": 4.0,
                    "scaled_logit_change": 0.0,
                    "scaled_linearized_distance": 0.0,
                },
                {
                    "run_id": name,
                    "step": 50,
                    "scaled_logit_change": speed * time,
                    "scaled_linearized_distance": speed / slow * time**2 / 2,
                },
            ]
    return tables_of(runs, history)


def score(claim, tables):
    measure = MEASURES[claim]
    measurement = measure.measure(tables)
    return measurement, verdict_of(measurement.value, measure.low, measure.high)


def test_estimates_are_read_off_the_last_step():
    table = early_timescales(make_timescales())
    for name in ("logit_timescale", "nonlinear_timescale"):
        np.testing.assert_allclose(table[f"estimated_{name}"], table[name], rtol=1e-9)
    # The same logits at several β; at c = 0 they are others of the same norm.
    assert table.groupby("start")["inverse_temperature"].nunique().max() == 5
    assert table["start"].isna().sum() == len(BETAS)


@pytest.mark.parametrize(
    ("claim", "value"),
    [("TMP-02", 0.0), ("TMP-03", 3.0), ("TMP-04", 1.0), ("TMP-05", 1.0), ("TMP-12", -1.0)],
)
def test_timescales_as_the_paper_has_them(claim, value):
    measurement, verdict = score(claim, make_timescales())
    assert measurement.value == pytest.approx(value, abs=1e-6)
    assert verdict == "reproduced"


@pytest.mark.parametrize(
    ("claim", "changes", "value"),
    [
        ("TMP-02", {"exponent": 1.1}, 100**0.2 - 1),
        ("TMP-04", {"nonlinear": lambda beta, norm: 100 * beta**1.2}, 100**0.4),
        ("TMP-05", {"nonlinear": lambda beta, norm: 100 * beta / (1 + norm)}, None),
        ("TMP-12", {"exponent": 1.1}, -1.1),
    ],
)
def test_other_timescales_are_not_reproduced(claim, changes, value):
    measurement, verdict = score(claim, make_timescales(**changes))
    assert value is None or measurement.value == pytest.approx(value, rel=1e-5)
    assert verdict == "not reproduced"


def make_curves(betas=(0.01, 0.1, 1.0, 10.0), scale=0.1, reverse=False):
    """The fall of the loss is t, and t + t²·scale/β off the linearised network."""
    runs, history = [], []
    for beta in betas:
        for linear in (False, True):
            name = f"{beta}, {linear}"
            rate = 0.01 * min(beta, 1) / beta**2
            runs.append(
                {
                    "run_id": name,
                    "seed": 0,
                    "activation": "relu",
                    "inverse_temperature": beta,
                    "head_correlation": -1.0,
                    "linearize_at": 0.0 if linear else np.nan,
                    "learning_rate": rate,
                    "status": "finished",
                }
            )
            for step in range(0, 101):
                time = step * rate * beta**2
                bend = 0.0 if linear else scale * (beta if reverse else 1 / beta)
                loss = 5 - time - bend * time**2
                start = {"logit_timescale": 1.0, "scaled_logit_norm": 0.0, "scaled_logit_size": 0.0}
                row = {"run_id": name, "step": step, "train_loss": loss}
                history.append({**row, **(start if step == 0 else {})})
    return tables_of(runs, history)


def test_departures_are_where_the_falls_differ():
    found = departures(make_curves())
    # At β = 10 it would be at 2, after the last time, 1.
    expected = [DEPARTED / 0.1 * beta for beta in (0.01, 0.1, 1.0)]
    np.testing.assert_allclose(found["departure_time"].iloc[:3], expected, rtol=1e-6)
    assert np.isnan(found["departure_time"].iloc[3])


def test_the_order_of_departures():
    measurement, verdict = score("TMP-06", make_curves())
    assert verdict == "reproduced"
    assert "10: later than 1" in measurement.detail
    assert (
        score("TMP-06", make_curves(betas=(0.3, 1.0, 3.0), scale=1.0, reverse=True))[1]
        == "not reproduced"
    )
    with pytest.raises(ValueError, match="only 1 runs depart"):
        score("TMP-06", make_curves(betas=(0.1, 10.0, 100.0)))
    tables = make_curves()
    is_short = tables.history["run_id"].str.startswith("10.0") & (tables.history["step"] > 10)
    short = dataclasses.replace(tables, history=tables.history[~is_short])
    with pytest.raises(ValueError, match="end before others have departed"):
        score("TMP-06", short)


def make_starts(warp=1.0):
    """Accuracies that are functions of t/τ_z, or of its power."""
    runs, history = [], []
    for size in (0.003, 0.01, 0.03, 0.1):
        name = f"{size}"
        runs.append(
            {
                "run_id": name,
                "seed": 0,
                "activation": "relu",
                "inverse_temperature": 1.0,
                "head_correlation": size**2 - 1,
                "linearize_at": np.nan,
                "learning_rate": 0.1 * size,
                "status": "finished",
            }
        )
        for step in range(0, 41):
            accuracy = 0.1 + 0.2 * np.tanh(0.1 * step * (size / 0.1) ** (warp - 1))
            row = {"run_id": name, "step": step, "train_accuracy": accuracy}
            row["test_accuracy"] = accuracy
            start = {"logit_timescale": size, "scaled_logit_norm": size, "scaled_logit_size": size}
            history.append({**row, **(start if step == 0 else {})})
    return tables_of(runs, history)


def test_accuracies_that_fall_on_one_curve():
    measurement, verdict = score("TMP-07", make_starts())
    assert measurement.value == pytest.approx(0, abs=1e-6)
    assert "ηβ²t from 0.00292 to 0.0974" in measurement.detail
    assert verdict == "reproduced"
    assert score("TMP-07", make_starts(warp=0.9))[1] == "not reproduced"


def make_heads(power=0.5, slope=0.0):
    runs, history = [], []
    generator = np.random.default_rng(0)
    for seed in range(30):
        scale = generator.uniform(0.5, 1.5)
        for correlation in (-1.0, -0.75, 0.0, 1.0):
            name = f"{seed}, {correlation}"
            runs.append(
                {
                    "run_id": name,
                    "seed": seed,
                    "inverse_temperature": 1.0,
                    "head_correlation": correlation,
                    "learning_rate": 1.0,
                }
            )
            norm = scale * (1 + correlation) ** power
            row = {"run_id": name, "step": 0, "logit_timescale": 1.0, "scaled_logit_norm": norm}
            history.append({**row, "small_logit_speed": scale * (1 + slope * correlation)})
    return tables_of(runs, history)


def test_norms_and_kernels_of_two_heads():
    assert score("TMP-08", make_heads())[0].value == pytest.approx(1)
    assert score("TMP-08", make_heads())[1] == "reproduced"
    assert score("TMP-08", make_heads(power=0.55))[1] == "not reproduced"
    assert score("TMP-09", make_heads())[1] == "reproduced"
    assert score("TMP-09", make_heads(slope=1e-8))[1] == "not reproduced"


def make_wide(erf=2.0, shuffled=5.0, noise=0.0):
    generator = np.random.default_rng(0)
    runs, history = [], []
    for activation, ratio in (("relu", 4.0), ("erf", erf)):
        for size in np.geomspace(1e-3, 1e3, 13):
            name = f"{activation}, {size}"
            runs.append(
                {
                    "run_id": name,
                    "seed": 0,
                    "activation": activation,
                    "inverse_temperature": 1.0,
                    "head_correlation": 0.0,
                    "learning_rate": 1.0,
                }
            )
            row = {"run_id": name, "step": 0, "logit_timescale": 1.0, "scaled_logit_norm": size}
            row["scaled_logit_size"] = size
            for prefix, largest in (("", ratio), ("shuffled_", shuffled)):
                speed = (1 + (largest - 1) * size / (1 + size)) * np.exp(
                    noise * generator.normal(size=2)
                )
                row[f"{prefix}logit_speed"], row[f"{prefix}infinite_width_logit_speed"] = speed
            history.append(row)
    return tables_of(runs, history)


def test_wide_networks_and_the_closed_form():
    assert score("TMP-26", make_wide())[0].value == pytest.approx(1)
    assert score("TMP-26", make_wide())[1] == "reproduced"
    assert score("TMP-26", make_wide(noise=1.0))[1] == "not reproduced"
    assert score("TMP-27", make_wide())[1] == "reproduced"
    assert score("TMP-27", make_wide(erf=4.5))[1] == "not reproduced"
    assert score("TMP-27", make_wide(shuffled=3.0))[1] == "not reproduced"


def make_uneven_timescales():
    return make_timescales(nonlinear=lambda beta, norm: beta * (1 + 1 / (1 + norm)))


FIGURES = {
    "fig1left": make_curves,
    "fig1right": make_curves,
    "fig2left": make_uneven_timescales,
    "fig2center": make_starts,
    "fig2right": make_starts,
    "fig3left": make_uneven_timescales,
    "fig3right": make_uneven_timescales,
    "fig7left": make_wide,
    "fig7middle": make_wide,
    "fig7right": make_wide,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_data_in_every_panel(name, tmp_path):
    style.apply_style()
    figure, plotted = PLOTS[f"temperature/{name}"](FIGURES[name]())
    figure.savefig(tmp_path / "figure.png")
    assert all(axis.lines for axis in figure.axes)
    assert len(plotted) > 4
    plt.close("all")


def test_every_figure_is_drawn_by_an_experiment(monkeypatch):
    monkeypatch.chdir(PROJECT)
    for scale in ("smoke", "quick", "paper"):
        plan = make_plan({"scale": scale, "experiments": ["temperature/*"]})
        assert set(PLOTS) <= set(plan.figures)
        assert {f"temperature/{m.experiment}" for m in MEASURES.values()} <= set(plan.experiments)


def test_the_rates_of_figure_1_are_those_printed():
    path = PROJECT / "config/experiments/temperature/learning_curves.yaml"
    runs = expand_runs(load_experiment(path, "paper", "published", DATASETS))
    assert {run["model"] for run in runs} == {"tmp_wrn_small"}
    assert {run["batch_size"] for run in runs} == {4096}
    assert {run["weight_decay"] for run in runs} == {5e-4}
    pairs = {
        (run["inverse_temperature"], run["learning_rate"] * run["inverse_temperature"])
        for run in runs
    }
    small = {1e-3, 1e-2, 1e-1}
    assert len(pairs) == 7
    for beta, product in pairs:
        assert product == pytest.approx(1e-5 if beta in small else 1e-4)


def test_the_rates_of_figures_2_and_3_are_those_printed():
    path = PROJECT / "config/experiments/temperature/timescales.yaml"
    spec = load_experiment(path, "paper", "published", DATASETS)
    runs = expand_runs(spec)
    assert spec["num_runs"] == 42
    assert {run["precision"] for run in runs} == {"float64"}
    for run in runs:
        assert run["learning_rate"] * run["inverse_temperature"] == pytest.approx(1e-2)


def test_tables_without_what_a_claim_needs_are_not_run():
    tables = make_timescales()
    lacking = dataclasses.replace(tables, history=tables.history[["run_id", "step"]])
    for claim in ("TMP-02", "TMP-05", "TMP-12"):
        with pytest.raises(ValueError, match="measures no timescales"):
            score(claim, lacking)
    with pytest.raises(ValueError, match="no run has a linearised one beside it"):
        score("TMP-06", make_starts())
    with pytest.raises(ValueError, match="correlation 0, or two others"):
        score("TMP-08", make_curves())
