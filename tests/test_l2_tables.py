"""Figures and claims of the L2 paper's trained networks, on made-up tables."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims import l2, l2_theory
from sgdphases.claims.evaluate import (
    MEASURES,
    NOT_REPRODUCED,
    NOT_RUN,
    command_for,
    evaluate_claims,
)
from sgdphases.claims.types import ClaimMeasure
from sgdphases.figures import l2 as figures
from sgdphases.figures import style
from sgdphases.l2_analysis import (
    accuracy_within,
    best_constant,
    decay_times,
    first_reached,
    split_schedule,
    tuned_and_predicted,
    with_peaks,
)
from sgdphases.tables import ExperimentTables

# The ranges that follow from the tolerances of the claims' table.
RANGES = {
    "L2-01": (None, 1e-6),
    "L2-02": (0.85, 1.15),
    "L2-03": (0.98, 1.02),
    "L2-04": (0.8, 1.2),
    "L2-05": (None, 1e-6),
    "L2-06": (-1.05, -0.95),
    "L2-07": (1, None),
    "L2-08": (None, 1e-3),
    "L2-09": (None, 1e-6),
    "L2-10": (None, 0.1),
    "L2-11": (-1.1, -0.9),
    "L2-12": (None, 0.01),
    "L2-13": (-0.003, None),
    "L2-14": (None, 0.01),
    "L2-15": (1, 1),
    "L2-16": (6, None),
    "L2-17": (-1.15, -0.85),
    "L2-18": (4 / 3, 3),
    "L2-19": (-1.15, -0.85),
    "L2-20": (0.964, 0.970),
    "L2-21": (0.956, 0.964),
    "L2-22": (-0.003, None),
    "L2-23": (0.00528, 0.00792),
    "L2-24": (None, 0.5),
    "L2-25": (0.99e-4, 1.21e-4),
    "L2-26": (None, 0.006),
    "L2-27": (0.1, 10),
    "L2-28": (0.013068, 0.013332),
    "L2-29": (-0.002, None),
    "L2-30": (0, None),
    "L2-31": (-0.003, None),
    "L2-32": (None, 0),
    "L2-33": (-1.1, -0.9),
    "L2-34": (None, 1),
    "L2-35": (0.5, 2),
    "L2-36": (0, None),
    "L2-37": (None, 0.01),
    "L2-38": (None, 0.005),
    "L2-39": (-1.02, -0.98),
}
RATES, DECAYS = [0.5, 1.0, 3.0], [0.0, 1e-3, 3e-3, 0.01, 0.03]
CONSTANT, PER_EPOCH = 0.4, 2
SPEC = {"experiment": "l2/fc_sgd", "scale": "quick", "dataset": {"name": "digits"}}


@pytest.fixture(autouse=True)
def styled():
    style.apply_style()
    yield
    plt.close("all")


def simulate(runs, budget=2.0):
    """Accuracy rises to its peak at CONSTANT/(ηλ) steps and falls; training fits at 5/η steps."""
    table, history = [], []
    for index, given in enumerate(runs):
        run = {
            "run_id": f"run{index}",
            "seed": 0,
            "learning_rate": 1.0,
            "weight_decay": 0.0,
            "weight_decay_rule": "constant",
            "budget_epochs": np.nan,
            "relative_weight_decay": np.nan,
            "weight_scale": 1.0,
            "batch_norm": False,
            "width": 64,
            "status": "finished",
            "steps_per_epoch": PER_EPOCH,
            **given,
        }
        speed = run["learning_rate"] * (run["weight_decay"] or 2e-4)
        end = budget / speed
        if not np.isnan(run["budget_epochs"]):
            end = min(end, run["budget_epochs"] * PER_EPOCH)
        steps = np.unique(np.r_[0, np.rint(np.geomspace(1, end, 200))])
        x = steps * speed / CONSTANT
        top = given.get("top", 0.9 - 0.5 * run["weight_decay"])
        accuracy = np.where(x < 1, 0.1 + (top - 0.1) * x, top - 0.02 * np.minimum(x - 1, 1))
        fit = np.minimum(1.0, steps * run["learning_rate"] / 20)
        loss = np.exp(-3 * x) + 0.1 * np.maximum(x - 1, 0)
        rows = pd.DataFrame(
            {
                "run_id": run["run_id"],
                "step": steps.astype(int),
                "physical_time": steps * run["learning_rate"],
                "train_loss": loss,
                "train_accuracy": fit,
                "test_loss": 1.0,
                "test_accuracy": accuracy,
            }
        )
        run |= {
            "steps": int(steps[-1]),
            "initial_train_loss": 1.0,
            "final_train_loss": loss[-1],
            "max_test_accuracy": accuracy.max(),
        }
        table.append(run)
        history.append(rows)
    return ExperimentTables(SPEC, pd.DataFrame(table), pd.concat(history, ignore_index=True), None)


@pytest.fixture
def sweep():
    runs = [{"learning_rate": r, "weight_decay": d} for r in RATES for d in DECAYS]
    return simulate([*runs, {"learning_rate": 3.0, "weight_decay": 5.0, "top": 0.12}])


@pytest.fixture
def budgets():
    tuned = [{"weight_decay": decay} for decay in (1e-3, 3e-3, 0.01, 0.03, 0.1)]
    predicted = [
        {
            "weight_decay": factor * CONSTANT / PER_EPOCH / budget,
            "relative_weight_decay": factor,
            "budget_epochs": float(budget),
        }
        for factor in (1.0, 2.0)
        for budget in (10, 50, 250)
    ]
    return simulate([*tuned, *predicted])


@pytest.fixture
def schedule():
    times = {1e-3: 200.0, 2e-3: 100.0, 4e-3: 50.0}
    proportional = [
        {"weight_decay": decay, "budget_epochs": time, "weight_scale": scale, "top": 0.9}
        for scale in (0.5, 1.0)
        for decay, time in times.items()
    ]
    fixed = [{"weight_decay": decay, "budget_epochs": 100.0} for decay in (1e-3, 4e-3)]
    predicted = [{"weight_decay": 2.5e-3, "budget_epochs": 100.0, "relative_weight_decay": 1.0}]
    return simulate([*fixed, *proportional, *predicted])


@pytest.fixture
def automatic():
    tables = simulate(
        [
            {"weight_decay_rule": "auto_l2", "weight_decay": 0.1, "top": 0.93},
            {"weight_decay": 0.01, "top": 0.9},
            {"weight_decay": 0.03, "top": 0.88},
        ]
    )
    history = tables.history
    history["weight_decay"] = np.where(
        history["run_id"] == "run0", np.where(history["step"] > 9, 0.01, 0.1), np.nan
    )
    return tables


# --- what figures and claims read -----------------------------------------------------------------


def test_peaks_of_a_sweep(sweep):
    runs = with_peaks(sweep)
    decaying = runs[(runs["weight_decay"] > 0) & runs["learned"]]
    constants = decaying["peak_step"] * decaying["learning_rate"] * decaying["weight_decay"]
    np.testing.assert_allclose(constants, CONSTANT, rtol=0.2)
    np.testing.assert_allclose(decaying["peak_epochs"], decaying["peak_step"] / PER_EPOCH)
    assert runs.loc[runs["weight_decay"] == 5.0, ["learned"]].to_numpy().tolist() == [[False]]
    assert runs.loc[runs["weight_decay"] == 5.0, "peak_step"].isna().all()
    assert (decaying["best_step"] >= decaying["peak_step"]).all()
    highest = decaying["best_step"] * decaying["learning_rate"] * decaying["weight_decay"]
    np.testing.assert_allclose(highest, CONSTANT, rtol=0.2)
    assert (runs["best_step"].isna() == runs["peak_step"].isna()).all()


def test_the_maximum_itself_may_come_later_than_what_is_within_the_margin(sweep):
    before = with_peaks(sweep).set_index("run_id").loc["run1"]
    late = sweep.history.index[sweep.history["run_id"] == "run1"][-2]
    sweep.history.loc[late, "test_accuracy"] = before["max_test_accuracy"] + 0.001
    after = with_peaks(sweep).set_index("run_id").loc["run1"]
    assert after["best_step"] == sweep.history.loc[late, "step"] > before["best_step"]
    assert after["peak_step"] <= before["peak_step"]


def test_accuracy_within_a_budget_and_at_a_training_accuracy(sweep):
    history = sweep.history[sweep.history["run_id"] == "run1"]
    expected = history.loc[history["step"] <= 100, "test_accuracy"].max()
    assert accuracy_within(sweep, 100)["run1"] == expected
    reached = first_reached(sweep, 1.0)
    assert reached.loc["run1", "step"] == history.loc[history["train_accuracy"] >= 1, "step"].min()


def test_tuned_and_predicted_weight_decays(budgets):
    compared = tuned_and_predicted(budgets)
    assert compared["factor"].tolist() == [1.0] * 3 + [2.0] * 3
    # The nearest of the tuned grid above c/T in steps: 0.4/20, 0.4/100, 0.4/500.
    assert compared["tuned_weight_decay"].tolist()[:3] == [0.03, 0.01, 1e-3]
    assert (compared["low"] <= compared["tuned_weight_decay"]).all()
    assert (compared["predicted_accuracy"][:3] > 0.85).all()
    with pytest.raises(ValueError, match="tuned or at predicted"):
        tuned_and_predicted(simulate([{"weight_decay": 0.1}]))


def test_a_prediction_that_diverges_counts(budgets):
    at_first = budgets.runs.index[np.isclose(budgets.runs["relative_weight_decay"], 1)][0]
    budgets.runs.loc[at_first, ["status", "max_test_accuracy"]] = ["diverged", 0.1]
    assert len(tuned_and_predicted(budgets)) == 6
    assert l2.prediction_gap(budgets).value > 0.5


def test_fixed_and_proportional_times_are_told_apart(schedule):
    fixed, proportional, predicted = split_schedule(schedule.runs)
    assert sorted(fixed["weight_decay"]) == [1e-3, 2e-3, 4e-3]
    assert set(fixed["budget_epochs"]) == {100.0}
    assert len(proportional) == 6
    assert len(predicted) == 1


@pytest.mark.parametrize("budgets", [[np.nan] * 3, [100.0] * 3, [100.0, 50.0, 25.0]])
def test_a_grid_without_both_kinds_of_times_is_named(budgets):
    decays = (1e-3, 2e-3, 4e-3)
    runs = [
        {"weight_decay": decay, "budget_epochs": budget}
        for decay, budget in zip(decays, budgets, strict=True)
    ]
    with pytest.raises(ValueError, match="fixed time or of a time proportional"):
        split_schedule(simulate(runs).runs)


def test_the_falls_of_auto_l2(automatic):
    history = automatic.history[automatic.history["run_id"] == "run0"]
    falls = decay_times(history)
    assert falls["weight_decay"].tolist() == [0.01]
    assert falls["step"].iloc[0] == history.loc[history["step"] > 9, "step"].min()
    assert best_constant(automatic.runs) == 0.01


def test_axes_of_less_than_two_decades_name_1_2_and_5(sweep):
    figure, _ = figures.PLOTS["l2/fig2a"](sweep)
    style.label_short_axes(figure)
    (axis,) = figure.axes
    figure.canvas.draw()
    low, high = axis.get_xlim()
    assert low < 0.001 < 0.03 < high < 100 * low
    ticks = zip(axis.get_xticks(minor=True), axis.get_xticklabels(minor=True), strict=True)
    named = [text.get_text() for place, text in ticks if low < place < high]
    assert named == ["0.002", "0.005", "0.02"]


# --- claims ---------------------------------------------------------------------------------------


def test_claims_of_a_sweep(sweep):
    slope = l2.peak_slope(sweep)
    assert slope.value == pytest.approx(-1, abs=0.03)
    assert slope.ci_low <= slope.value <= slope.ci_high
    assert l2.accuracy_spread(sweep).value < 0.01
    assert l2.rate_independence(sweep).value < 0.01
    assert l2.accuracy_spread(sweep).detail.endswith("0 of 9 runs do not train and are left out")
    assert l2.interior_optimum(sweep).value == 1
    assert l2.fit_time_slope(
        simulate(
            [{"learning_rate": r, "weight_decay": d} for r in (0.2, 0.5, 1.0) for d in (1e-3, 1e-2)]
        )
    ).value == pytest.approx(-1, abs=0.05)
    scattered = [
        {"learning_rate": r, "weight_decay": d}
        for r, d in zip((0.2, 0.5, 1.0), (0.0, 1e-3, 2e-3), strict=True)
    ]
    with pytest.raises(ValueError, match="at no weight decay"):
        l2.fit_time_slope(simulate(scattered))
    without = sweep.runs.loc[sweep.runs["weight_decay"] == 0, "max_test_accuracy"].max()
    small = sweep.runs["weight_decay"].between(1e-9, 0.01)
    best = sweep.runs.loc[small, "max_test_accuracy"].max()
    assert l2.accuracy_over_unregularised(sweep).value == pytest.approx(best - without)
    # Of all products, 3 × 5 does not train.
    assert l2.trainable_decades(sweep).value == pytest.approx(np.log10(3 * 0.03 / 2.5e-8))
    with_decay = sweep.runs["weight_decay"] > 0
    no_zero = ExperimentTables(SPEC, sweep.runs[with_decay], sweep.history, None)
    with pytest.raises(ValueError, match="no run without L2 trains"):
        l2.trainable_decades(no_zero)
    assert l2.small_decay_constant(sweep).value == pytest.approx(1, abs=0.1)


def test_a_sweep_whose_time_does_not_depend_on_l2_has_no_such_slope(sweep):
    sweep.history["test_accuracy"] = np.where(
        sweep.history["step"] < 20, 0.1, 0.9 - 1e-4 * np.log1p(sweep.history["step"])
    )
    assert abs(l2.peak_slope(sweep).value) < 0.3


def test_too_few_runs_are_no_slope():
    with pytest.raises(ValueError, match="only"):
        l2.peak_slope(simulate([{"weight_decay": 0.01}]))


def test_claims_of_budgets(budgets):
    assert l2.prediction_gap(budgets).value < 0.05
    assert 0.1 < l2.tuned_over_predicted(budgets).value < 10


def test_claims_of_auto_l2(automatic):
    assert l2.auto_advantage(automatic).value == pytest.approx(0.03, abs=0.01)
    assert l2.auto_is_faster(automatic).value == pytest.approx(0.03, abs=0.01)
    assert l2.constant_advantage(automatic).value == pytest.approx(-0.03, abs=0.01)
    slow = automatic.history["run_id"] == "run0"
    automatic.history.loc[slow, "step"] *= 1000
    late = l2.auto_is_faster(automatic)
    assert late.value == pytest.approx(0.03, abs=0.01)
    assert late.unmet == "AutoL2 is not faster"
    claims = evaluate_claims({"l2/auto_l2": automatic}).set_index("id")
    assert claims.loc["L2-29", "verdict"] == NOT_REPRODUCED
    assert claims.loc["L2-29", "detail"].startswith("AutoL2 is not faster; AutoL2 0.9")


def test_auto_l2_rests_as_the_paper_says():
    measured = l2.resting_times(None)
    assert measured.value == 0
    assert measured.detail.startswith("10, 100, 1000, 10000 steps at 0.01, 0.001, 0.0001, 1e-05")


def test_claims_of_arithmetic():
    # 2.625e-5 is printed as 2.63e-5.
    assert l2.printed_predictions(None).value == pytest.approx(0.5, abs=1e-9)
    assert l2.prediction_with_schedule(None).value == pytest.approx(1.09375e-4)
    assert l2.doubled_constant(None).value == pytest.approx(0.013125)


def test_the_least_training_loss(sweep):
    measured = l2.least_loss_time(sweep)
    assert measured.value == pytest.approx(1.13 * CONSTANT, rel=0.1)
    # Runs that end before do not count.
    short = sweep.runs["weight_decay"].between(1e-9, 3e-3)
    sweep.runs.loc[short, "steps"] //= 5
    assert not measured.unmet
    assert measured.detail.startswith("12 of 12")
    assert l2.least_loss_time(sweep).detail.startswith("6 of 6")
    # Runs whose loss comes back to where it started belong to it.
    sweep.runs["final_train_loss"] = 1.2
    assert l2.least_loss_time(sweep).value == pytest.approx(measured.value, rel=0.05)
    # A loss that only falls has no such minimum.
    sweep.history["train_loss"] = 1 / (1 + sweep.history["step"])
    last = sweep.history.groupby("run_id")["train_loss"].last()
    sweep.runs["final_train_loss"] = last.reindex(sweep.runs["run_id"]).to_numpy()
    assert l2.least_loss_time(sweep).unmet == "not every loss rises after its least"


def test_the_ratio_farthest_from_one():
    assert l2_theory.farthest([1.1, 0.5, 1.6]) == 0.5
    assert l2_theory.farthest([1.1, 0.9, 2.5]) == 2.5


def test_every_claim_of_the_paper_has_a_measure_or_says_how_to_run_it():
    claims = evaluate_claims({})
    of_paper = claims[claims["paper"] == "l2"].set_index("id")
    assert len(of_paper) == 39
    assert set(of_paper.index) == {name for name in MEASURES if name.startswith("L2-")}
    assert (of_paper["verdict"] == NOT_RUN).all()
    assert of_paper["detail"].str.contains("snakemake -c2 results/claims.md --config").all()


def test_a_claim_about_the_papers_scale_says_what_would_run_it(sweep):
    claims = evaluate_claims({"l2/wrn_sgd": sweep}).set_index("id")
    assert claims.loc["L2-17", "verdict"] == NOT_RUN
    measure = ClaimMeasure("wrn_sgd", None, None, l2.peak_slope, "cifar10", "paper")
    command = command_for("l2/wrn_sgd", measure)
    assert claims.loc["L2-17", "detail"] == (
        f"a claim about cifar10 at scale paper alone: {command}"
    )
    assert command.endswith("""'experiments=["l2/wrn_sgd"]' scale=paper data=published""")


def test_ranges_are_those_of_the_tolerances():
    ranges = {name: (m.low, m.high) for name, m in MEASURES.items() if name.startswith("L2-")}
    assert set(ranges) == set(RANGES)
    for claim, bounds in RANGES.items():
        assert ranges[claim] == pytest.approx(bounds), claim


# --- figures --------------------------------------------------------------------------------------


def lines_of(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_time_to_peak_has_a_line_per_rate_and_a_guide(sweep):
    figure, plotted = figures.PLOTS["l2/fig2a"](sweep)
    axis = figure.axes[0]
    assert axis.get_xscale() == axis.get_yscale() == "log"
    assert {"0.5", "1", "3"} <= set(lines_of(axis))
    # The run that does not learn is left out.
    assert plotted["weight_decay"].max() == 0.03
    guides = [line for line in axis.get_lines() if line.get_color() == figures._GUIDE_COLOR]
    for line in guides:
        (x0, x1), (y0, y1) = line.get_data()
        assert np.log(y1 / y0) / np.log(x1 / x0) == pytest.approx(-1)
    assert len(guides) == 3


def test_best_accuracy_has_the_line_without_l2(sweep):
    figure, _ = figures.PLOTS["l2/fig2b"](sweep)
    without = sweep.runs.loc[sweep.runs["weight_decay"] == 0, "max_test_accuracy"].max()
    assert lines_of(figure.axes[0])["λ = 0"].get_ydata()[0] == without


def test_fixed_budgets_have_their_optimum_inside(sweep):
    _, plotted = figures.PLOTS["l2/fig2c"](sweep)
    assert plotted["budget_epochs"].nunique() >= 2
    for _, line in plotted.groupby("budget_epochs"):
        accuracy = line.sort_values("weight_decay")["test_accuracy"].to_numpy()
        assert accuracy.argmax() > 0


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("fig1a", "schedule"),
        ("fig1b", "budgets"),
        ("fig1c", "automatic"),
        ("fig2d", "sweep"),
        ("fig4b", "budgets"),
        ("figS1a", "sweep"),
        ("figS2", "budgets"),
        ("figS3", "budgets"),
        ("figS4", "budgets"),
        ("figS5", "sweep"),
        ("figS6a", "sweep"),
        ("figS7", "sweep"),
        ("figS9", "automatic"),
        ("figS11a", "automatic"),
        ("figS12", "schedule"),
    ],
)
def test_figures_draw_what_they_return(name, fixture, request):
    figure, plotted = figures.PLOTS[f"l2/{name}"](request.getfixturevalue(fixture))
    assert len(plotted)
    assert all(axis.has_data() for axis in figure.axes)


def test_the_estimate_marks_its_constant():
    tables = simulate([{"weight_decay": 0.02, "seed": seed} for seed in (0, 1)])
    figure, _ = figures.plot_estimate(tables)
    measured = l2.measured_constant(tables)
    marks = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert marks[0].get_xdata()[0] == pytest.approx(measured.value)
    assert measured.value == pytest.approx(CONSTANT / PER_EPOCH, rel=0.1)


def test_a_plane_of_rates_and_of_times():
    plane = [
        {"learning_rate": r, "weight_decay": d, "budget_epochs": 50.0, "top": 0.5 + 10 * r * d}
        for r in (1.0, 2.0)
        for d in (0.01, 0.02)
    ]
    times = [
        {"learning_rate": 0.1, "weight_decay": d, "budget_epochs": t}
        for d in (0.01, 0.02)
        for t in (50.0, 100.0)
    ]
    tables = simulate(plane + times)
    _, plotted = figures.plot_plane(tables)
    assert plotted.groupby("panel")["run_id"].count().to_dict() == {"a": 4, "b": 4}
    assert l2.diagonal_spread(tables).value < 0.02


def test_networks_with_and_without_batch_norm_are_drawn_apart():
    runs = [
        {"batch_norm": norm, "weight_decay": decay, "top": 0.9 if norm else 0.8}
        for norm in (False, True)
        for decay in (1e-3, 3e-3, 0.01, 0.03)
    ]
    tables = simulate(runs)
    _, without = figures.PLOTS["l2/fig3b"](tables)
    _, with_norm = figures.PLOTS["l2/fig3e"](tables)
    assert without["max_test_accuracy"].max() < with_norm["max_test_accuracy"].min()
    assert l2.peak_slope_of_networks(tables).value == pytest.approx(-1, abs=0.05)


def test_the_kernels_loss_and_the_networks():
    tables = simulate([{"weight_decay": 0.01, "width": 100}])
    targets, outputs, eigenvalues = np.ones(3), np.zeros(3), np.array([5.0, 1.0, 0.2])
    for name, values in (("targets", targets), ("outputs", outputs), ("eigenvalues", eigenvalues)):
        column = [values if step == 0 else None for step in tables.history["step"]]
        tables.history[f"kernel_mode_{name}"] = column
    figure, plotted = figures.plot_kernel_and_network(tables)
    assert figure.axes[0].has_data()
    # The fixed kernel ends at its ridge solution, the decaying one at nothing learned.
    assert plotted["kernel_1"].iloc[-1] < plotted["kernel_2"].iloc[-1]
    expected = np.sum((0.01 / (eigenvalues + 0.01)) ** 2) / 2
    assert plotted["kernel_1"].min() == pytest.approx(expected, rel=0.1)


def test_the_kernels_decay_is_compared_with_the_theorem():
    times = np.linspace(0, 30, 16)
    history = pd.DataFrame(
        {
            "run_id": "a",
            "step": np.arange(16),
            "physical_time": times,
            "ntk_top_eigenvalue": 7.0 * np.exp(-2 * 0.05 * times),
        }
    )
    run = {"run_id": "a", "seed": 0, "depth": 2, "width": 100, "weight_decay": 0.05}
    runs = pd.DataFrame([{**run, "initial_ntk_top_eigenvalue": 7.0}])
    tables = ExperimentTables(SPEC, runs, history, None)
    assert l2.kernel_decay_rate(tables).value == pytest.approx(1)
    _, plotted = figures.plot_kernel_decay(tables)
    np.testing.assert_allclose(plotted["relative_eigenvalue"], plotted["predicted"])
    # A narrower network, and what comes after the kernel should have fallen to 1/e, do not count.
    narrow = history.assign(run_id="b", ntk_top_eigenvalue=7.0 * np.exp(-0.05 * times))
    history.loc[times > 1 / (2 * 0.05), "ntk_top_eigenvalue"] = 2.0
    both = pd.concat([runs, runs.assign(run_id="b", width=50)], ignore_index=True)
    tables = ExperimentTables(SPEC, both, pd.concat([history, narrow], ignore_index=True), None)
    measured = l2.kernel_decay_rate(tables)
    assert measured.value == pytest.approx(1)
    assert measured.detail.startswith("by width 50: 0.500 to 0.500, 100: 1.000 to 1.000; over")
    few = tables.history[tables.history["physical_time"] < 4]
    with pytest.raises(ValueError, match="fewer than three"):
        l2.kernel_decay_rate(ExperimentTables(SPEC, both, few, None))
