r"""The temperature paper's tuning of the inverse temperature β.

Tune as normal, at β = 1, which gives a learning rate η₀. Sweep β over [0.01, 10] at rates η₀/β. If
the best β is at an end of the range, go on beyond it. What is gained over β = 1 is then measured
with fresh seeds: those of the sweep chose β, and would flatter it.

Reference: Temperature paper, section 3.4.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from sgdphases.errors import InputError
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_sweeps import BETA, RATE, over_seeds, with_accuracy

_CONFIDENCE = 0.95
# Beyond an end of the range the sweep goes on by a decade at a time.
_DECADES_PER_EXTENSION = 1
# What a tuning is based on, besides what was measured.
_BASIS = ("model", "depth", "width", "loss", "optimizer", "momentum", "weight_decay", "batch_size")

# What differs between the runs of one setting.
_OF_A_RUN = ("run_id", "seed")

Run = dict[str, Any]
# From runs to their tables; the name tells where to keep what is needed to go on.
Train = Callable[[Sequence[Run], str], ExperimentTables]


def best_setting(tables: ExperimentTables, runs: Sequence[Run]) -> list[Run]:
    """The runs, one per seed, of the setting with the best mean test accuracy.

    Args:
        tables: Tables of the runs at β = 1.
        runs: Those runs.

    Returns:
        The runs of the best setting, whatever hyperparameters were tuned.

    Raises:
        InputError: Its learning rate is the smallest or the largest of those tried with it.
    """
    measured = with_accuracy(tables).set_index("run_id")["accuracy"]
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(_name(run, _OF_A_RUN), []).append(run)
    means = {
        name: float(measured.loc[[run["run_id"] for run in own]].mean())
        for name, own in settings.items()
    }
    chosen = settings[max(means, key=lambda name: means[name])]
    apart = (*_OF_A_RUN, RATE)
    alike = _name(chosen[0], apart)
    rates = sorted({run[RATE] for run in runs if _name(run, apart) == alike})
    rate = chosen[0][RATE]
    if rate in (rates[0], rates[-1]):
        end, wanted = ("smallest", "smaller") if rate == rates[0] else ("largest", "larger")
        raise InputError(
            f"{tables.spec['experiment']}: the best learning rate at inverse temperature 1 is the "
            f"{end} that was tried, {rate:g}; allowed: a grid of learning_rate with {wanted} ones"
        )
    return chosen


def _name(run: Run, left_out: Sequence[str]) -> str:
    """All of a run's hyperparameters but some, as text."""
    kept = {name: value for name, value in run.items() if name not in left_out}
    return json.dumps(kept, sort_keys=True)


def sweep_values(start: float, stop: float, points_per_decade: int) -> NDArray[np.float64]:
    """Inverse temperatures evenly spaced in logarithms, 1 among them.

    Args:
        start: Smallest, at most 1.
        stop: Largest, at least 1.
        points_per_decade: How densely.

    Returns:
        (values,) increasing, all within the range but for rounding.
    """
    first = np.ceil(np.log10(start) * points_per_decade - 1e-9)
    last = np.floor(np.log10(stop) * points_per_decade + 1e-9)
    exponents = np.arange(first, last + 1) / points_per_decade
    return np.array([float(f"{value:.12g}") for value in 10.0**exponents])


def at_temperature(run: Run, inverse_temperature: float, seed: int) -> Run:
    """A run at another inverse temperature, with its learning rate η₀/β.

    Args:
        run: At inverse temperature 1.
        inverse_temperature: β.
        seed: Seed of its parameters.

    Returns:
        The run.
    """
    return {
        **run,
        "run_id": f"{run['run_id']} {inverse_temperature:g} {seed}",
        BETA: inverse_temperature,
        RATE: run[RATE] / inverse_temperature,
        "seed": seed,
    }


def sweep_temperature(
    tuned: ExperimentTables,
    runs: Sequence[Run],
    options: Mapping[str, Any],
    train: Train,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Sweep β, extend the sweep where its best is at an end, and measure the gain.

    Args:
        tuned: Tables of the runs at β = 1, among them those of `runs`.
        runs: The best of these, one per seed.
        options: `start`, `stop`, `points_per_decade` of the sweep, `max_extensions` (decades beyond
            the range, both ends together), `num_fresh_seeds` for the gain.
        train: Trains runs.

    Returns:
        What temperature_tuning.json holds, see docs/results.md; and one row per run of the sweep
        and of the fresh seeds, with `stage` (sweep, gain) and `accuracy`.
    """
    density = options["points_per_decade"]
    values = sweep_values(options["start"], options["stop"], density)
    own = with_accuracy(tuned)
    rows = [own[own["run_id"].isin([run["run_id"] for run in runs])]]
    extensions = 0
    pending = [value for value in values if value != 1.0]
    while True:
        wanted = [at_temperature(run, beta, run["seed"]) for beta in pending for run in runs]
        rows.append(with_accuracy(train(wanted, f"sweep{extensions}")))
        swept = over_seeds(pd.concat(rows), [BETA]).sort_values(BETA)
        best = float(swept[BETA].iloc[int(swept["mean"].argmax())])
        low, high = float(swept[BETA].min()), float(swept[BETA].max())
        is_bracketed = low < best < high
        if is_bracketed or extensions == options["max_extensions"]:
            break
        extensions += 1
        factor = 10.0**_DECADES_PER_EXTENSION
        beyond = sweep_values(low / factor, high * factor, density)
        at_low = best == low
        pending = [value for value in beyond if (value < low if at_low else value > high)]
    others = swept[swept[BETA] != 1.0]
    other = float(others[BETA].iloc[int(others["mean"].argmax())])
    gain, fresh = _measure_gain(runs, other, options["num_fresh_seeds"], train)
    table = pd.concat(
        [pd.concat(rows).assign(stage="sweep"), fresh.assign(stage="gain")], ignore_index=True
    )
    shared = runs[0]
    spec = tuned.spec
    document = {
        "experiment": spec["experiment"],
        "scale": spec["scale"],
        "dataset": spec["dataset"]["name"],
        "num_train": spec["dataset"]["num_train"],
        **{name: shared[name] for name in _BASIS if name in shared},
        "steps_per_run": int(table["steps"].max()),
        "seeds": [run["seed"] for run in runs],
        "learning_rate_at_1": shared[RATE],
        "inverse_temperature": best,
        "learning_rate": shared[RATE] / best,
        "is_bracketed": is_bracketed,
        "num_extensions": extensions,
        "sweep": [
            {
                name: None if pd.isna(row[name]) else float(row[name])
                for name in (BETA, RATE, "mean", "deviation", "best", "worst")
            }
            for row in swept.to_dict("records")
        ],
        **gain,
    }
    return document, table


def _measure_gain(
    runs: Sequence[Run], other: float, num_fresh_seeds: int, train: Train
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The accuracy gained over β = 1, seed by seed, with seeds that did not choose β.

    Args:
        runs: The best runs at β = 1.
        other: The best β other than 1.
        num_fresh_seeds: Seeds.
        train: Trains runs.
    """
    first = max(run["seed"] for run in runs) + 1
    seeds = list(range(first, first + num_fresh_seeds))
    wanted = [at_temperature(runs[0], beta, seed) for beta in (1.0, other) for seed in seeds]
    table = with_accuracy(train(wanted, "gain"))
    by_seed = table.pivot_table("accuracy", index="seed", columns=BETA).reindex(seeds)
    gains = (by_seed[other] - by_seed[1.0]).to_numpy(float)
    half = None
    if len(gains) > 1:
        error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        half = error * float(stdtrit(len(gains) - 1, (1 + _CONFIDENCE) / 2))
    mean = float(gains.mean())
    document = {
        "fresh_seeds": seeds,
        "compared_inverse_temperature": other,
        "accuracy_at_1": float(by_seed[1.0].mean()),
        "accuracy": float(by_seed[other].mean()),
        "gains": gains.tolist(),
        "gain": mean,
        "gain_low": None if half is None else mean - half,
        "gain_high": None if half is None else mean + half,
    }
    return document, table


def describe_tuning(tuning: Mapping[str, Any]) -> str:
    """A tuning in words: what it is based on, the sweep, the β to use, and what is gained.

    Args:
        tuning: What `sweep_temperature` returned.

    Returns:
        Lines of text.
    """
    data = tuning["dataset"]
    if tuning["num_train"] is not None:
        data = f"{tuning['num_train']} samples of {data}"
    width = f", width {tuning['width']}" if tuning.get("width") else ""
    seeds = len(tuning["seeds"])
    lines = [
        f"{tuning['experiment']} (scale {tuning['scale']}): {tuning['model']}{width} on {data}, "
        f"batches of {tuning['batch_size']}, {tuning['steps_per_run']} steps, {seeds} "
        f"seed{'s' if seeds > 1 else ''}",
        f"best learning rate at inverse temperature 1: {tuning['learning_rate_at_1']:g}",
        "inverse temperature  learning rate  test accuracy",
    ]
    for row in tuning["sweep"]:
        deviation = "" if row["deviation"] is None else f" ± {row['deviation']:.4f}"
        mark = "  <- best" if row[BETA] == tuning["inverse_temperature"] else ""
        lines.append(f"{row[BETA]:>19.3g}  {row[RATE]:>13.3g}  {row['mean']:.4f}{deviation}{mark}")
    if not tuning["is_bracketed"]:
        lines.append(
            f"the best is at an end of the sweep, after {tuning['num_extensions']} extensions by a "
            "decade: a better one may lie beyond (temperature_tuning: max_extensions)"
        )
    lines.append(
        f"use inverse_temperature {tuning['inverse_temperature']:.3g}, learning_rate "
        f"{tuning['learning_rate']:.3g}"
    )
    interval = (
        ""
        if tuning["gain_low"] is None
        else f" (95 % interval {tuning['gain_low']:+.4f} to {tuning['gain_high']:+.4f})"
    )
    other = tuning["compared_inverse_temperature"]
    best_other = "" if other == tuning["inverse_temperature"] else ", the best other than 1,"
    lines.append(
        f"gain of {other:.3g}{best_other} over 1: {tuning['gain']:+.4f}{interval}, from "
        f"{tuning['accuracy_at_1']:.4f} to {tuning['accuracy']:.4f}, mean of "
        f"{len(tuning['fresh_seeds'])} fresh seeds (each: "
        f"{', '.join(f'{gain:+.4f}' for gain in tuning['gains'])})"
    )
    return "\n".join(lines)


def read_tuning(file: Path) -> dict[str, Any]:
    """Read a temperature_tuning.json.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        tuning: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not 0 < tuning[BETA] < np.inf:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: missing or damaged; delete it and run again") from None
    return tuning
