"""Claims of the richness paper about networks while they train and at the end of training.

Learning rates of µP are those of the paper: a step of SGD is the width N times as large. Curvature
is compared with them as N times the Hessian's eigenvalues, so that the edge of stability is 2/η.

Reference: richness paper, sections 3.2 to 3.4, appendices A.2, B, I, K, L, M, Q, R and S.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.claims.catapult_theory import choose, diverged, numbers
from sgdphases.claims.richness_theory import (
    MSE,
    Exponent,
    Window,
    farthest,
    having,
    within,
)
from sgdphases.claims.types import ClaimMeasure, Measurement
from sgdphases.exponents import PowerLaw, fit_power_law
from sgdphases.hyperparameters import MUP_PARAMETRISATIONS
from sgdphases.movement import NORMS
from sgdphases.portraits import weight_matrices
from sgdphases.tables import ExperimentTables

Array = NDArray[np.float64]

DYNAMICS, CONSISTENCY, LAZY_RUNS = "dynamics", "rich_consistency", "lazy_consistency"
CATAPULTS, WIDTHS, BATCH_SIZES = "network_catapults", "widths", "batch_sizes"
# Richness in which exponents are fitted and curves compared, ends included.
LAZY: Window = (0.0, 3.2e-3)
RICH: Window = (1e2, np.inf)
# Where drops are said to coincide, and where they have come close to their limit, towards which
# they go as 1 + O(gamma^(2/L - 1)).
_COLLAPSED: Window = (1e2, 1e4)
_VERY_RICH: Window = (1e3, np.inf)
ACTIVE: Window = (1.0, np.inf)
# The loss has begun to drop below the first of these multiples of its initial value, and has
# dropped below the second.
FIRST_DROP, HALF = 0.95, 0.5
# A network has trained for long when it has for so many times the steps to half of its loss.
_LONG = 5.0
# Lazy curves coincide that differ by no more than this.
_SAME = 0.01
_MOVEMENT = "weight_movement_"
# Others diverged, or have no edge that their learning rate could be relative to.
_ENDED = ("finished", "stopped")


@dataclass(frozen=True)
class Group:
    """The runs of one network with one loss.

    Attributes:
        model: Name of the model.
        loss: Name of the loss.
        depth: Number of weight matrices; None where the model does not tell.
        runs: Their rows, by increasing richness.
    """

    model: str
    loss: str
    depth: int | None
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """Model and loss, for messages and panels."""
        return f"{self.model}, {'MSE' if self.loss == MSE else 'CE'}"


def groups_of(runs: pd.DataFrame) -> list[Group]:
    """The runs of an experiment that came to their ends, by model and loss.

    Raises:
        ValueError: There is none.
    """
    kept = runs[runs["status"].isin(_ENDED).to_numpy(dtype=bool)]
    if kept.empty:
        raise ValueError("every run diverged")
    found = []
    for (model, loss), part in kept.groupby(["model", "loss"], sort=False):
        first = {str(name): value for name, value in part.iloc[0].items() if pd.notna(value)}
        ordered = part.sort_values(["richness", "seed"])
        found.append(Group(str(model), str(loss), weight_matrices(first), ordered))
    return found


def squared_error_groups(tables: ExperimentTables) -> list[Group]:
    """The groups with squared errors whose depth is known.

    Raises:
        ValueError: There is none.
    """
    found = [g for g in groups_of(tables.runs) if g.loss == MSE and g.depth is not None]
    if not found:
        raise ValueError("no network of known depth with squared errors")
    return found


def curve(tables: ExperimentTables, run_id: str) -> pd.DataFrame:
    """What was measured of a run, by increasing step."""
    history = tables.history
    return history[(history["run_id"] == run_id).to_numpy(dtype=bool)].sort_values("step")


def rows_with(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Those rows of a history in which something was measured.

    Raises:
        ValueError: It was measured in none.
    """
    if name not in table.columns or table[name].isna().all():
        raise ValueError(f"{name} was not measured")
    return table.dropna(subset=[name])


def last_rows(tables: ExperimentTables, runs: pd.DataFrame) -> pd.DataFrame:
    """What was measured at the end of some runs, in their order, beside their richness.

    Raises:
        ValueError: There is no run.
    """
    if runs.empty:
        raise ValueError("no run at this richness")
    history = tables.history.sort_values("step").groupby("run_id").tail(1).set_index("run_id")
    rows = history.loc[runs["run_id"]].reset_index()
    return rows.assign(richness=runs["richness"].to_numpy(dtype=float))


def rate_factor(run: pd.Series) -> float:
    """How many times the learning rate the step of SGD is: the width in µP, else 1."""
    return float(run["width"]) if run["parametrisation"] in MUP_PARAMETRISATIONS else 1.0


def crossing(steps: Array, values: Array, level: float, rises: bool = False) -> float:
    """The step at which values first pass a level, between measurements by interpolation.

    Args:
        steps: (points,) increasing steps.
        values: (points,) values.
        level: The level.
        rises: Whether they pass it upwards.

    Returns:
        The step; NaN where they never do.
    """
    passed = values > level if rises else values < level
    if not passed.any():
        return float("nan")
    after = int(passed.argmax())
    if after == 0:
        return float(steps[0])
    before = after - 1
    share = (level - values[before]) / (values[after] - values[before])
    return float(steps[before] + share * (steps[after] - steps[before]))


def drop_step(tables: ExperimentTables, run: pd.Series, level: float) -> float:
    """The step at which a run's training loss has fallen to a multiple of its initial value."""
    recorded = curve(tables, run["run_id"])
    losses = numbers(recorded, "train_loss")
    return crossing(numbers(recorded, "step"), losses / losses[0], level)


def chosen_runs(group: Group, window: Window) -> pd.DataFrame:
    """The runs of a group with a richness within a window."""
    return group.runs[within(numbers(group.runs, "richness"), window)]


def rows_of(runs: pd.DataFrame) -> Iterator[pd.Series]:
    """The rows of a table of runs."""
    for _, run in runs.iterrows():
        yield run


def lost_runs(runs: pd.DataFrame, window: Window) -> str:
    """How many runs at a richness within a window diverged, in words; empty where none did."""
    inside = runs[within(numbers(runs, "richness"), window)]
    lost = int(diverged(inside).sum())
    return f"{lost} of {len(inside)} runs diverged" if lost else ""


def law_of(x: Array, y: Array, what: str) -> PowerLaw:
    """A fitted power law; the message of a ValueError says of what."""
    try:
        return fit_power_law(x, y)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


# Figures 3 and 45: the end of training.


def spectrum_names(table: pd.DataFrame) -> list[str]:
    """The columns of the Hessian's largest eigenvalues, the largest first.

    Raises:
        ValueError: They were not measured.
    """
    others = [name for name in table.columns if name.startswith("hessian_eigenvalue_")]
    if "sharpness" not in table.columns or not others:
        raise ValueError("the largest eigenvalues of the Hessian were not measured")
    return ["sharpness", *sorted(others, key=lambda name: int(name.rsplit("_", 1)[1]))]


def sharpness_laws(tables: ExperimentTables, group: Group) -> list[Exponent]:
    """The exponents of the largest Hessian eigenvalue at the end of training in the richness."""
    assert group.depth is not None
    laws = []
    for regime, window, expected in (("lazy", LAZY, -2.0), ("rich", RICH, -2.0 / group.depth)):
        ends = last_rows(tables, chosen_runs(group, window))
        law = law_of(numbers(ends, "richness"), numbers(ends, "sharpness"), f"{regime} sharpness")
        laws.append(Exponent(f"{group.model} {regime}", law, expected))
    return laws


def movement_laws(tables: ExperimentTables, group: Group) -> list[Exponent]:
    """The exponents of how far each layer has moved at the end, by norm, at large richness.

    Raises:
        ValueError: The movement was not measured, or at less than two values of the richness.
    """
    assert group.depth is not None
    ends = last_rows(tables, chosen_runs(group, RICH))
    names = [
        name for name in ends.columns if name.startswith(_MOVEMENT) and ends[name].notna().any()
    ]
    if not names:
        raise ValueError("the movement of the weights was not measured")
    richness = numbers(ends, "richness")
    return [
        Exponent(
            f"{group.model} {name.removeprefix(_MOVEMENT)}",
            law_of(richness, numbers(ends, name), name),
            1.0 / group.depth,
        )
        for name in names
    ]


def layers_of(table: pd.DataFrame) -> list[str]:
    """The layers whose movement was measured, in the order of the network."""
    prefix = f"{_MOVEMENT}{NORMS[0]}_"
    names = [
        name.removeprefix(prefix)
        for name in table.columns
        if name.startswith(prefix) and table[name].notna().any()
    ]
    return sorted(
        names,
        key=lambda name: (
            ["input", "hidden", "readout"].index(name.split("_")[0])
            if name.split("_")[0] in ("input", "hidden", "readout")
            else 3,
            name,
        ),
    )


def _sharpness(tables: ExperimentTables) -> Measurement:
    """RICH-23: of both regimes and all networks, the exponent farthest from the theory's."""
    return farthest(
        law for group in squared_error_groups(tables) for law in sharpness_laws(tables, group)
    )


def _movement(tables: ExperimentTables) -> Measurement:
    """RICH-22: of all layers and norms, the exponent farthest from 1/L."""
    laws = [law for group in squared_error_groups(tables) for law in movement_laws(tables, group)]
    worst = farthest(laws)
    exponents = [law.law.exponent for law in laws]
    return Measurement(
        worst.value,
        worst.ci_low,
        worst.ci_high,
        f"{len(laws)} exponents from {min(exponents):.3f} to {max(exponents):.3f}; expected "
        + ", ".join(f"{expected:.3f}" for expected in sorted({law.expected for law in laws})),
    )


def eigenvalue_ratios(tables: ExperimentTables, runs: pd.DataFrame) -> Array:
    """(runs, eigenvalues - 1) of each Hessian eigenvalue to the next at the end of runs."""
    ends = last_rows(tables, runs)
    spectrum = np.stack([numbers(ends, name) for name in spectrum_names(ends)], axis=1)
    return spectrum[:, :-1] / spectrum[:, 1:]


def _outliers(tables: ExperimentTables) -> Measurement:
    """RICH-24: how many eigenvalues lie above the widest gap of a lazy network's spectrum."""
    counts = {
        group.model: eigenvalue_ratios(tables, chosen_runs(group, LAZY)).argmax(axis=1) + 1
        for group in squared_error_groups(tables)
    }
    everything = np.concatenate(list(counts.values()))
    listed = "; ".join(f"{model}: {', '.join(map(str, found))}" for model, found in counts.items())
    return Measurement(
        float(everything[0]),
        float(everything.min()),
        float(everything.max()),
        f"eigenvalues above the widest gap, by run: {listed}",
        unmet="" if np.ptp(everything) == 0 else "lazy networks differ",
    )


def _no_gap(tables: ExperimentTables) -> Measurement:
    """RICH-25: the logarithm of the gap below the lazy outliers, of rich over lazy networks."""
    shares, listed = [], []
    for group in squared_error_groups(tables):
        lazy = eigenvalue_ratios(tables, chosen_runs(group, LAZY))
        rich = eigenvalue_ratios(tables, chosen_runs(group, RICH))
        place = int(np.median(lazy.argmax(axis=1)))
        lazy_gap, rich_gap = np.median(lazy[:, place]), np.median(rich[:, place])
        shares.append(float(np.log(rich_gap) / np.log(lazy_gap)))
        listed.append(
            f"{group.model}: ratio {place + 1} to {place + 2} {lazy_gap:.2f} lazy, "
            f"{rich_gap:.2f} rich"
        )
    return Measurement(max(shares), detail="; ".join(listed))


# Figures 4b, 40 to 42: the drop of the loss.


def sharpness_at_drop(tables: ExperimentTables, run: pd.Series) -> float:
    """The sharpness over 2/η when the loss has fallen to half, between measurements interpolated.

    Args:
        tables: The experiment.
        run: A row of its runs.

    Returns:
        The ratio; NaN where the loss does not fall so far.

    Raises:
        ValueError: The sharpness was not measured.
    """
    measured = rows_with(curve(tables, run["run_id"]), "sharpness")
    steps, values = numbers(measured, "step"), numbers(measured, "sharpness")
    sharpness = np.interp(drop_step(tables, run, HALF), steps, values)
    return float(sharpness) * rate_factor(run) * float(run["learning_rate"]) / 2


def _sharpening(tables: ExperimentTables) -> Measurement:
    """RICH-26: the sharpness at the drop of the loss over 2/η, geometric mean over rich runs."""
    ratios = np.array(
        [
            sharpness_at_drop(tables, run)
            for group in groups_of(tables.runs)
            for run in rows_of(chosen_runs(group, RICH))
        ]
    )
    dropped = ratios[np.isfinite(ratios)]
    if not dropped.size:
        raise ValueError("no rich network's loss dropped to half")
    missing = len(ratios) - len(dropped)
    return Measurement(
        float(np.exp(np.mean(np.log(dropped)))),
        float(dropped.min()),
        float(dropped.max()),
        f"sharpness over 2/η when the loss has fallen to half, mean and range over {len(dropped)} "
        "rich runs" + (f"; {missing} never dropped so far" if missing else ""),
    )


def alignment_rise(tables: ExperimentTables, run: pd.Series) -> tuple[float, float]:
    """When a run's last-layer alignment has done half of its rise, and when its loss first drops.

    Args:
        tables: The experiment.
        run: A row of its runs.

    Returns:
        Both steps; the first is that of half of the way to the largest alignment; NaN where the
        alignment never rises, or the loss never drops.

    Raises:
        ValueError: The alignment was not measured.
    """
    recorded = curve(tables, run["run_id"])
    aligned = rows_with(recorded, "kernel_target_alignment_last_layer")
    values = numbers(aligned, "kernel_target_alignment_last_layer")
    half = (values[0] + values.max()) / 2
    rise = crossing(numbers(aligned, "step"), values, half, rises=True)
    return rise, drop_step(tables, run, FIRST_DROP)


def _silent_alignment(tables: ExperimentTables) -> Measurement:
    """RICH-27: steps to the first drop of the loss over those to half of the alignment's rise."""
    ratios = []
    for group in groups_of(tables.runs):
        for run in rows_of(chosen_runs(group, RICH)):
            rise, drop = alignment_rise(tables, run)
            # An alignment that never rises has not risen before a drop.
            ratio = 0.0 if np.isnan(rise) and np.isfinite(drop) else drop / rise
            ratios.append((ratio, float(run["richness"])))
    finite = [pair for pair in ratios if np.isfinite(pair[0])]
    if not finite:
        raise ValueError("no rich network's loss dropped")
    smallest, richness = min(finite)
    missing = len(ratios) - len(finite)
    return Measurement(
        smallest,
        detail=f"smallest of {len(finite)} rich runs, at richness {richness:g}; largest "
        f"{max(finite)[0]:.2f}" + (f"; {missing} never dropped" if missing else ""),
    )


# Figures 2 and 32: losses and accuracies over the richness.


def _trained_long(tables: ExperimentTables, group: Group) -> pd.DataFrame:
    """The runs at richness 1 or more that trained for long after their loss dropped."""
    runs = chosen_runs(group, ACTIVE)
    steps = np.array([drop_step(tables, run, HALF) for run in rows_of(runs)])
    return runs[_LONG * steps <= numbers(runs, "steps")]


def _by_richness(accuracies: pd.Series) -> str:
    return ", ".join(f"{value:.4f} at {richness:g}" for richness, value in accuracies.items())


def _large_richness(tables: ExperimentTables) -> Measurement:
    """RICH-31: final test accuracy at large richness less that at 1, the smallest difference."""
    differences, listed = [], []
    for group in groups_of(tables.runs):
        long = _trained_long(tables, group)
        accuracy = long.groupby("richness")["final_test_accuracy"].mean().astype(float)
        if not within(accuracy.index.to_numpy(dtype=float), (1.0, 1.0)).any() or len(accuracy) < 2:
            raise ValueError(f"{group.name}: too few networks trained for long")
        differences.append(float((accuracy.iloc[1:] - accuracy.iloc[0]).min()))
        shown = _by_richness(accuracy)
        every = chosen_runs(group, ACTIVE).groupby("richness")["final_test_accuracy"].mean()
        shorter = every.drop(accuracy.index)
        too_short = _by_richness(shorter)
        listed.append(
            f"{group.name}: {shown}"
            + (f" (not trained for long: {too_short})" if too_short else "")
        )
    unmet = lost_runs(tables.runs, ACTIVE)
    return Measurement(min(differences), detail="; ".join(listed), unmet=unmet)


def loss_exponents(tables: ExperimentTables, group: Group) -> dict[str, list[PowerLaw]]:
    """Exponents of the test loss in time over the last decade of steps.

    Args:
        tables: The experiment.
        group: Its runs.

    Returns:
        Those of lazy runs, and of runs at richness 1 or more that trained for long.
    """
    found: dict[str, list[PowerLaw]] = {"lazy": [], "rich": []}
    for regime, runs in (
        ("lazy", chosen_runs(group, LAZY)),
        ("rich", _trained_long(tables, group)),
    ):
        for run in rows_of(runs):
            recorded = curve(tables, run["run_id"])
            late = recorded[numbers(recorded, "step") >= float(run["steps"]) / 10]
            steps, losses = numbers(late, "step"), numbers(late, "test_loss")
            found[regime].append(law_of(steps, losses, f"{group.name}, {regime} test loss"))
    return found


def _loss_laws(tables: ExperimentTables) -> Measurement:
    """RICH-32: the largest rich exponent of the loss less the smallest lazy one."""
    worst: tuple[float, float, float] | None = None
    listed = []
    for group in groups_of(tables.runs):
        laws = loss_exponents(tables, group)
        if not laws["lazy"] or not laws["rich"]:
            raise ValueError(f"{group.name}: no lazy run, or no rich one that trained for long")
        lazy = min(laws["lazy"], key=lambda law: law.exponent)
        rich = max(laws["rich"], key=lambda law: law.exponent)
        found = (rich.exponent - lazy.exponent, rich.low - lazy.high, rich.high - lazy.low)
        worst = found if worst is None else max(worst, found)
        for regime, fitted in laws.items():
            exponents = ", ".join(f"{law.exponent:.3f}" for law in fitted)
            listed.append(f"{group.name} {regime} {exponents}")
    assert worst is not None
    difference, low, high = worst
    unmet = "the intervals overlap" if high >= 0 else ""
    return Measurement(difference, low, high, "; ".join(listed), unmet)


# Figures 5, 43 and 44: functions.


def function_correlation(tables: ExperimentTables, first: str, second: str) -> pd.DataFrame:
    """Correlation of the outputs of two runs for the true classes of test samples.

    Args:
        tables: The experiment.
        first: A run_id.
        second: Another one.

    Returns:
        One row per step at which both were measured: `step`, `correlation`; NaN where outputs are
        constant.
    """
    columns = ["step", "true_class_outputs"]
    pair = [rows_with(curve(tables, name), columns[1])[columns] for name in (first, second)]
    merged = pair[0].merge(pair[1], on="step")
    values = []
    for a, b in zip(merged["true_class_outputs_x"], merged["true_class_outputs_y"], strict=True):
        x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        constant = np.ptp(x) == 0 or np.ptp(y) == 0
        values.append(np.nan if constant else float(np.corrcoef(x, y)[0, 1]))
    return pd.DataFrame({"step": merged["step"], "correlation": values})


@dataclass(frozen=True)
class Pair:
    """Two runs whose functions are compared.

    Attributes:
        name: lazy-lazy, rich-rich or lazy-rich.
        first: run_id of one.
        second: run_id of the other.
        richness: Richness of both.
    """

    name: str
    first: str
    second: str
    richness: tuple[float, float]


def function_pairs(group: Group) -> list[Pair]:
    """The laziest and the richest lazy run of a seed, its two richest runs, and one of each.

    Raises:
        ValueError: There are fewer than two of either.
    """
    runs = group.runs[having(group.runs, seed=group.runs["seed"].min())]
    richness = numbers(runs, "richness")
    lazy, rich = runs[within(richness, LAZY)], runs[within(richness, RICH)].tail(2)
    if len(lazy) < 2 or len(rich) < 2:
        raise ValueError(f"{group.name}: fewer than two lazy or two rich runs")
    found = []
    for name, a, b in (
        ("lazy-lazy", lazy.iloc[0], lazy.iloc[-1]),
        ("rich-rich", rich.iloc[0], rich.iloc[1]),
        ("lazy-rich", lazy.iloc[0], rich.iloc[1]),
    ):
        values = (float(a["richness"]), float(b["richness"]))
        found.append(Pair(name, str(a["run_id"]), str(b["run_id"]), values))
    return found


def _functions(tables: ExperimentTables) -> Measurement:
    """RICH-43: the correlation of two lazy functions; rich ones must agree more than across."""
    lowest, listed, unmet = np.inf, [], []
    for group in groups_of(tables.runs):
        found = {
            pair.name: float(
                function_correlation(tables, pair.first, pair.second)["correlation"].iloc[-1]
            )
            for pair in function_pairs(group)
        }
        lowest = min(lowest, found["lazy-lazy"])
        if not found["rich-rich"] > found["lazy-rich"]:
            unmet.append(f"{group.name}: rich networks agree no more than lazy and rich ones")
        listed.append(
            f"{group.name}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        )
    return Measurement(float(lowest), detail="; ".join(listed), unmet="; ".join(unmet))


# Figures 30 and 31: rescaled time.


def drop_times(tables: ExperimentTables) -> pd.DataFrame:
    """When the loss first drops, in the time ηt/γ.

    Args:
        tables: The experiment.

    Returns:
        One row per run: `model`, `depth`, `loss`, `richness`, `step`, `rich_time`; NaN where it
        never drops.
    """
    rows = []
    for group in groups_of(tables.runs):
        for run in rows_of(group.runs):
            step = drop_step(tables, run, FIRST_DROP)
            richness = float(run["richness"])
            rows.append(
                {
                    "model": group.model,
                    "depth": group.depth,
                    "loss": group.loss,
                    "richness": richness,
                    "step": step,
                    "rich_time": step * float(run["learning_rate"]) / richness,
                }
            )
    return pd.DataFrame(rows)


def _spread(times: pd.DataFrame, window: Window) -> float:
    """Range of the rescaled times at a richness within a window, over their mean."""
    values = times[within(numbers(times, "richness"), window)]["rich_time"].dropna()
    return float(np.ptp(values) / values.mean()) if len(values) > 1 else float("nan")


def _collapse(tables: ExperimentTables) -> Measurement:
    """RICH-35: spread of the rescaled times of the first drop, over their mean; L of 3 or more."""
    times = drop_times(tables)
    deep = times[(times["depth"] >= 3).to_numpy(dtype=bool, na_value=False)]
    spreads, listed = [], []
    missing = [lost for lost in [lost_runs(tables.runs, _COLLAPSED)] if lost]
    for model, part in deep.groupby("model", sort=False):
        spreads.append(_spread(part, _COLLAPSED))
        shown = ", ".join(
            f"{time:.4g} at {richness:g}"
            for richness, time in zip(part["richness"], part["rich_time"], strict=True)
        )
        listed.append(
            f"{model}: {spreads[-1]:.3f}, from γ = {_VERY_RICH[0]:g} on "
            f"{_spread(part, _VERY_RICH):.3f}, of ηt/γ {shown}"
        )
        lost = int(part[within(numbers(part, "richness"), _COLLAPSED)]["rich_time"].isna().sum())
        if lost:
            missing.append(f"{model}: the loss of {lost} runs never drops")
    if not np.isfinite(spreads).any():
        raise ValueError("no network of three or more layers drops at two values of the richness")
    return Measurement(
        float(np.nanmax(spreads)), detail="; ".join(listed), unmet="; ".join(missing)
    )


# Figure 29 and appendix A.2: the lazy limit.


def lazy_curves(
    tables: ExperimentTables,
    loss: str,
    precision: str,
    zero_readout: bool = False,
    model: str | None = None,
) -> pd.DataFrame:
    """Training losses over the steps at each richness.

    Args:
        tables: The experiment.
        loss: Name of the loss.
        precision: float32 or float64.
        zero_readout: Whether of networks whose last layer starts at zero.
        model: Name of the model; None for the first.

    Returns:
        (steps, richness) losses over the initial one; columns by increasing richness. Seeds beyond
        the first are left out.

    Raises:
        ValueError: There is no such run.
    """
    mask = having(tables.runs, loss=loss, precision=precision, zero_readout=zero_readout)
    runs = choose(tables.runs, mask, f"with {loss} in {precision}, zero readout {zero_readout}")
    runs = runs[having(runs, model=runs["model"].iloc[0] if model is None else model)]
    runs = runs.sort_values(["richness", "seed"]).drop_duplicates("richness")
    columns = {}
    for run in rows_of(runs):
        recorded = curve(tables, run["run_id"]).set_index("step")["train_loss"].astype(float)
        columns[float(run["richness"])] = recorded / recorded.iloc[0]
    return pd.DataFrame(columns)


def _distances(losses: pd.DataFrame, reference: pd.Series) -> pd.Series:
    """Largest relative distance of each column from a reference over the same steps."""
    relative = losses.sub(reference, axis=0).abs().div(reference, axis=0)
    # A run that ended early, as no number, is as far off as can be.
    return relative.fillna(np.inf).max()


def _lazy_collapse(tables: ExperimentTables) -> Measurement:
    """RICH-33: largest relative distance of a lazy loss from the laziest one, in float64."""
    distances = {}
    double = tables.runs[having(tables.runs, precision="float64", zero_readout=False)]
    for model, loss in dict.fromkeys(zip(double["model"], double["loss"], strict=True)):
        losses = lazy_curves(tables, loss, "float64", model=model)
        lazy = losses.loc[:, within(losses.columns.to_numpy(dtype=float), LAZY)]
        if lazy.shape[1] < 2:
            raise ValueError(f"fewer than two lazy runs with {loss}")
        distances[f"{model} {loss}"] = float(_distances(lazy, lazy.iloc[:, 0]).max())
    if not distances:
        raise ValueError("no run in float64")
    listed = ", ".join(f"{name} {distance:.2g}" for name, distance in distances.items())
    return Measurement(max(distances.values()), detail=f"largest relative distance: {listed}")


def float32_distances(tables: ExperimentTables) -> pd.Series:
    """Largest relative distance of the loss in float32 from the laziest in float64, by richness."""
    exact = lazy_curves(tables, MSE, "float64").iloc[:, 0]
    return _distances(lazy_curves(tables, MSE, "float32").reindex(exact.index), exact)


def _float32_limit(tables: ExperimentTables) -> Measurement:
    """RICH-34: the richness below which a float32 loss is off by more than a hundredth."""
    distances = float32_distances(tables)
    richness = distances.index.to_numpy(dtype=float)
    off = distances.to_numpy(dtype=float) > _SAME
    lazy = within(richness, LAZY)
    listed = ", ".join(f"{far:.2g} at {value:.2g}" for value, far in distances.items())
    detail = f"largest relative distance from float64: {listed}"
    if not (off & lazy).any():
        raise ValueError(f"no lazy float32 run is off; {detail}")
    last = int(np.flatnonzero(off & lazy).max())
    following = min(last + 1, len(richness) - 1)
    limit = float(np.sqrt(richness[last] * richness[following]))
    return Measurement(limit, float(richness[last]), float(richness[following]), detail)


def _centered(tables: ExperimentTables) -> Measurement:
    """RICH-47: the largest output at step 0 of a centred network in float64."""
    runs = choose(
        tables.runs,
        having(tables.runs, centered=True, precision="float64"),
        "is centred and in float64",
    )
    first = tables.history[
        (tables.history["step"] == 0).to_numpy(dtype=bool)
        & tables.history["run_id"].isin(runs["run_id"]).to_numpy(dtype=bool)
    ]
    rows = rows_with(first, "outputs")
    largest = max(
        float(np.abs(np.asarray(values, dtype=float)).max()) for values in rows["outputs"]
    )
    return Measurement(
        largest,
        detail=f"largest of {len(rows)} networks, γ down to {float(runs['richness'].min()):g}",
    )


# Appendix B, figures 17 to 22 and 27.


def kernel_law(tables: ExperimentTables) -> PowerLaw:
    """The exponent of the top NTK eigenvalue at the start in the richness, squared errors.

    Raises:
        ValueError: It was not measured, or at less than two values of the richness.
    """
    if tables.curvature is None:
        raise ValueError("the curvature at the start was not measured")
    table = tables.curvature[having(tables.curvature, loss=MSE)]
    table = table[having(table, model=table["model"].iloc[0])]
    return law_of(numbers(table, "richness"), numbers(table, "ntk_top_eigenvalue"), "NTK")


def _kernel(tables: ExperimentTables) -> Measurement:
    """RICH-48: the exponent of the tangent kernel at the start in the richness."""
    law = kernel_law(tables)
    return Measurement(law.exponent, law.low, law.high, "top eigenvalue of the tangent kernel")


def movement_in_width(tables: ExperimentTables) -> pd.DataFrame:
    """How far the last hidden layer has moved after a few steps, by width and parametrisation.

    Args:
        tables: The experiment; in NTK it has runs at richness 1.

    Returns:
        `parametrisation`, `width`, `step`, `feature_movement`, at steps with the same rates.

    Raises:
        ValueError: The movement was not measured.
    """
    runs = tables.runs[within(numbers(tables.runs, "richness"), (1.0, 1.0))]
    rates = set(runs[having(runs, parametrisation="ntk")]["learning_rate"])
    runs = choose(runs, runs["learning_rate"].isin(rates).to_numpy(dtype=bool), "has a rate of NTK")
    columns = ["run_id", "parametrisation", "width", "steps"]
    merged = rows_with(tables.history.merge(runs[columns], on="run_id"), "feature_movement")
    # The last step is measured whatever the schedule says.
    steps = numbers(merged, "step")
    moved = merged[(steps > 0) & (steps < numbers(merged, "steps"))]
    columns = ["parametrisation", "width", "step", "feature_movement"]
    return moved[columns].sort_values(columns[:3]).reset_index(drop=True)


def _movement_in_width(tables: ExperimentTables) -> Measurement:
    """RICH-49: exponents in the width of the movement after the first steps."""
    moved = movement_in_width(tables)
    first = moved[(moved["step"] == moved["step"].min()).to_numpy(dtype=bool)]
    laws = []
    for name, expected in (("ntk", -0.5), ("mup", 0.0)):
        part = first[having(first, parametrisation=name)]
        law = law_of(numbers(part, "width"), numbers(part, "feature_movement"), name)
        laws.append(Exponent(name, law, expected))
    measured = farthest(laws)
    detail = f"after {int(first['step'].min())} steps: {measured.detail}"
    return Measurement(measured.value, measured.ci_low, measured.ci_high, detail)


def width_runs(tables: ExperimentTables) -> pd.DataFrame:
    """The runs in µP.

    Raises:
        ValueError: There is none.
    """
    mask = having(tables.runs, parametrisation="mup")
    return choose(tables.runs, mask, "is in µP")


def best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The learning rate with the smallest final training loss.

    Args:
        runs: Runs of several widths and learning rates.

    Returns:
        One row per model, loss, richness and width.
    """
    keys = ["model", "loss", "richness", "width"]
    trained = runs[runs["status"].isin(_ENDED).to_numpy(dtype=bool)]
    means = trained.groupby([*keys, "learning_rate"], as_index=False).agg(
        final_train_loss=("final_train_loss", "mean")
    )
    ordered = means.sort_values("final_train_loss", kind="stable").drop_duplicates(keys)
    return ordered.sort_values(keys, ignore_index=True)


@dataclass(frozen=True)
class WidthCurves:
    """Losses of several widths at one learning rate, none of which has a smaller best one.

    Attributes:
        model: Name of the model.
        loss: Name of the loss.
        richness: The richness.
        learning_rate: The learning rate.
        losses: (steps, widths) test losses; columns by increasing width.
    """

    model: str
    loss: str
    richness: float
    learning_rate: float
    losses: pd.DataFrame

    @property
    def distance(self) -> float:
        """Mean difference of the logarithm of the losses from that of the widest network."""
        logs = np.log(self.losses.to_numpy(dtype=float))
        return float(np.abs(logs[:, :-1] - logs[:, -1:]).mean())


def width_curves(tables: ExperimentTables) -> list[WidthCurves]:
    """The losses over the steps for each width, by model, loss and increasing richness."""
    runs = width_runs(tables)
    runs = runs[having(runs, seed=runs["seed"].min())]
    best = best_rates(runs)
    keys = ["model", "loss", "richness"]
    found = []
    for case in rows_of(best[keys].drop_duplicates()):
        values = {key: case[key] for key in keys}
        rate = float(best[having(best, **values)]["learning_rate"].min())
        same = runs[having(runs, **values, learning_rate=rate)].sort_values("width")
        columns = {
            int(run["width"]): curve(tables, run["run_id"])
            .set_index("step")["test_loss"]
            .astype(float)
            for run in rows_of(same)
        }
        found.append(
            WidthCurves(
                str(case["model"]),
                str(case["loss"]),
                float(case["richness"]),
                rate,
                pd.DataFrame(columns),
            )
        )
    return found


def _stable_rate(tables: ExperimentTables) -> Measurement:
    """RICH-37: largest ratio of the best rates of two widths; rich widths must lie closer."""
    runs = width_runs(tables)
    best = best_rates(runs)
    ratios, listed, unmet = [], [], []
    distances: dict[tuple[str, str], list[float]] = {}
    for found in width_curves(tables):
        values = {"model": found.model, "loss": found.loss, "richness": found.richness}
        part = best[having(best, **values)]
        rates = numbers(part, "learning_rate")
        ratios.append(float(rates.max() / rates.min()))
        tried = numbers(runs[having(runs, **values)], "learning_rate")
        if rates.min() <= tried.min() or rates.max() >= tried.max():
            unmet.append(f"{found.model} {found.loss} γ={found.richness:g}: a best rate is an end")
        distances.setdefault((found.model, found.loss), []).append(found.distance)
        shown = ", ".join(
            f"{rate:.3g} at N={width}" for rate, width in zip(rates, part["width"], strict=True)
        )
        listed.append(
            f"{found.model} {found.loss} γ={found.richness:g}: best rate {shown}, mean distance "
            f"from the widest {found.distance:.3f}"
        )
    unmet += [
        f"{model} {loss}: widths lie no closer at large richness"
        for (model, loss), by_richness in distances.items()
        if len(by_richness) > 1 and not by_richness[-1] < by_richness[0]
    ]
    return Measurement(max(ratios), detail="; ".join(listed), unmet="; ".join(unmet))


@dataclass(frozen=True)
class BatchCurves:
    """Mean losses of several batch sizes at one learning rate.

    Attributes:
        model: Name of the model.
        richness: The richness.
        learning_rate: The learning rate.
        losses: (steps, batch sizes) test losses over the initial one, seeds averaged.
    """

    model: str
    richness: float
    learning_rate: float
    losses: pd.DataFrame


def batch_curves(tables: ExperimentTables) -> list[BatchCurves]:
    """The losses over the steps for each batch size, by increasing richness and rate."""
    keys = ["model", "loss", "richness", "learning_rate"]
    found = []
    settings = tables.runs[keys].drop_duplicates().sort_values(keys)
    for setting in rows_of(settings):
        runs = tables.runs[having(tables.runs, **{key: setting[key] for key in keys})]
        columns = {}
        for size in sorted({int(size) for size in numbers(runs, "batch_size")}):
            losses = [
                curve(tables, name).set_index("step")["test_loss"].astype(float)
                for name in runs[having(runs, batch_size=size)]["run_id"]
            ]
            mean = pd.concat(losses, axis=1).mean(axis=1)
            columns[size] = mean / mean.iloc[0]
        found.append(
            BatchCurves(
                str(setting["model"]),
                float(setting["richness"]),
                float(setting["learning_rate"]),
                pd.DataFrame(columns),
            )
        )
    return found


def _mean_path(tables: ExperimentTables) -> Measurement:
    """RICH-39: mean relative distance of a batch size's loss from the mean over batch sizes."""
    distances, listed = [], []
    for found in batch_curves(tables):
        if found.losses.shape[1] < 2:
            raise ValueError("a single batch size")
        middle = found.losses.mean(axis=1)
        relative = found.losses.sub(middle, axis=0).abs().div(middle, axis=0).mean()
        distances.append(float(relative.max()))
        shown = ", ".join(f"{far:.3f} at B={size}" for size, far in relative.items())
        listed.append(f"{found.model} γ={found.richness:g} η={found.learning_rate:.3g}: {shown}")
    unmet = lost_runs(tables.runs, (0.0, np.inf))
    return Measurement(max(distances), detail="; ".join(listed), unmet=unmet)


MEASURES: dict[str, ClaimMeasure] = {
    "RICH-22": ClaimMeasure(DYNAMICS, -0.07, 0.07, _movement),
    "RICH-23": ClaimMeasure(DYNAMICS, -0.15, 0.15, _sharpness),
    "RICH-24": ClaimMeasure(DYNAMICS, 10.0, 10.0, _outliers),
    "RICH-25": ClaimMeasure(DYNAMICS, None, 0.5, _no_gap),
    "RICH-26": ClaimMeasure(DYNAMICS, 0.8, 1.2, _sharpening),
    "RICH-27": ClaimMeasure(DYNAMICS, 1.0, None, _silent_alignment),
    "RICH-31": ClaimMeasure(DYNAMICS, -0.005, None, _large_richness),
    "RICH-32": ClaimMeasure(DYNAMICS, None, 0.0, _loss_laws),
    "RICH-33": ClaimMeasure(LAZY_RUNS, None, _SAME, _lazy_collapse),
    "RICH-34": ClaimMeasure(LAZY_RUNS, 1e-4, 1e-2, _float32_limit),
    "RICH-35": ClaimMeasure(CONSISTENCY, None, 0.05, _collapse),
    "RICH-37": ClaimMeasure(WIDTHS, None, 2.0, _stable_rate),
    "RICH-39": ClaimMeasure(BATCH_SIZES, None, 0.05, _mean_path),
    "RICH-43": ClaimMeasure(DYNAMICS, 0.99, None, _functions),
    "RICH-47": ClaimMeasure(LAZY_RUNS, None, 1e-12, _centered),
    "RICH-48": ClaimMeasure(CATAPULTS, -2.01, -1.99, _kernel),
    "RICH-49": ClaimMeasure(WIDTHS, -0.1, 0.1, _movement_in_width),
}
