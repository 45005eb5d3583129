"""Claims of the richness paper about its toy models, measured from the theory experiments.

Exponents are slopes of log rate over log richness, fitted in windows in which the theory's limits
hold well enough: gamma up to 1e-2 is lazy; how large a rich gamma must be is said by each window.

Reference: richness paper, sections 4.1 and 4.2, appendices D and F.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import choose, diverged, numbers
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.exponents import PowerLaw, fit_power_law
from sgdphases.portraits import PortraitRules, classify_cells
from sgdphases.tables import ExperimentTables
from sgdphases.theory.toy_laws import early_weight, escape_time
from sgdphases.theory.toy_losses import TOY_LOSSES

MSE, CROSS_ENTROPY = "mean_squared_error", "cross_entropy"
# Richness in which the exponents are fitted, ends included.
LAZY = (1e-5, 1e-2)
# Convergence within 1000 steps ends near 1e5 at depth 5.
RICH = (1e2, 10**4.5)
# Escape from the plateau takes 10,000 steps and much richness to show its law.
RICH_TRAINING = (1e3, 1e6)
RICH_TRAINING_STEPS = 10000
RICH_SIGN = (1e4, 1e8)
# The end of training is known in closed form; above this it takes more than the portraits' steps.
RICH_MINIMA = (1e3, 1e5)
STEPS = 1000
TRIANGLE_STEPS = 30000
_MINIMA_CONVERGED = 1e-6
# Largest distance of the output from its start at which the plateau's law is compared, as a weight.
_EARLY_WEIGHT = 2.0
_HALF = 0.5
_RICH_CELLS = 10.0
_CATAPULTS = (1e-4, 1e-2)
_TRIANGLE = (1e-3, 1e-1)
# Listed values are rounded, so comparisons with them leave room for the last digits.
_ROUNDING = 1e-6

Window = tuple[float, float]


def within(values: NDArray[np.float64], window: Window) -> NDArray[np.bool_]:
    """Which values lie in a window, its rounded ends included."""
    low, high = window
    return np.asarray((values >= low * (1 - _ROUNDING)) & (values <= high * (1 + _ROUNDING)))


def having(runs: pd.DataFrame, **values: object) -> NDArray[np.bool_]:
    """Which runs have these values in the columns so named; null is no value."""
    masks = [
        (runs[name] == value).to_numpy(dtype=bool, na_value=False) for name, value in values.items()
    ]
    return np.asarray(np.logical_and.reduce(masks))


@dataclass(frozen=True)
class ToyEdges:
    """One kind of edge in one toy model, over the richness.

    Attributes:
        richness: (points,) richness, increasing.
        rates: (points,) learning rates, in the middle of the last bracket of each search.
        decades: (points,) width of that bracket.
    """

    richness: NDArray[np.float64]
    rates: NDArray[np.float64]
    decades: NDArray[np.float64]

    def fit(self) -> PowerLaw:
        """Exponent and prefactor of the edge in the richness."""
        return fit_power_law(self.richness, self.rates, self.decades)


def toy_edges(
    runs: pd.DataFrame,
    edge: str,
    loss: str,
    window: Window,
    depth: int | None = None,
    optimizer: str = "sgd",
    num_steps: int = STEPS,
) -> ToyEdges:
    """The edges that the searches found.

    Args:
        runs: Runs of the experiment of edges.
        edge: Name of the edge.
        loss: Name of the loss.
        window: Richness, ends included.
        depth: Depth of the one-parameter model, or None for the two-parameter model.
        optimizer: Optimiser of the one-parameter model.
        num_steps: Steps of each run tried.

    Returns:
        Those in the window.

    Raises:
        ValueError: There is none, or one lies beyond the range that was searched.
    """
    model = "toy_two_parameter_edge" if depth is None else "toy_one_parameter_edge"
    chosen = having(runs, model=model, edge=edge, loss=loss, num_steps=num_steps)
    if depth is not None:
        chosen &= having(runs, depth=depth, optimizer=optimizer)
    chosen &= within(numbers(runs, "richness"), window)
    what = f"is a {edge} edge of {model}, {loss}, {num_steps} steps, depth {depth}"
    found = choose(runs, chosen, what).sort_values("richness")
    before = numbers(found, "learning_rate")
    beyond = found["rate_beyond"].to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(beyond).any():
        missing = numbers(found, "richness")[np.isnan(beyond)][0]
        raise ValueError(f"no rate of the range searched {what}, at richness {missing:.3g}")
    return ToyEdges(numbers(found, "richness"), np.sqrt(before * beyond), np.log10(beyond / before))


@dataclass(frozen=True)
class Exponent:
    """A fitted exponent beside the one of the theory."""

    name: str
    law: PowerLaw
    expected: float

    @property
    def deviation(self) -> float:
        """Fitted less expected."""
        return self.law.exponent - self.expected


def farthest(exponents: Iterable[Exponent], relative_to: float = 0.0) -> Measurement:
    """The exponent farthest from the theory: its deviation, plus the value claimed for all.

    Raises:
        ValueError: There is none.
    """
    exponents = list(exponents)
    if not exponents:
        raise ValueError("no exponent could be fitted")
    worst = max(exponents, key=lambda found: abs(found.deviation))
    shift = relative_to - worst.expected
    listed = ", ".join(
        f"{found.name} {found.law.exponent:.4g} (± {(found.law.high - found.law.low) / 2:.2g}, "
        f"prefactor {found.law.prefactor:.4g})"
        for found in exponents
    )
    return Measurement(
        worst.law.exponent + shift, worst.law.low + shift, worst.law.high + shift, listed
    )


def _depths(runs: pd.DataFrame, optimizer: str = "sgd") -> list[int]:
    chosen = choose(runs, having(runs, optimizer=optimizer), f"has {optimizer}")
    return sorted({int(depth) for depth in numbers(chosen, "depth")})


def _edge_exponents(
    runs: pd.DataFrame,
    edges: Iterable[str],
    losses: Iterable[str],
    window: Window,
    expected: Callable[[int], float],
    optimizer: str = "sgd",
    num_steps: int = STEPS,
    least_depth: int = 2,
) -> list[Exponent]:
    """The exponents of some edges of the one-parameter model at each depth."""
    depths = [depth for depth in _depths(runs, optimizer) if depth >= least_depth]
    edges, losses = list(edges), list(losses)
    return [
        Exponent(
            " ".join(
                [
                    f"L={depth}",
                    *([edge] if len(edges) > 1 else []),
                    *([loss.replace("_", " ")] if len(losses) > 1 else []),
                ]
            ),
            toy_edges(runs, edge, loss, window, depth, optimizer, num_steps).fit(),
            expected(depth),
        )
        for edge in edges
        for loss in losses
        for depth in depths
    ]


def two_over_depth(depth: int) -> float:
    """The rich exponent 2/L of the largest stable rate."""
    return 2.0 / depth


def one_over_depth(depth: int) -> float:
    """The rich exponent 1/L of weights, and of rates under SignSGD."""
    return 1.0 / depth


def constant(value: float) -> Callable[[int], float]:
    """An exponent that does not depend on the depth."""
    return lambda _: value


# Ends of training.


def best_runs(tables: ExperimentTables, depth: int) -> pd.DataFrame:
    """The run with the smallest final loss at each richness, of those that have converged.

    Args:
        tables: The experiment of the one-parameter model.
        depth: Depth L; squared errors are taken.

    Returns:
        Rows in the order of the richness.

    Raises:
        ValueError: No run has converged.
    """
    runs = tables.runs
    losses = numbers(runs, "final_train_loss") / numbers(runs, "initial_train_loss")
    chosen = having(runs, loss=MSE, depth=depth) & ~diverged(runs) & (losses < _MINIMA_CONVERGED)
    found = choose(runs, chosen, f"of depth {depth} converged")
    best = found.sort_values(["richness", "final_train_loss", "learning_rate"])
    return best.drop_duplicates("richness")


def _minima_exponents(
    tables: ExperimentTables,
    column: str,
    windows: Mapping[str, tuple[Window, Callable[[int], float]]],
) -> list[Exponent]:
    found = []
    for depth in sorted({int(depth) for depth in numbers(tables.runs, "depth")}):
        best = best_runs(tables, depth)
        for name, (window, expected) in windows.items():
            part = best[within(numbers(best, "richness"), window)]
            values = np.abs(numbers(part, column) - (1.0 if column == "final_weight" else 0.0))
            law = fit_power_law(numbers(part, "richness"), values)
            found.append(Exponent(f"L={depth} {name}", law, expected(depth)))
    return found


def _curvature_exponents(tables: ExperimentTables) -> Measurement:
    """RICH-01: exponents of the final second derivative, the deviation farthest from 0."""
    windows = {
        "lazy": (LAZY, constant(-2.0)),
        "rich": (RICH_MINIMA, lambda depth: -two_over_depth(depth)),
    }
    return farthest(_minima_exponents(tables, "final_sharpness", windows))


def _movement_exponents(tables: ExperimentTables) -> Measurement:
    """RICH-21: exponent of the weight's movement at large richness, deviation from 1/L."""
    windows = {"rich": (RICH_MINIMA, one_over_depth)}
    return farthest(_minima_exponents(tables, "final_weight", windows))


def _smallest_cross_entropy(tables: ExperimentTables) -> Measurement:
    """RICH-11: output of the run with the smallest cross-entropy of all."""
    runs = tables.runs
    finite = having(runs, loss=CROSS_ENTROPY) & ~diverged(runs)
    chosen = choose(runs, finite, "with cross-entropy stayed finite")
    losses = numbers(chosen, "final_train_loss")
    best = int(losses.argmin())
    return Measurement(
        float(numbers(chosen, "final_output")[best]),
        detail=f"smallest loss {losses[best]:.6f} of {len(chosen)} runs",
    )


# Edges of the one-parameter model.


def _exponents_of(
    edges: Iterable[str],
    losses: Iterable[str],
    window: Window,
    expected: Callable[[int], float],
    relative_to: float = 0.0,
    **options: object,
) -> Callable[[ExperimentTables], Measurement]:
    """Measure the exponents of edges, the one farthest from the theory."""
    edges, losses = list(edges), list(losses)

    def measure(tables: ExperimentTables) -> Measurement:
        found = _edge_exponents(tables.runs, edges, losses, window, expected, **options)  # type: ignore[arg-type]
        return farthest(found, relative_to)

    return measure


def _smallest_lazy_rate(tables: ExperimentTables) -> Measurement:
    """RICH-07: exponents of the smallest rate that trains, in richness and in steps."""
    runs = tables.runs
    searched = choose(runs, having(runs, edge="training"), "is an edge of training")
    steps = sorted({int(number) for number in numbers(searched, "num_steps")})
    if len(steps) < 3:
        raise ValueError(f"the smallest rate was searched for {len(steps)} numbers of steps only")
    exponents = _edge_exponents(runs, ["training"], [MSE, CROSS_ENTROPY], LAZY, constant(2.0))
    for loss in (MSE, CROSS_ENTROPY):
        for depth in _depths(runs):
            found = [
                toy_edges(runs, "training", loss, LAZY, depth, num_steps=number) for number in steps
            ]
            law = fit_power_law(
                np.repeat(steps, found[0].rates.size),
                np.concatenate([edges.rates / edges.richness**2 for edges in found]),
                np.concatenate([edges.decades for edges in found]),
            )
            name = f"L={depth} {loss.replace('_', ' ')} in T"
            exponents.append(Exponent(name, law, -1.0))
    return farthest(exponents)


def _smallest_rich_rate(tables: ExperimentTables) -> Measurement:
    """RICH-08: exponent in richness of the smallest rate that trains, at depths of at least 3."""
    found = _edge_exponents(
        tables.runs,
        ["training"],
        [MSE],
        RICH_TRAINING,
        constant(1.0),
        num_steps=RICH_TRAINING_STEPS,
        least_depth=3,
    )
    measured = farthest(found, 1.0)
    shallow = toy_edges(
        tables.runs, "training", MSE, RICH_TRAINING, 2, num_steps=RICH_TRAINING_STEPS
    )
    with_log = fit_power_law(shallow.richness, shallow.rates / np.log(shallow.richness))
    return Measurement(
        measured.value,
        measured.ci_low,
        measured.ci_high,
        f"{measured.detail}; L=2 {shallow.fit().exponent:.4g}, divided by log gamma "
        f"{with_log.exponent:.4g}",
    )


# The plateau.


def escape_times(tables: ExperimentTables) -> pd.DataFrame:
    """When rich runs pass an output of one half, in units of gamma / eta.

    Args:
        tables: The experiment of the escape.

    Returns:
        One row per run that passes: `depth`, `richness`, `before` and `after`, the measurements
        on both sides, `time` between them, and `expected`.

    Raises:
        ValueError: No run passes.
    """
    rows = []
    names = ("depth", "richness")
    depths, all_richness = (numbers(tables.runs, name) for name in names)
    for run_id, depth, richness in zip(
        tables.runs["run_id"], depths.astype(int), all_richness, strict=True
    ):
        history = tables.history[tables.history["run_id"] == run_id].sort_values("step")
        output = numbers(history, "output")
        passed = np.flatnonzero(output >= _HALF)
        if not passed.size or passed[0] == 0:
            continue
        pair = slice(passed[0] - 1, passed[0] + 1)
        times = numbers(history, "physical_time")[pair] / richness
        rows.append(
            {
                "depth": int(depth),
                "richness": float(richness),
                "before": float(times[0]),
                "after": float(times[1]),
                "time": float(np.interp(_HALF, output[pair], times)),
                "expected": float(escape_time(richness, int(depth))),
            }
        )
    if not rows:
        raise ValueError("no run's output passes one half")
    return pd.DataFrame(rows).sort_values(["depth", "richness"], ignore_index=True)


def _escape_ratio(tables: ExperimentTables) -> Measurement:
    """RICH-09: time of the drop over 1/(L(L-2)) at the largest richness, the farthest from 1."""
    times = escape_times(tables)
    largest = times.sort_values("richness").drop_duplicates("depth", keep="last")
    deep = choose(largest, numbers(largest, "depth") >= 3, "is of depth 3 or more")
    ratio, before, after = (
        numbers(deep, name) / numbers(deep, "expected") for name in ("time", "before", "after")
    )
    worst = int(np.abs(ratio - 1).argmax())
    listed = "; ".join(
        f"L={row.depth} at gamma {row.richness:.0e}: {row.time:.4g} for {row.expected:.4g}"
        for row in times.itertuples()
    )
    return Measurement(
        float(ratio[worst]),
        float(before[worst]),
        float(after[worst]),
        f"at the largest richness, where it is in its limit; {listed}",
    )


def _early_deviation(tables: ExperimentTables) -> Measurement:
    """RICH-10: largest relative deviation of the weight from its closed form, on the plateau."""
    largest = tables.runs.groupby("depth")["richness"].transform("max")
    runs = tables.runs[(tables.runs["richness"] == largest).to_numpy()]
    history = tables.history.merge(runs[["run_id", "richness", "depth"]], on="run_id")
    early = history[(history["weight"] <= _EARLY_WEIGHT).to_numpy()]
    early = choose(early, (early["step"] > 0).to_numpy(), "is on the plateau")
    deviations = {}
    for depth, part in early.groupby("depth"):
        times = numbers(part, "physical_time") / numbers(part, "richness")
        weights = numbers(part, "weight")
        deviations[int(str(depth))] = np.abs(weights / early_weight(times, int(str(depth))) - 1)
    listed = ", ".join(f"L={depth} {values.max():.1e}" for depth, values in deviations.items())
    return Measurement(
        float(max(values.max() for values in deviations.values())),
        detail=f"while the weight is at most {_EARLY_WEIGHT:g}, {len(early)} measurements; "
        f"{listed}",
    )


# The two-parameter model.


def _in_units_of_square(edge: str, target: float) -> Callable[[ExperimentTables], Measurement]:
    """RICH-12, RICH-13: edge over gamma^2 at gamma from 1e-4 to 1e-2, farthest from `target`."""

    def measure(tables: ExperimentTables) -> Measurement:
        found = toy_edges(tables.runs, edge, MSE, _CATAPULTS)
        ratios = found.rates / found.richness**2
        worst = float(ratios[np.argmax(np.abs(ratios - target))])
        listed = ", ".join(f"{ratio:.4f}" for ratio in ratios)
        return Measurement(
            worst,
            float(ratios.min()),
            float(ratios.max()),
            f"in units of gamma^2, farthest from {target:g} and range; {listed} at gamma from "
            f"{found.richness[0]:.0e} to {found.richness[-1]:.0e}",
        )

    return measure


def peak_exponent(tables: ExperimentTables, loss: str, window: Window) -> PowerLaw:
    """Exponent in richness of the largest loss of catapults.

    Args:
        tables: The experiment of catapults over time.
        loss: Name of the loss.
        window: Richness, ends included.

    Raises:
        ValueError: Fewer than three runs.
    """
    runs = choose(tables.runs, having(tables.runs, loss=loss), f"has {loss}")
    runs = choose(runs, within(numbers(runs, "richness"), window) & ~diverged(runs), "catapults")
    if len(runs) < 3:
        raise ValueError(f"{len(runs)} catapults with {loss}; needed are three at least")
    return fit_power_law(numbers(runs, "richness"), numbers(runs, "peak_train_loss"))


def _peak_exponents(tables: ExperimentTables) -> Measurement:
    """RICH-14: exponent of the peak loss at 1.5 gamma^2, gamma from 1e-4 to 1e-2."""
    law, other = (peak_exponent(tables, loss, _CATAPULTS) for loss in (MSE, CROSS_ENTROPY))
    return Measurement(
        law.exponent,
        law.low,
        law.high,
        f"squared errors, gamma from 1e-4 to 1e-2; cross-entropy at 0.5 gamma: "
        f"{other.exponent:.3f} (± {(other.high - other.low) / 2:.2g})",
    )


def _triangle(tables: ExperimentTables) -> Measurement:
    """RICH-15: how far the triangle's edges are from gamma^2 and gamma, as a factor."""
    lower, upper = (
        toy_edges(tables.runs, edge, CROSS_ENTROPY, _TRIANGLE, num_steps=TRIANGLE_STEPS)
        for edge in ("catapult", "divergence")
    )
    low, high = lower.rates / lower.richness**2, upper.rates / upper.richness
    factors = np.concatenate([low, high])
    factors = np.maximum(factors, 1 / factors)
    return Measurement(
        float(factors.max()),
        float(factors.min()),
        float(factors.max()),
        f"first rise of the loss at {low.min():.3g} to {low.max():.3g} gamma^2 (exponent "
        f"{lower.fit().exponent:.3f}), divergence at {high.min():.3g} to {high.max():.3g} gamma "
        f"(exponent {upper.fit().exponent:.3f}), gamma from 1e-3 to 0.1; instability of the "
        f"minimum itself at {2 / (2 * TOY_LOSSES[CROSS_ENTROPY].minimal_curvature):.3g} gamma^2",
    )


def _rich_peaks(tables: ExperimentTables) -> Measurement:
    """RICH-16: largest peak over initial loss of runs that converge at gamma of 10 and more."""
    runs = tables.runs
    rich = numbers(runs, "richness") >= _RICH_CELLS * (1 - _ROUNDING)
    rules = PortraitRules.of(tables.spec)
    converged = rules.has_converged(runs["initial_train_loss"], runs["final_train_loss"])
    chosen = choose(runs, rich & converged & ~diverged(runs), "with gamma of 10 and more converged")
    ratio = numbers(chosen, "peak_train_loss") / numbers(chosen, "initial_train_loss")
    return Measurement(float(ratio.max()), detail=f"{len(chosen)} runs that converged")


def _rich_limit(tables: ExperimentTables) -> Measurement:
    """RICH-16b: largest rate that converges over gamma, the farthest from 1."""
    found = toy_edges(tables.runs, "convergence", MSE, (1e2, 1e4), num_steps=40000)
    ratios = found.rates / found.richness
    worst = float(ratios[np.argmax(np.abs(ratios - 1))])
    listed = ", ".join(f"{ratio:.4f}" for ratio in ratios)
    return Measurement(worst, float(ratios.min()), float(ratios.max()), f"over gamma: {listed}")


def _step_deviation(tables: ExperimentTables) -> Measurement:
    """RICH-17: largest relative deviation of the recursion from descent in the weights."""
    deviation = numbers(tables.runs, "final_step_deviation")
    fell = bool((numbers(tables.runs, "final_kernel_fell") == 1).all())
    return Measurement(
        float(np.max(deviation)),
        detail=f"within single steps of {len(tables.runs)} runs; the kernel fell in every step "
        f"with eta K of at most 4 beyond the target: {'yes' if fell else 'no'}",
    )


# SignSGD.


def _finite_fraction(tables: ExperimentTables) -> Measurement:
    """RICH-20: fraction of runs under SignSGD that stay finite."""
    finite = ~diverged(tables.runs)
    return Measurement(float(finite.mean()), detail=f"{int(finite.sum())} of {finite.size} runs")


_BOTH = (MSE, CROSS_ENTROPY)
_EDGES = "toy_edges"

MEASURES: dict[str, ClaimMeasure] = {
    "RICH-01": ClaimMeasure("toy_one_parameter", -0.01, 0.01, _curvature_exponents),
    "RICH-02": ClaimMeasure(
        _EDGES, 1.95, 2.05, _exponents_of(["convergence"], [MSE], LAZY, constant(2.0), 2.0)
    ),
    "RICH-03": ClaimMeasure(
        _EDGES, -0.03, 0.03, _exponents_of(["convergence"], [MSE], RICH, two_over_depth)
    ),
    "RICH-04": ClaimMeasure(
        _EDGES,
        1.95,
        2.05,
        _exponents_of(["convergence"], [CROSS_ENTROPY], LAZY, constant(2.0), 2.0),
    ),
    "RICH-05": ClaimMeasure(
        _EDGES,
        0.98,
        1.02,
        _exponents_of(["divergence"], [CROSS_ENTROPY], LAZY, constant(1.0), 1.0),
    ),
    "RICH-06": ClaimMeasure(
        _EDGES, -0.03, 0.03, _exponents_of(["convergence"], [CROSS_ENTROPY], RICH, two_over_depth)
    ),
    "RICH-07": ClaimMeasure(_EDGES, -0.1, 0.1, _smallest_lazy_rate),
    "RICH-08": ClaimMeasure(_EDGES, 0.9, 1.1, _smallest_rich_rate),
    "RICH-09": ClaimMeasure("toy_escape", 0.98, 1.02, _escape_ratio),
    "RICH-10": ClaimMeasure("toy_escape", None, 1e-4, _early_deviation),
    "RICH-11": ClaimMeasure("toy_one_parameter", 1 - 1e-6, 1 + 1e-6, _smallest_cross_entropy),
    "RICH-12": ClaimMeasure(_EDGES, 0.99, 1.01, _in_units_of_square("catapult", 1.0)),
    "RICH-13": ClaimMeasure(_EDGES, 1.98, 2.02, _in_units_of_square("divergence", 2.0)),
    "RICH-14": ClaimMeasure("toy_catapults", -2.1, -1.9, _peak_exponents),
    "RICH-15": ClaimMeasure(_EDGES, None, 5.0, _triangle),
    "RICH-16": ClaimMeasure("toy_two_parameter", None, 1.01, _rich_peaks),
    "RICH-16b": ClaimMeasure(_EDGES, 0.98, 1.02, _rich_limit),
    "RICH-17": ClaimMeasure("toy_catapults", None, 1e-10, _step_deviation),
    "RICH-18": ClaimMeasure(
        _EDGES,
        0.95,
        1.05,
        _exponents_of(
            ["training", "convergence"], _BOTH, LAZY, constant(1.0), 1.0, optimizer="sign_sgd"
        ),
    ),
    "RICH-19": ClaimMeasure(
        _EDGES,
        -0.1,
        0.1,
        _exponents_of(
            ["training", "convergence"], _BOTH, RICH_SIGN, one_over_depth, optimizer="sign_sgd"
        ),
    ),
    "RICH-20": ClaimMeasure("toy_sign_sgd", 1.0, 1.0, _finite_fraction),
    "RICH-21": ClaimMeasure("toy_one_parameter", -0.05, 0.05, _movement_exponents),
}


def cells(tables: ExperimentTables) -> NDArray[np.object_]:
    """The region of the portrait that each run of a toy experiment lies in."""
    runs = tables.runs
    smallest = np.array([TOY_LOSSES[loss].minimum for loss in runs["loss"]])
    return classify_cells(
        PortraitRules.of(tables.spec),
        runs["status"].to_numpy(dtype=object),
        numbers(runs, "initial_train_loss"),
        numbers(runs, "peak_train_loss"),
        runs["final_train_loss"].to_numpy(dtype=np.float64, na_value=np.nan),
        smallest,
    )
