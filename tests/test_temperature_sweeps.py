"""Sweeps of the inverse temperature: what figures, claims and the tuning read from them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sgdphases.claims.evaluate import evaluate_claims
from sgdphases.claims.temperature import MEASURES
from sgdphases.figures.draw import draw_figure, plots_of
from sgdphases.figures.style import apply_style
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_sweeps import (
    at_best_rate,
    best_rates,
    families,
    fit_rates,
    largest_rates,
    lazy_from,
    over_seeds,
    plane_cells,
    rate_spacing,
    with_accuracy,
)

SHARED = {
    "model": "fully_connected",
    "depth": 3,
    "width": 100,
    "status": "finished",
    "head_correlation": 0.0,
}


def make_tables(rows, name="optimal_rate", early=(), norms=(), dataset="digits", scale="quick"):
    runs = pd.DataFrame([{**SHARED, "seed": 0, **row} for row in rows])
    runs["run_id"] = [f"run{i}" for i in range(len(runs))]
    runs["max_test_accuracy"] = runs["final_test_accuracy"]
    start = pd.DataFrame({"run_id": runs["run_id"], "step": 0, "test_accuracy": 0.1})
    end = start.assign(step=100, test_accuracy=runs["final_test_accuracy"])
    parts = [start, end]
    if len(early):
        parts.insert(1, start.assign(step=20, test_accuracy=early))
    history = pd.concat(parts, ignore_index=True)
    if len(norms):
        history["logit_norm"] = np.nan
        history.loc[history["step"] == 100, "logit_norm"] = norms
    spec = {"experiment": f"temperature/{name}", "scale": scale, "dataset": {"name": dataset}}
    return ExperimentTables(spec, runs, history, None)


def sweep_rows(exponents=None, depths=(2, 3), betas=None, seeds=(0, 1)):
    """Accuracies that peak at η = 0.1 β^exponent, on a grid of half decades of ηβ."""
    betas = 10.0 ** np.arange(-5, 3) if betas is None else betas
    exponents = exponents or {2: (-1, -1), 3: (-1, -2 / 3)}
    rows = []
    for depth in depths:
        for beta in betas:
            lazy, rich = exponents[depth]
            best = 0.1 * (beta**lazy if beta >= 0.1 else 0.1 ** (lazy - rich) * beta**rich)
            for rate in 10.0 ** np.arange(-5, 3.1, 0.5) / beta:
                distance = np.log10(rate / best)
                row = {
                    "depth": depth,
                    "inverse_temperature": beta,
                    "learning_rate": rate,
                    "final_test_accuracy": 0.9 - 0.05 * distance**2 if distance < 1 else 0.1,
                }
                rows += [{**row, "seed": seed} for seed in seeds]
    return rows


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_run_that_diverged_is_as_good_as_before_and_one_out_of_reach_does_not_count():
    rows = [
        {"inverse_temperature": 1.0, "learning_rate": 0.1, "final_test_accuracy": 0.9},
        {"inverse_temperature": 1.0, "learning_rate": 9.0, "final_test_accuracy": 0.8},
        {"inverse_temperature": 1.0, "learning_rate": 0.3, "final_test_accuracy": 0.1},
    ]
    tables = make_tables(rows)
    tables.runs.loc[[1, 2], "status"] = ["diverged", "unreachable"]
    runs = with_accuracy(tables)
    assert runs["accuracy"].tolist() == [0.9, 0.1]


def test_rates_that_differ_by_rounding_are_one_rate():
    rows = [
        {
            "inverse_temperature": beta,
            "learning_rate": 0.1 / beta * (1 + 1e-12 * seed),
            "final_test_accuracy": 0.8 + 0.01 * seed,
            "seed": seed,
        }
        for beta in (0.3, 3.0)
        for seed in (0, 1, 2)
    ]
    table = over_seeds(with_accuracy(make_tables(rows)), ["inverse_temperature"])
    assert table["seeds"].tolist() == [3, 3]
    np.testing.assert_allclose(table[["mean", "best", "worst"]], [[0.81, 0.82, 0.8]] * 2)
    np.testing.assert_allclose(table["deviation"], 0.01)


def test_the_best_rate_the_middle_one_of_equals_and_those_at_an_end():
    def rows(accuracies, beta):
        return [
            {"inverse_temperature": beta, "learning_rate": 10.0**i, "final_test_accuracy": a}
            for i, a in enumerate(accuracies)
        ]

    tables = make_tables(
        rows([0.1, 0.9, 0.9, 0.9, 0.2], 1.0) + rows([0.9, 0.2, 0.1], 2.0) + rows([0.5], 4.0)
    )
    best = at_best_rate(with_accuracy(tables), ["inverse_temperature"])
    assert best["learning_rate"].tolist() == [100.0, 1.0, 1.0]
    assert best["at_end"].tolist() == [False, True, False]


def test_exponents_on_both_sides_and_what_they_are_fitted_to():
    runs = with_accuracy(make_tables(sweep_rows()))
    spacing, start = rate_spacing(runs), lazy_from(runs)
    assert (spacing, start) == (pytest.approx(0.5), pytest.approx(0.1))
    best = best_rates(runs, ["depth", "inverse_temperature"])
    assert not best["at_end"].any()
    for depth, rich_exponent in ((2, -1), (3, -2 / 3)):
        own = best[best["depth"] == depth]
        lazy = fit_rates(own[own["inverse_temperature"] >= start], spacing)
        rich = fit_rates(own[own["inverse_temperature"] < start], spacing)
        assert lazy.exponent == pytest.approx(-1)
        # Rates of the grid are half a decade apart: the interval knows.
        assert rich.low <= rich_exponent <= rich.high
    with pytest.raises(ValueError, match="2 inverse temperatures alone"):
        fit_rates(best[best["inverse_temperature"] > 5], spacing)


def rate_rows(accuracies, beta=1.0, **shared):
    return [
        {"inverse_temperature": beta, "learning_rate": 10.0**i, "final_test_accuracy": a, **shared}
        for i, a in enumerate(accuracies)
    ]


def test_the_best_rate_of_a_plateau_is_its_middle():
    tables = make_tables(
        rate_rows([0.1, 0.896, 0.9, 0.7, 0.897, 0.1], seed=0)
        + rate_rows([0.1, 0.2, 0.3, 0.9, 0.8, 0.1], seed=1)
        + rate_rows([0.1, 0.2, 0.3, 0.4, 0.895, 0.9], beta=2.0, seed=0)
    )
    best = best_rates(with_accuracy(tables), ["inverse_temperature"])
    np.testing.assert_allclose(best["learning_rate"], [10 ** (7 / 3), 1e3, 10**4.5])
    assert best["at_end"].tolist() == [False, False, True]


def test_the_largest_rate_that_learns_from_the_best_on():
    tables = make_tables(
        rate_rows([0.1, 0.9, 0.6, 0.2, 0.8], seed=0)  # an island beyond does not count
        + rate_rows([0.1, 0.3, 0.9, 0.9, 0.8], seed=1)  # no edge
        + rate_rows([0.4, 0.3, 0.1, 0.1, 0.1], seed=2)  # learns nowhere
    )
    largest = largest_rates(with_accuracy(tables), ["inverse_temperature"])
    assert largest.to_dict("records") == [
        {"inverse_temperature": 1.0, "seed": 0, "learning_rate": 100.0}
    ]


def test_wide_resnets_have_no_width_that_tells_where_they_are_lazy():
    runs = with_accuracy(make_tables(sweep_rows()))
    assert lazy_from(runs.assign(model="wide_resnet")) == 0.0
    assert families(runs) == ["depth"]


def plane_tables(**options):
    rows, early, norms = [], [], []
    for beta in (0.01, 1.0, 100.0):
        for norm in (0.01, 1.0, 100.0):
            for rate, penalty in ((0.1, 0.0), (1.0, 0.1)):
                is_out = norm > 2 * beta
                rows.append(
                    {
                        "inverse_temperature": beta,
                        "initial_logit_norm": norm,
                        "learning_rate": rate / beta,
                        "final_test_accuracy": 0.9 - penalty - (0.3 if norm > 1 else 0.004 * norm),
                        "status": "unreachable" if is_out else "finished",
                        "head_correlation": norm**2 / (2 * beta**2) - 1 if not is_out else 1.0,
                    }
                )
                early.append(0.5 + 0.05 * np.log10(beta) - 0.02 * np.log10(norm))
                norms.append(4.0)
    return make_tables(rows, "plane", early, norms, **options)


def test_cells_of_the_plane_are_those_that_can_be_reached_at_their_best_rate():
    cells = plane_cells(plane_tables())
    assert len(cells) == 6
    assert (cells["rate_over_temperature"] == 0.1).all()
    assert (cells["final_logit_norm"] == 4.0).all()
    first = cells.iloc[0]
    assert first["early_accuracy"] == pytest.approx(0.5 - 0.1 + 0.04)
    nowhere = plane_tables()
    nowhere.runs["status"] = "unreachable"
    with pytest.raises(ValueError, match="can be reached"):
        plane_cells(nowhere)


# --- claims ---------------------------------------------------------------------------------------


def family_tables(name="weight_scales", **options):
    rows = []
    for norm, scale, best in ((False, 1.0, 0.1), (False, 2.0, 0.01), (True, 1.0, 10.0)):
        for beta in 10.0 ** np.arange(-4, 3):
            for seed in range(5):
                scatter = 0.1 * seed if beta < 0.01 and not norm else 0.002 * seed
                rows.append(
                    {
                        "model": "wide_resnet",
                        "batch_norm": norm,
                        "weight_scale": scale,
                        "inverse_temperature": beta,
                        "learning_rate": 0.1 / beta,
                        "seed": seed,
                        "final_test_accuracy": 0.8
                        + 0.1 * norm
                        - 0.01 * np.log10(beta / best) ** 2
                        - scatter,
                    }
                )
    return make_tables(rows, name, **options)


def scored(claim, tables):
    table = evaluate_claims({f"temperature/{MEASURES[claim].experiment}": tables}).set_index("id")
    return table.loc[claim]


@pytest.mark.parametrize("claim", ["TMP-10", "TMP-11"])
def test_slopes_of_rates(claim):
    row = scored(claim, make_tables(sweep_rows()))
    assert row["verdict"] == "reproduced"
    assert row["measured"] == pytest.approx(-1, abs=0.1)
    assert row["ci_low"] < row["measured"] < row["ci_high"]
    for fragment in ("depth 2: -", "depth 3: -", "where −2/L is expected"):
        assert fragment in row["detail"]
    steep = make_tables(sweep_rows({2: (-2, -1), 3: (-1, -2 / 3)}))
    assert scored(claim, steep)["verdict"] == "not reproduced"
    assert scored(claim, make_tables(sweep_rows(betas=[1.0, 10.0])))["verdict"] == "not run"


def test_claims_about_the_plane():
    tables = plane_tables()
    assert scored("TMP-14", tables)["measured"] == pytest.approx(0.004 * 0.99)
    assert "norms above 1 lose up to 0.29" in scored("TMP-14", tables)["detail"]
    assert scored("TMP-17", tables)["measured"] == pytest.approx(4)
    for claim in ("TMP-13", "TMP-15"):
        assert scored(claim, tables)["verdict"] == "not run"
        assert "scale=paper data=published" in scored(claim, tables)["detail"]
    own = plane_tables(dataset="cifar10", scale="paper")
    assert scored("TMP-13", own)["measured"] == pytest.approx(0.01)
    assert scored("TMP-15", own)["measured"] == pytest.approx(0.1)
    assert scored("TMP-15", own)["verdict"] == "not reproduced"


def test_the_early_ordering_needs_three_cells_in_a_row():
    tables = plane_tables()
    row = scored("TMP-16", tables)
    assert (row["measured"], row["verdict"]) == (1.0, "reproduced")
    tables.history.loc[tables.history["step"] == 20, "test_accuracy"] *= -1
    assert scored("TMP-16", tables)["verdict"] == "not reproduced"
    few = tables.runs[tables.runs["inverse_temperature"] > 1]
    small = ExperimentTables(tables.spec, few, tables.history, None)
    assert scored("TMP-16", small)["verdict"] == "not run"


def test_claims_about_batch_norm_and_seeds():
    tables = family_tables()
    assert scored("TMP-19", tables)["verdict"] == "reproduced"
    assert scored("TMP-20", tables)["measured"] > 10
    row = scored("TMP-33", tables)
    assert (row["measured"], row["detail"]) == (0.0, "of 3, best at β = 0.01, 0.1, 10")
    better = family_tables()
    is_small = (better.runs["inverse_temperature"] < 0.01) & ~better.runs["batch_norm"].astype(bool)
    better.runs.loc[is_small, "final_test_accuracy"] += 0.4
    row = scored("TMP-20", better)
    assert (row["verdict"], row["measured"] > 10) == ("not reproduced", True)
    assert row["detail"].startswith("the mean does not fall")
    own = family_tables(dataset="cifar10", scale="paper")
    assert scored("TMP-18", own)["measured"] == pytest.approx(10)
    worse = family_tables()
    with_norm = worse.runs["batch_norm"].astype(bool)
    worse.runs.loc[with_norm, "final_test_accuracy"] -= 0.2
    assert scored("TMP-19", worse)["verdict"] == "not reproduced"
    without = ExperimentTables(
        tables.spec, tables.runs.drop(columns="batch_norm"), tables.history, None
    )
    assert scored("TMP-19", without)["verdict"] == "not run"


def test_the_gru_needs_its_best_seed_at_a_smaller_temperature():
    rows = [
        {
            "model": "gru",
            "inverse_temperature": beta,
            "learning_rate": 0.1 / beta,
            "seed": seed,
            "final_test_accuracy": mean + spread * (seed - 0.5),
        }
        for beta, mean, spread in ((0.01, 0.7, 0.4), (1.0, 0.8, 0.02), (100.0, 0.6, 0.02))
        for seed in (0, 1)
    ]
    row = scored("TMP-21", make_tables(rows, "gru", dataset="imdb"))
    assert (row["measured"], row["verdict"]) == (1.0, "reproduced")
    assert scored("TMP-21", make_tables(rows, "gru"))["verdict"] == "not run"
    for row in rows[:2]:
        row["final_test_accuracy"] = 0.5
    assert scored("TMP-21", make_tables(rows, "gru", dataset="imdb"))["verdict"] != "reproduced"


def test_table_one_is_measured_on_imagenet_alone_and_quotes_are_never_run():
    rows = [
        {
            "model": "resnet",
            "batch_norm": True,
            "inverse_temperature": beta,
            "learning_rate": 0.4 / beta,
            "seed": seed,
            "final_test_accuracy": accuracy,
        }
        for beta, accuracy in ((0.3, 0.7737), (1.0, 0.7651))
        for seed in (0, 1)
    ]
    own = make_tables(rows, "imagenet", dataset="imagenet", scale="paper")
    assert scored("TMP-22", own)["measured"] == pytest.approx(76.51)
    assert scored("TMP-25", own)["verdict"] == "reproduced"
    assert scored("TMP-25", make_tables(rows, "imagenet"))["verdict"] == "not run"
    for claim in ("TMP-23", "TMP-24"):
        assert scored(claim, own)["verdict"] == "not run"
        assert "Ghiasi" in scored(claim, own)["detail"]


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "tables"),
    [
        ("fig4", make_tables(sweep_rows())),
        ("fig5a", plane_tables()),
        ("fig5b", plane_tables()),
        ("fig5c", plane_tables()),
        ("fig6a", family_tables()),
        ("fig6b", family_tables()),
        ("fig6c", family_tables("gru")),
        ("fig6_fully_connected", family_tables("weight_scales_fc")),
        ("table1", family_tables("imagenet")),
    ],
)
def test_figures_are_drawn_with_their_numbers(figure, tables, tmp_path):
    draw_figure(
        f"temperature/{figure}", "temperature", tables, [tmp_path / "f.png"], tmp_path / "f.parquet"
    )
    assert (tmp_path / "f.png").stat().st_size > 5000
    assert len(pd.read_parquet(tmp_path / "f.parquet")) > 0


def test_what_cannot_be_reached_is_hatched_and_in_the_numbers():
    apply_style()
    figure, cells = plots_of("temperature")["temperature/fig5a"](plane_tables())
    (axis, _) = figure.axes
    assert cells["reachable"].tolist().count(False) == 3
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["out of reach"]
    plt.close(figure)
