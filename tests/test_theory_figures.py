"""The theory figures show what their tables hold."""

import dataclasses
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml

from sgdphases.config import expand_runs, load_experiment
from sgdphases.figures import style
from sgdphases.figures.catapult_theory import PLOTS
from sgdphases.tables import ExperimentTables
from sgdphases.theory.programs import run_theory

EXPERIMENTS = Path(__file__).parents[1] / "config" / "experiments" / "catapult"


def feeding_experiments():
    feeds = {}
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content.get("kind") == "theory":
            feeds |= {f"catapult/{name}": path.stem for name in content.get("figures", {})}
    return feeds


FEEDS = feeding_experiments()


@cache
def compute(experiment, scale="smoke"):
    spec = load_experiment(EXPERIMENTS / f"{experiment}.yaml", scale, "embedded", {})
    runs, history = run_theory(spec, expand_runs(spec))
    return ExperimentTables(spec, runs, history, None)


@pytest.fixture(autouse=True)
def _styled():
    style.apply_style()
    yield
    plt.close("all")


def test_every_figure_has_an_experiment_that_feeds_it():
    assert set(FEEDS) == set(PLOTS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("scale", ["smoke", "quick"])
def test_figure_draws_data_in_every_panel(name, scale, tmp_path):
    figure, plotted = PLOTS[name](compute(FEEDS[name], scale))
    figure.savefig(tmp_path / "figure.png")
    assert figure.get_size_inches()[0] <= style.PAGE_WIDTH
    panels = [axis for axis in figure.axes if axis.axison and axis.get_visible()]
    assert panels
    assert all(axis.lines or axis.collections or axis.patches for axis in panels)
    assert len(plotted) > 10
    plotted.to_parquet(tmp_path / "plotted.parquet")


@pytest.mark.parametrize("name", ["catapult/fig2a", "catapult/fig2b"])
def test_curves_are_the_history(name):
    tables = compute("warmup_phases", "quick")
    figure, plotted = PLOTS[name](tables)
    column = "train_loss" if name.endswith("a") else "ntk_top_eigenvalue"
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
    np.testing.assert_array_equal(drawn, plotted[column])
    merged = plotted.merge(tables.history, on=["run_id", "step"], suffixes=("", "_recorded"))
    np.testing.assert_array_equal(merged[column], merged[f"{column}_recorded"])
    assert plotted["learning_rate"].nunique() == len(figure.axes[0].lines) == 9


def test_final_curvature_marks_the_thresholds_and_shades_what_diverges():
    tables = compute("warmup_phases", "quick")
    figure, plotted = PLOTS["catapult/fig2c"](tables)
    (axis,) = figure.axes
    first = tables.runs[tables.runs["seed"] == 0]
    eigenvalue = first["initial_ntk_top_eigenvalue"].iloc[0]
    ends = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2]
    dashed = sorted(start for start, end in ends if start == end)
    assert dashed == pytest.approx([2 / eigenvalue, 4 / eigenvalue])
    assert sorted(plotted["final_ntk_top_eigenvalue"]) == sorted(first["final_ntk_top_eigenvalue"])
    shade = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    gone = plotted[plotted["status"] == "diverged"]["learning_rate"]
    stays = plotted[plotted["status"] != "diverged"]["learning_rate"]
    assert stays.max() < shade.x0 < gone.min()


def test_final_curvature_draws_a_grid_without_divergence():
    tables = compute("warmup_phases", "quick")
    stable = tables.runs[tables.runs["status"] != "diverged"]
    figure, _ = PLOTS["catapult/fig2c"](dataclasses.replace(tables, runs=stable))
    assert not figure.axes[0].patches


def test_plane_paths_are_the_history_and_lie_on_the_surface():
    tables = compute("warmup_plane", "quick")
    _, plotted = PLOTS["catapult/figS1"](tables)
    for panel, phase in zip("bcd", ("lazy", "catapult", "divergent"), strict=True):
        path = plotted[(plotted["panel"] == panel) & (plotted["series"] == phase)]
        assert len(path) > 3
        np.testing.assert_allclose(
            path["train_loss"], (path["x"] ** 2 - path["y"] ** 2) ** 2 / 1000, rtol=1e-6, atol=1e-12
        )
    path = plotted[(plotted["panel"] == "e") & (plotted["series"] == "catapult")]
    np.testing.assert_allclose(
        path["train_loss"], 500 * (path["x"] * path["y"]) ** 2 / 8, rtol=1e-6, atol=1e-12
    )
    surfaces = plotted[plotted["series"] == "loss surface"]
    assert sorted(surfaces["panel"].unique()) == list("abcde")


def test_path_needs_its_phase():
    tables = compute("warmup_plane")
    lazy = tables.runs[tables.runs["phase"] == "lazy"]
    with pytest.raises(ValueError, match="catapult phase"):
        PLOTS["catapult/fig1a"](dataclasses.replace(tables, runs=lazy))


def test_legend_gives_the_fitted_exponents():
    figure, plotted = PLOTS["catapult/figS12"](compute("warmup_critical_exponent", "quick"))
    for axis, side in zip(figure.axes, ("below", "above"), strict=True):
        fit = plotted[plotted["series"] == f"{side}, fit"]
        slope = np.polyfit(np.log(fit["scaled_distance"]), np.log(fit["convergence_step"]), 1)[0]
        (text,) = [t.get_text() for t in axis.get_legend().get_texts() if "exp" in t.get_text()]
        assert float(text.replace("−", "-").split()[-1]) == pytest.approx(slope, abs=0.006)


@pytest.mark.parametrize("name", PLOTS)
def test_same_tables_give_the_same_bytes(name, tmp_path):
    for copy in ("one", "two"):
        figure, _ = PLOTS[name](compute(FEEDS[name]))
        figure.savefig(tmp_path / f"{copy}.svg", metadata={"Date": None})
        plt.close(figure)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_ordered_colors_run_from_dark_to_light():
    colors = style.ordered_colors([0.1, 1.0, 0.5, 0.1])
    assert colors[0] == colors[3]
    assert len(set(colors)) == 3
    lightness = [sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in colors]
    assert lightness[0] < lightness[2] < lightness[1]


def test_evenly_chosen_keeps_both_ends():
    np.testing.assert_array_equal(style.evenly_chosen(np.arange(11.0), 3), [0.0, 5.0, 10.0])
    np.testing.assert_array_equal(style.evenly_chosen([2.0, 1.0, 2.0], 5), [1.0, 2.0])


def test_phase_lines_and_shade_keep_the_axis_and_label_above_the_frame():
    figure, (axis,) = style.panels(1)
    axis.plot([0, 3], [0, 1])
    axis.set_xlim(0, 3)
    style.shade_divergent(axis, 2.0)
    style.draw_phase_lines(axis, critical=1.0, constants=(2, 4))
    figure.canvas.draw()
    assert axis.get_xlim() == (0, 3)
    labels = [text for text in axis.texts if "λ₀" in text.get_text()]
    assert [text.get_text() for text in labels] == ["2/λ₀", "4/λ₀"]
    frame = axis.get_window_extent()
    assert all(text.get_window_extent().y0 >= frame.y1 for text in labels)
    assert [line.get_xdata()[0] for line in axis.lines[1:]] == [1.0, 2.0]


def test_panels_hide_what_is_left_over():
    figure, axes = style.panels(5, columns=3)
    assert len(axes) == 5
    assert [axis.get_visible() for axis in figure.axes] == [True] * 5 + [False]
