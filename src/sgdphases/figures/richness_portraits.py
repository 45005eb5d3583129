"""Figures of the richness paper: portraits of other networks, optimisers and data."""

from collections.abc import Callable

import pandas as pd

from sgdphases.claims.catapult_theory import choose
from sgdphases.claims.richness_portraits import (
    batch_size_portraits,
    depth_portraits,
    model_portraits,
    scheduled_portraits,
    single_index_portraits,
)
from sgdphases.claims.richness_theory import MSE
from sgdphases.figures.richness import (
    RELATIVE_LOSS,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    Drawn,
    Shown,
    draw_exponents,
    draw_portraits,
)
from sgdphases.figures.richness_theory import LOSS_NAMES, draw_scalings
from sgdphases.figures.style import ordered_colors, panels
from sgdphases.tables import ExperimentTables

Plot = Callable[[ExperimentTables], Drawn]


def plot_scheduled(optimizer: str) -> Plot:
    """Figures 10 and 12: portraits with warm-up and cosine decay."""

    def plot(tables: ExperimentTables) -> Drawn:
        portraits = [
            portrait.named(LOSS_NAMES[portrait.loss])
            for portrait in scheduled_portraits(tables, optimizer)
        ]
        return draw_portraits(tables, portraits, TEST_ACCURACY)

    return plot


def plot_scheduled_exponents(tables: ExperimentTables) -> Drawn:
    """Exponents of the edges of figures 10 and 12."""
    groups = {
        name: [
            portrait.named("MSE" if portrait.loss == MSE else "CE")
            for portrait in scheduled_portraits(tables, optimizer)
        ]
        for optimizer, name in (("sgd", "SGD"), ("adam", "Adam"))
    }
    return draw_exponents(tables, groups, height=3.2)


def plot_model(model: str, shown: Shown, names: dict[str, str]) -> Plot:
    """Figures 1d, 14 and 15: portraits of one model."""

    def plot(tables: ExperimentTables) -> Drawn:
        return draw_portraits(tables, model_portraits(tables, model, names), shown)

    return plot


def plot_depths(parametrisation: str) -> Plot:
    """Figures 25 and 26: portraits of residual networks of several depths."""

    def plot(tables: ExperimentTables) -> Drawn:
        return draw_portraits(tables, depth_portraits(tables, parametrisation), TEST_ACCURACY)

    return plot


def plot_batch_sizes(tables: ExperimentTables) -> Drawn:
    """Figure 28: portraits at several batch sizes."""
    return draw_portraits(tables, batch_size_portraits(tables), TEST_ACCURACY)


def plot_single_index(tables: ExperimentTables) -> Drawn:
    """Figures 13b and 13d: the portrait of a network that learns a single-index function."""
    return draw_portraits(tables, single_index_portraits(tables), RELATIVE_LOSS)


def plot_widths(tables: ExperimentTables) -> Drawn:
    """Figures 13a and 13c: losses over time of several widths at the same learning rate."""
    runs = tables.runs
    absolute = runs["edge_learning_rate"].isna() & (runs["status"] != "unreachable")
    chosen = choose(runs, absolute.to_numpy(dtype=bool), "has an absolute learning rate")
    chosen = chosen.sort_values("width")
    figure, (axis,) = panels(1, height=3.0)
    pieces = []
    colors = ordered_colors(chosen["width"].to_numpy(dtype=float))
    for run, width, color in zip(chosen["run_id"], chosen["width"], colors, strict=True):
        history = tables.history[tables.history["run_id"] == run].sort_values("step")
        axis.plot(history["step"], history["train_loss"], color=color, label=f"{width:.0f}")
        pieces.append(history[["step", "train_loss"]].assign(width=width))
    axis.set(xscale="symlog", yscale="log", xlabel="step t", ylabel="training loss")
    axis.legend(title="width N")
    return figure, pd.concat(pieces, ignore_index=True)


def plot_scalings(tables: ExperimentTables) -> Drawn:
    """Figure 39: losses over time under three rules for the learning rate."""
    return draw_scalings(tables, (None, None))


_TEMPERATURES = {"attention_temperature": "T = {:g}"}
_CONVNET = {"model": "ConvNet"}
_TRANSFORMER = {"model": "vision transformer"}

PLOTS: dict[str, Plot] = {
    "richness/fig1d": plot_model("rich_cnn_L4", TEST_ACCURACY, _CONVNET),
    "richness/fig10": plot_scheduled("sgd"),
    "richness/fig12": plot_scheduled("adam"),
    "richness/exponents_schedules": plot_scheduled_exponents,
    "richness/fig13a": plot_widths,
    "richness/fig13b": plot_single_index,
    "richness/fig13c": plot_widths,
    "richness/fig13d": plot_single_index,
    "richness/fig14a": plot_model("rich_cnn_L4", TRAIN_ACCURACY, _CONVNET),
    "richness/fig14b": plot_model("rich_vit", TRAIN_ACCURACY, _TRANSFORMER),
    "richness/fig14c": plot_model("rich_vit", TRAIN_ACCURACY, {"normalisation": "{}"}),
    "richness/fig15": plot_model("rich_vit", TRAIN_ACCURACY, _TEMPERATURES),
    "richness/fig25": plot_depths("mup"),
    "richness/fig26": plot_depths("depth_mup"),
    "richness/fig28": plot_batch_sizes,
    "richness/fig39": plot_scalings,
    "richness/fig39_cnn": plot_scalings,
    "richness/full_portrait": plot_model("rich_mlp_L3", TEST_ACCURACY, {"depth": "L={:.0f}"}),
}
