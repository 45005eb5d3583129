"""Convolutional networks of the catapult paper: grids as published, claims, figures."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims import catapult_performance as claims
from sgdphases.claims.evaluate import NOT_REPRODUCED, NOT_RUN, REPRODUCED, evaluate_claims
from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures import catapult_performance as figures
from sgdphases.figures import style
from sgdphases.performance import at_budget, budget_history, early_dynamics, fixed_steps, fixed_time
from sgdphases.tables import ExperimentTables

PROJECT = Path(__file__).parents[1]
DATASETS = {path.stem: path for path in (PROJECT / "config/datasets").glob("*.yaml")}
RATES = [0.5, 0.9, 1.5, 3.0, 5.0, 6.0, 8.0]
EDGE = 6.0
FINAL_STEPS, FINAL_RATE = 20, 0.05
CRITICAL = 0.2


def load(name, scale="paper"):
    data = "published" if scale == "paper" else "embedded"
    path = PROJECT / f"config/experiments/catapult/{name}.yaml"
    return load_experiment(path, scale, data, DATASETS)


# --- as published ---------------------------------------------------------------------------------


def budgets(name, **chosen):
    """Of the runs chosen: budgets, final steps and final rates, L2."""
    spec = load(name)
    schedule = spec["schedule"]
    found = set()
    for run in expand_runs(spec):
        if any(run[key] != value for key, value in chosen.items()):
            continue
        steps, rate = run["final_steps"], run["final_learning_rate"]
        steps = schedule.get("num_steps", 0) if steps is None else steps
        rate = (schedule.get("learning_rate") if rate is None else rate) if steps else None
        budget = run["budget_steps"], run["budget_physical_time"]
        found.add((*budget, steps, rate, run["weight_decay"]))
    return found


def test_early_dynamics_as_published():
    assert budgets("wrn_cifar10") == {
        (None, 30, 0, None, 0.0),
        (None, 25, 0, None, 5e-4),
        (None, 4000, 0, None, 0.0),
    }
    assert budgets("wrn_cifar10", parametrisation="ntk") == {(None, 4000, 0, None, 0.0)}
    runs = expand_runs(load("wrn_cifar10"))
    assert {run["batch_size"] for run in runs} == {128}
    assert {round(run["weight_scale"] ** 2, 12) for run in runs} == {2}
    assert {(run["depth"], run["widening_factor"]) for run in runs} == {(28, 10)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "cnn_cifar10",
            {(437000, None, 0, None, 1e-3), (None, 475, 50000, 2e-5, 1e-3)},
        ),
        (
            "wrn_performance",
            {(12000, None, 0, None, 5e-4), (None, 3360, 4800, 0.035, 5e-4)},
        ),
        (
            "wrn_weight_decay",
            {
                (None, 10080, 4800, 0.035, 0.0),
                (7200, None, 0, None, 1e-3),
                (None, 2400, 4800, 0.01, 1e-3),
            },
        ),
        (
            "wrn_cifar100",
            {(38400, None, 0, None, 2.5e-5), (None, 96000, 7200, 0.01, 2.5e-5)},
        ),
    ],
)
def test_performance_as_published(name, expected):
    assert budgets(name) == expected
    spec = load(name)
    runs = expand_runs(spec)
    is_cnn = name == "cnn_cifar10"
    assert {run["batch_size"] for run in runs} == {256 if is_cnn else 1024}
    assert {run["loss"] for run in runs} == {"mean_squared_error"}
    assert {run["momentum"] for run in runs} == {0.0}
    assert {run["label_shift"] for run in runs} == {-0.01 if name == "wrn_cifar100" else 0.0}
    rates = {run["learning_rate"] for run in runs}
    # Below and above both limits, and on neither.
    assert min(rates) < 1 < 6 < max(rates)
    assert 1.0 not in rates
    changes = (False, 0, 0.0) if is_cnn else (True, 4, 1.0)
    assert tuple(spec["augmentation"][key] for key in ("flip", "crop", "mixup")) == changes
    if not is_cnn:
        assert {run["weight_scale"] for run in runs} == {1.0}
        assert {run["batch_norm_samples"] for run in runs} == {128}


def test_only_one_experiment_of_these_is_a_headline():
    names = ["wrn_cifar10", "cnn_cifar10", "wrn_weight_decay", "wrn_cifar100", "wrn_softmax"]
    assert [load(name)["headline"] for name in names] == [False] * 5
    assert load("wrn_performance")["headline"] is True


@pytest.mark.parametrize("scale", ["smoke", "quick", "paper"])
def test_parts_that_figures_draw_are_there(scale):
    for name in ("cnn_cifar10", "wrn_performance", "wrn_weight_decay", "wrn_cifar100"):
        runs = expand_runs(load(name, scale))
        assert all(
            (run["budget_steps"] is None) != (run["budget_physical_time"] is None) for run in runs
        )
        decayed = [run for run in runs if run["weight_decay"] > 0]
        assert {run["budget_steps"] is None for run in decayed} == {True, False}


# --- made-up tables -------------------------------------------------------------------------------


def make_tables(best=4.0, noise=0.0, dataset="cifar10"):
    """Runs to a number of steps, and to a physical time and on, which all trained up to EDGE."""
    runs, history = [], []

    def add(rate, decay, steps, final, **changes):
        run_id = f"run {len(runs)}"
        diverged = rate > EDGE
        eta = rate * CRITICAL
        steps = 2 if diverged else steps + final
        accuracy = 0.1 if diverged else 0.9 - 0.01 * (rate - best) ** 2
        runs.append(
            {
                "run_id": run_id,
                "seed": 0,
                "parametrisation": "standard",
                "weight_decay": decay,
                "learning_rate": eta,
                "relative_learning_rate": rate,
                "status": "diverged" if diverged else "finished",
                "budget_steps": np.nan,
                "budget_physical_time": np.nan,
                "final_steps": float(final),
                "final_learning_rate": FINAL_RATE,
                "steps": steps,
                "steps_per_epoch": 2,
                "initial_train_loss": 1.0,
                "final_train_loss": np.inf if diverged else 0.1,
                "final_test_accuracy": accuracy,
                "final_train_accuracy": accuracy + 0.05,
                "initial_ntk_top_eigenvalue": 2 / CRITICAL,
                "final_ntk_top_eigenvalue": np.nan if diverged else 1.0 / rate,
                **changes,
            }
        )
        for step in sorted({*range(0, steps, 5), steps - final, steps}):
            taken = min(step, steps - final)
            time = taken * eta + (step - taken) * FINAL_RATE
            # A function of physical time alone, but for noise that grows with the rate.
            grown = 0.5 * (1 - np.exp(-time / 4)) + 0.1 + noise * rate
            history.append(
                {
                    "run_id": run_id,
                    "step": step,
                    "physical_time": time,
                    "train_loss": 1.0 / (1 + step),
                    "ntk_top_eigenvalue": 1.0,
                    "test_accuracy": grown,
                    "train_accuracy": grown - 0.001 * rate,
                }
            )

    for rate in RATES:
        add(rate, 5e-4, 50, 0, budget_steps=50.0)
        for decay in (0.0, 5e-4):
            steps = round(20 / rate / CRITICAL)
            add(rate, decay, steps, FINAL_STEPS, budget_physical_time=20.0)
    curvature = pd.DataFrame({"seed": [0], "width": 16, "ntk_top_eigenvalue": 2 / CRITICAL})
    spec = {"scale": "paper", "dataset": {"name": dataset}, "curvature": {}}
    return ExperimentTables(spec, pd.DataFrame(runs), pd.DataFrame(history), curvature)


def changed(tables, where, **values):
    runs = tables.runs.copy()
    for name, value in values.items():
        runs.loc[where(runs), name] = value
    return replace(tables, runs=runs)


def score(tables, claim):
    experiment = f"catapult/{claims.MEASURES[claim].experiment}"
    return evaluate_claims({experiment: tables}).set_index("id").loc[claim]


def test_parts():
    tables = make_tables()
    for part, budget in ((fixed_steps, "budget_steps"), (fixed_time, "budget_physical_time")):
        runs = part(tables).runs
        assert runs[budget].notna().all()
        assert (runs["weight_decay"] > 0).all()
        assert set(part(tables).history["run_id"]) == set(runs["run_id"])
    assert (fixed_time(tables, decayed=False).runs["weight_decay"] == 0).all()
    with pytest.raises(ValueError, match="holds no such runs"):
        early_dynamics(tables, "ntk")


def test_accuracies_at_the_end_of_the_budget_are_those_before_the_final_rate():
    runs = at_budget(fixed_time(make_tables()))
    alive = runs[runs["status"] != "diverged"]
    # 0.1 + half of what is left of e^(-20/4), to a step's worth of time.
    expected = 0.1 + 0.5 * (1 - np.exp(-5))
    np.testing.assert_allclose(alive["budget_test_accuracy"], expected, atol=2e-3)
    assert runs.loc[runs["status"] == "diverged", "budget_test_accuracy"].isna().all()
    assert len(runs) == len(RATES)
    history = budget_history(fixed_time(make_tables()))
    assert history.groupby("run_id")["physical_time"].max().max() <= 20 * 1.1


def test_the_best_rate_between_the_limits():
    row = score(make_tables(best=4.0), "CAT-26")
    assert (row["measured"], row["verdict"]) == (6, REPRODUCED)
    row = score(make_tables(best=0.8), "CAT-26")
    assert (row["measured"], row["verdict"]) == (pytest.approx(1.8), NOT_REPRODUCED)
    assert score(make_tables(best=0.8), "CAT-27")["verdict"] == NOT_REPRODUCED
    assert score(make_tables(best=5.2), "CAT-27")["measured"] == 10


def test_the_largest_rate_of_the_network_without_decay():
    tables = make_tables()
    assert score(tables, "CAT-18")["measured"] == 2 * EDGE
    beyond = tables.runs["relative_learning_rate"] <= EDGE
    assert score(replace(tables, runs=tables.runs[beyond]), "CAT-18")["verdict"] == NOT_RUN


def test_near_the_largest_rate():
    row = score(make_tables(best=5.2), "CAT-23")
    assert (row["measured"], row["verdict"]) == (pytest.approx((5 - 1) / (EDGE - 1)), REPRODUCED)
    row = score(make_tables(best=1.5), "CAT-23")
    assert (row["measured"], row["verdict"]) == (pytest.approx(0.1), NOT_REPRODUCED)


def test_trend_in_physical_time():
    row = score(make_tables(), "CAT-24")
    assert abs(row["measured"]) < 3e-3
    assert row["verdict"] == REPRODUCED
    assert row["ci_low"] < row["measured"] < row["ci_high"]
    assert score(make_tables(noise=0.02), "CAT-24")["verdict"] == NOT_REPRODUCED


def test_overlap_in_physical_time():
    row = score(make_tables(), "CAT-32")
    # Measured every five steps and joined by lines.
    assert row["measured"] < 0.05
    assert row["verdict"] == REPRODUCED
    apart = score(make_tables(noise=0.05), "CAT-32")
    assert apart["measured"] == pytest.approx(0.05 * (5 - 0.5), abs=0.03)
    assert apart["verdict"] == NOT_REPRODUCED


def test_effect_of_decay():
    tables = make_tables()
    row = score(tables, "CAT-41")
    assert (row["measured"], row["verdict"]) == (1, REPRODUCED)

    def decayed(runs):
        return runs["weight_decay"] > 0

    lower = changed(tables, decayed, final_ntk_top_eigenvalue=0.01)
    assert score(lower, "CAT-41")["verdict"] == NOT_REPRODUCED
    earlier = changed(
        tables,
        lambda runs: decayed(runs) & (runs["relative_learning_rate"] >= 3),
        status="diverged",
    )
    row = score(earlier, "CAT-41")
    assert row["verdict"] == NOT_REPRODUCED
    assert "moves the edge" in row["detail"]


def test_training_accuracies():
    row = score(make_tables(), "CAT-42")
    assert row["measured"] < -0.9
    assert row["verdict"] == REPRODUCED
    # The smallest rate is the best after fixed steps.
    row = score(make_tables(best=0.0), "CAT-42")
    assert row["verdict"] == NOT_REPRODUCED
    assert "no rate does better" in row["detail"]


@pytest.mark.parametrize("claim", ["CAT-28", "CAT-29", "CAT-30", "CAT-31"])
def test_claims_about_the_paper_alone_name_their_command(claim):
    row = score(make_tables(dataset="digits"), claim)
    assert row["verdict"] == NOT_RUN
    assert "scale=paper data=published" in row["detail"]


def test_claims_about_the_paper_alone():
    tables = make_tables(dataset="cifar100")
    assert score(tables, "CAT-29")["measured"] == pytest.approx(CRITICAL)
    best = tables.runs["final_test_accuracy"].max()
    assert score(tables, "CAT-30")["measured"] == pytest.approx(0.8075 - best)
    # Within 0.005 of 0.5966 at 4 ln(0.5/0.0084), in steps of 5 η, an epoch being two steps.
    row = score(tables, "CAT-31")
    time = 4 * np.log(0.5 / (0.5 * np.exp(-5) + 0.005))
    assert time / 2 <= row["measured"] <= (time + 5 * EDGE * CRITICAL) / 2
    softmax = changed(make_tables(), lambda runs: runs["seed"] == 0, final_test_accuracy=0.9655)
    assert score(softmax, "CAT-28")["measured"] == pytest.approx(0.9655)


@pytest.fixture
def styled():
    style.apply_style()
    yield
    plt.close("all")


@pytest.mark.parametrize("name", figures.PLOTS)
def test_every_figure_draws_what_it_reports(name, styled):
    tables = make_tables()
    if name == "catapult/figS11":
        tables = changed(tables, lambda runs: runs["weight_decay"] == 0, parametrisation="ntk")
    figure, plotted = figures.PLOTS[name](tables)
    assert len(plotted) > 0
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    assert all(axis.lines for axis in figure.axes)


def test_performance_has_both_stages(styled):
    _, plotted = figures.PLOTS["catapult/fig5cd"](make_tables())
    assert plotted.groupby("panel")["stage"].nunique().to_dict() == {"c": 1, "d": 2}
    assert plotted["relative_learning_rate"].max() == EDGE
    _, train = figures.PLOTS["catapult/figS6ab"](make_tables())
    assert train["accuracy"].max() > plotted["accuracy"].max()


@pytest.mark.slow
def test_a_wide_resnet_from_the_grid_to_its_claims(workspace):
    """With augmentation, batch norm, L2, budgets of both kinds and a final phase."""
    name = "catapult/wrn_performance"
    drawn = [f"results/figures/catapult/{figure}.svg" for figure in ("fig1b", "fig5cd", "figS6ab")]
    arguments = ["--config", "scale=smoke", f'experiments=["{name}"]', "--"]
    result = workspace.snakemake(*arguments, *drawn, "results/claims.parquet", timeout=900)
    assert result.returncode == 0, result.output
    assert all((workspace.path / path).stat().st_size > 10_000 for path in drawn)
    folder = workspace.path / "results/experiments" / name
    runs = pd.read_parquet(folder / "runs.parquet").set_index("run_id")
    history = pd.read_parquet(folder / "history.parquet")
    finished = runs[runs["status"] == "finished"]
    assert len(finished) >= 4
    is_timed = finished["budget_physical_time"].notna()
    assert (finished.loc[~is_timed, "steps"] == 12).all()
    timed = finished[is_timed]
    assert (timed["final_steps"] == 4).all()
    last = history.groupby("run_id")["physical_time"].max().loc[timed.index]
    before = last - timed["final_steps"] * timed["final_learning_rate"]
    # The budget of 10, to a step; the smallest rate is ended by 30 steps.
    expected = np.minimum(10, 30 * timed["learning_rate"])
    assert (before >= expected - 1e-6).all()
    assert (before < expected + timed["learning_rate"]).all()
    claims = pd.read_parquet(workspace.path / "results/claims.parquet").set_index("id")
    assert claims.loc["CAT-26", "verdict"] in (REPRODUCED, NOT_REPRODUCED)
    assert claims.loc["CAT-18", "verdict"] == NOT_RUN
    assert 'experiments=["catapult/wrn_cifar10"]' in claims.loc["CAT-18", "detail"]
