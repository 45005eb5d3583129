r"""The learning rates to expect of a network, from its curvature at initialisation.

Squared errors are minimised monotonically up to η_crit = 2/λ₀, with λ₀ the largest eigenvalue of
the tangent kernel; beyond it the loss rises first, and training converges at flatter points up to
η_max = c_act/λ₀, with a constant that depends on the activation above all. A sweep of learning
rates confirms both.

Reference: Lewkowycz et al., The large learning rate phase of deep learning, sections 1 and 3.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sgdphases.errors import InputError
from sgdphases.model_table import is_user_model
from sgdphases.phases import PEAK_FACTOR
from sgdphases.selection import RATE, trained
from sgdphases.storage import write_text
from sgdphases.tables import ExperimentTables, plain_value

_CRITICAL_CONSTANT = 2.0
# Beyond this residual an eigenvalue is not told apart from its neighbours.
_CONVERGED = 0.01
# Columns of curvature.parquet that are no hyperparameters of a network.
_NOT_OF_A_NETWORK = (
    "experiment",
    "network_id",
    "seed",
    "batch",
    "ntk_top_eigenvalue",
    "ntk_residual",
    "critical_learning_rate",
)
# What a description names of a network, where the model has it.
_NAMED = ("depth", "width", "activation", "parametrisation", "loss")


class ActivationConstant(NamedTuple):
    """What is known of the largest learning rate with an activation.

    Attributes:
        value: c_act of η_max = c_act/λ₀.
        evidence: Where it comes from.
    """

    value: float
    evidence: str


# Of squared errors and plain SGD.
ACTIVATION_CONSTANTS = {
    "relu": ActivationConstant(
        12.0,
        "about 12 in the catapult paper's ReLU networks; measured on MNIST with this package "
        "(catapult/fc_mnist, scale quick): trains at 13/λ₀, diverges at 14/λ₀",
    ),
    "tanh": ActivationConstant(
        4.0,
        "near 4 in the catapult paper; measured on MNIST with this package (catapult/fc2_tanh, "
        "scale quick): trains at 5/λ₀, diverges at 6/λ₀",
    ),
    "identity": ActivationConstant(
        4.0, "4 in the catapult paper's solvable linear networks (catapult/warmup_threshold)"
    ),
}


def predict_rates(
    spec: Mapping[str, Any], curvature: pd.DataFrame, momenta: Iterable[float]
) -> dict[str, Any]:
    """The learning rates to expect of the networks of an experiment.

    Args:
        spec: The resolved experiment: `experiment`, `scale`, `dataset`, `curvature`,
            `hyperparameters`, `grid`.
        curvature: Its curvature.parquet.
        momenta: Distinct momentum coefficients of its runs, increasing.

    Returns:
        What learning_rates.json holds, see docs/results.md.

    Raises:
        InputError: A curvature is not a positive number.
    """
    names = [name for name in map(str, curvature) if name not in _NOT_OF_A_NETWORK]
    groups = curvature.groupby(names, dropna=False, sort=False)
    networks = [_of_network(spec, group, names) for _, group in groups]
    return {
        "experiment": spec["experiment"],
        "scale": spec["scale"],
        "dataset": spec["dataset"]["name"],
        "num_train": spec["dataset"]["num_train"],
        "samples_per_batch": spec["curvature"]["batch_size"],
        "momenta": list(momenta),
        "networks": networks,
    }


def _of_network(
    spec: Mapping[str, Any], rows: pd.DataFrame, names: Sequence[str]
) -> dict[str, Any]:
    first = rows.iloc[0]
    eigenvalues = rows["ntk_top_eigenvalue"].to_numpy(dtype=float)
    network = {name: plain_value(first[name]) for name in names}
    if not (np.isfinite(eigenvalues).all() and (eigenvalues > 0).all()):
        raise InputError(
            f"{spec['experiment']}: the curvature of {network['model']} is {eigenvalues.min():g} "
            "on some batch; allowed: a network with finite outputs that depend on its parameters"
        )
    mean = float(eigenvalues.mean())
    by_seed = rows.groupby("seed")["ntk_top_eigenvalue"]
    batches, seeds = int(rows["batch"].nunique()), int(rows["seed"].nunique())
    constant, evidence = _constant_of(spec, network)
    return {
        "network": {name: value for name, value in network.items() if value is not None},
        "seeds": sorted(int(seed) for seed in rows["seed"].unique()),
        "num_batches": batches,
        "ntk_top_eigenvalue": mean,
        "ntk_top_eigenvalue_low": float(eigenvalues.min()),
        "ntk_top_eigenvalue_high": float(eigenvalues.max()),
        "deviation_over_batches": float(by_seed.std().mean()) if batches > 1 else None,
        "deviation_over_seeds": float(by_seed.mean().std()) if seeds > 1 else None,
        "ntk_residual": float(rows["ntk_residual"].max()),
        "critical_learning_rate": _CRITICAL_CONSTANT / mean,
        "critical_learning_rate_low": float(_CRITICAL_CONSTANT / eigenvalues.max()),
        "critical_learning_rate_high": float(_CRITICAL_CONSTANT / eigenvalues.min()),
        "activation_constant": constant,
        "max_learning_rate": None if constant is None else constant / mean,
        "evidence": evidence,
    }


def _constant_of(spec: Mapping[str, Any], network: Mapping[str, Any]) -> tuple[float | None, str]:
    """c_act and where it comes from; None where it is not known, and why."""
    if network["loss"] != "mean_squared_error":
        return None, f"not known for {network['loss']}: the papers' constants are of squared errors"
    if is_user_model(network["model"]) and not _names_activation(spec):
        return None, (
            f"the experiment does not say which activation {network['model']} has "
            "(hyperparameters: activation)"
        )
    known = ACTIVATION_CONSTANTS.get(network.get("activation") or "")
    if known is None:
        listed = ", ".join(f"{name} {c.value:g}" for name, c in ACTIVATION_CONSTANTS.items())
        return None, f"not known for activation {network.get('activation')}; known: {listed}"
    return known.value, known.evidence


def _names_activation(spec: Mapping[str, Any]) -> bool:
    """Whether an experiment file gives the activation: a user's own model has another default."""
    grid = spec["grid"]
    parts = [spec["hyperparameters"], *(grid if isinstance(grid, list) else [grid])]
    points = [point for part in parts for point in part.get("points", [])]
    return any("activation" in part for part in (*parts, *points))


def summarise_sweep(tables: ExperimentTables, prediction: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep of learning rates says of the rates that were predicted.

    A run trains if it stays finite and ends below its initial loss. Its loss rises if one of those
    measured is above 1.05 of the initial one, or it diverges.

    Args:
        tables: Tables of the experiment.
        prediction: What `predict_rates` returned of it.

    Returns:
        The prediction with its `sweeps`, one for each network and momentum, see docs/results.md.

    Raises:
        InputError: At some network and momentum, runs at the smallest rate do not train.
    """
    runs = tables.runs.assign(trained=trained(tables.runs), rises=_rises(tables))
    networks = [predicted["network"] for predicted in prediction["networks"]]
    names = list(dict.fromkeys(name for network in networks for name in network))
    sweeps = []
    for network in networks:
        own = runs
        for name in names:
            # What a network lacks is null in its runs.
            value = network.get(name)
            own = own[own[name].isna() if value is None else own[name] == value]
        for momentum in sorted(own["momentum"].unique()):
            group = own[own["momentum"] == momentum]
            where = f"{prediction['experiment']}: {network['model']}"
            sweep = _sweep(group, where)
            sweeps.append({"network": network, "momentum": float(momentum), **sweep})
    return {**prediction, "sweeps": sweeps}


def _rises(tables: ExperimentTables) -> "pd.Series[bool]":
    losses = tables.history.assign(train_loss=tables.history["train_loss"].fillna(np.inf))
    peak = losses.groupby("run_id")["train_loss"].max().reindex(tables.runs["run_id"]).to_numpy()
    initial = tables.runs["initial_train_loss"]
    return (tables.runs["status"] == "diverged") | (peak > PEAK_FACTOR * initial)


def _sweep(runs: pd.DataFrame, where: str) -> dict[str, Any]:
    # Relative rates are those of each seed's own network, and come back from a division.
    relative = runs[RATE].map(lambda value: float(f"{value:.6g}"))
    is_shared = relative.nunique() <= runs["learning_rate"].nunique()
    groups = runs.groupby(relative if is_shared else runs["learning_rate"])
    rows = [_of_rate(group) for _, group in groups]
    rates = np.array([row["learning_rate"] for row in rows])
    fails = np.array([row["num_trained"] < row["num_runs"] for row in rows])
    if fails[0]:
        raise InputError(
            f"{where}: at the smallest rate of the sweep already, {rates[0]:.3g}, "
            f"{rows[0]['num_diverged']} of {rows[0]['num_runs']} runs diverge and "
            f"{rows[0]['num_trained']} end below their initial loss; allowed: a grid of "
            "learning_rate with smaller ones, or more steps"
        )
    last, beyond = _around(rates, fails)
    products = _CRITICAL_CONSTANT * np.array([row[RATE] for row in rows])
    constant, constant_beyond = _around(products, fails)
    monotone, rising = _around(rates, np.array([row["num_rising"] > 0 for row in rows]))
    _, diverging = _around(rates, np.array([row["num_diverged"] > 0 for row in rows]))
    return {
        "rates": rows,
        "largest_trained": last,
        "first_untrained": beyond,
        "largest_monotone": monotone,
        "first_rising": rising,
        "first_diverging": diverging,
        "measured_constant": constant,
        "measured_constant_beyond": constant_beyond,
    }


def _of_rate(runs: pd.DataFrame) -> dict[str, Any]:
    finals = runs.loc[runs["trained"], ["final_train_loss", "final_test_accuracy"]].mean()
    return {
        "learning_rate": float(runs["learning_rate"].mean()),
        "relative_learning_rate": float(runs[RATE].mean()),
        "num_runs": len(runs),
        "num_trained": int(runs["trained"].sum()),
        "num_rising": int(runs["rises"].sum()),
        "num_diverged": int((runs["status"] == "diverged").sum()),
        **{str(name): plain_value(value) for name, value in finals.items()},
    }


def _around(
    rates: NDArray[np.float64], happens: NDArray[np.bool_]
) -> tuple[float | None, float | None]:
    """The last rate before something first happens, and that at which it does."""
    count = int(np.argmax(happens)) if happens.any() else len(rates)
    return (
        float(rates[count - 1]) if count > 0 else None,
        float(rates[count]) if count < len(rates) else None,
    )


def describe_rates(prediction: Mapping[str, Any]) -> str:
    """A prediction in words, with its sweeps where there are any.

    Args:
        prediction: What `predict_rates` or `summarise_sweep` returned.

    Returns:
        Lines of text.
    """
    data = prediction["dataset"]
    if prediction["num_train"] is not None:
        data = f"{prediction['num_train']} samples of {data}"
    lines = [f"{prediction['experiment']} (scale {prediction['scale']}) on {data}"]
    told = _told(predicted["network"] for predicted in prediction["networks"])
    for predicted in prediction["networks"]:
        lines += ["", *_describe_network(predicted, told, prediction["samples_per_batch"])]
        if prediction["momenta"][-1] > 0:
            lines.append(
                f"momentum {prediction['momenta'][-1]:g}: linear models are stable up to "
                "(1 + momentum)·2/λ₀; the curvature of ReLU networks falls from "
                "(1 − momentum)·2/λ₀ on"
            )
    for sweep in prediction.get("sweeps", []):
        lines += ["", *_describe_sweep(sweep, told)]
    return "\n".join(lines)


def _told(networks: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hyperparameters that tell networks apart, and those that are always named."""
    everything = list(networks)
    names = dict.fromkeys(name for network in everything for name in network)
    differing = [n for n in names if len({network.get(n) for network in everything}) > 1]
    return [name for name in names if name in _NAMED or name in differing]


def _describe_network(predicted: Mapping[str, Any], told: Sequence[str], samples: int) -> list[str]:
    network = predicted["network"]
    deviations = [
        f"{100 * predicted[key] / predicted['ntk_top_eigenvalue']:.2g} % over {name}"
        for key, name in (
            ("deviation_over_batches", "batches"),
            ("deviation_over_seeds", "seeds"),
        )
        if predicted[key] is not None
    ]
    spread = f"; standard deviation {', '.join(deviations)}" if deviations else ""
    eigenvalue, critical = (
        f"{predicted[name]:.4g} ({predicted[f'{name}_low']:.4g} to {predicted[f'{name}_high']:.4g}"
        for name in ("ntk_top_eigenvalue", "critical_learning_rate")
    )
    batches = predicted["num_batches"]
    measured = f"{_count(len(predicted['seeds']), 'seed')} and {_count(batches, 'batch')} of "
    # A single one may hold all the data.
    measured += f"{'up to ' if batches == 1 else ''}{samples} samples"
    lines = [
        _title(network, told),
        f"λ₀ = {eigenvalue} over {measured}{spread})",
        f"critical learning rate 2/λ₀ = {critical}): below it the loss falls from the start, above "
        "it it first rises",
    ]
    if predicted["ntk_residual"] > _CONVERGED:
        lines.append(
            f"λ₀ has not converged: relative residual {predicted['ntk_residual']:.2g}; allowed: a "
            "larger curvature.num_lanczos_steps"
        )
    if predicted["activation_constant"] is None:
        lines.append(f"largest learning rate: not predicted: {predicted['evidence']}")
    else:
        lines.append(
            f"largest learning rate {predicted['activation_constant']:g}/λ₀ = "
            f"{predicted['max_learning_rate']:.4g}; evidence for {network['activation']}: "
            f"{predicted['evidence']}"
        )
    if network["loss"] != "mean_squared_error":
        lines.append(
            f"2/λ₀ is the limit of squared errors; with {network['loss']} the curvature is smaller "
            "and the limit larger"
        )
    return lines


def _count(number: int, name: str) -> str:
    plural = "" if number == 1 else "es" if name.endswith("ch") else "s"
    return f"{number} {name}{plural}"


def _title(network: Mapping[str, Any], told: Sequence[str]) -> str:
    # A user's own model has these, whether it reads them or not.
    left_out = _NAMED[:4] if is_user_model(network["model"]) else ()
    parts = [f"{name} {network[name]}" for name in told if name in network and name != "model"]
    return ", ".join([network["model"], *(p for p in parts if p.split()[0] not in left_out)])


def _describe_sweep(sweep: Mapping[str, Any], told: Sequence[str]) -> list[str]:
    momentum = f", momentum {sweep['momentum']:g}" if sweep["momentum"] else ""
    lines = [
        f"sweep: {_title(sweep['network'], told)}{momentum}",
        "learning rate    η·λ₀  trained  rising  diverged  train loss  test accuracy",
    ]
    for row in sweep["rates"]:
        loss, accuracy = row["final_train_loss"], row["final_test_accuracy"]
        of = row["num_runs"]
        lines.append(
            f"{row['learning_rate']:>13.4g}  {_CRITICAL_CONSTANT * row[RATE]:>6.3g}  "
            f"{row['num_trained']:>3}/{of:<3}  {row['num_rising']:>3}/{of:<3} "
            f"{row['num_diverged']:>4}/{of:<3}  {'' if loss is None else f'{loss:.4g}':>10}  "
            f"{'' if accuracy is None else f'{accuracy:.4f}':>13}"
        )
    lines.append(_bracket("the loss first rises", sweep["largest_monotone"], sweep["first_rising"]))
    lines.append(
        _bracket("training fails", sweep["largest_trained"], sweep["first_untrained"])
        + _constants(sweep)
    )
    diverging = sweep["first_diverging"]
    lines.append(
        "no run diverges" if diverging is None else f"the first runs diverge at {diverging:.4g}"
    )
    return lines


def _bracket(what: str, last: float | None, first: float | None) -> str:
    if first is None:
        return f"{what} at no rate of the sweep, up to {last:.4g}"
    if last is None:
        return f"{what} at the smallest rate already, {first:.4g}"
    return f"{what} between {last:.4g} and {first:.4g}"


def _constants(sweep: Mapping[str, Any]) -> str:
    beyond = sweep["measured_constant_beyond"]
    last = f"{sweep['measured_constant']:.3g}"
    return f": c_act {last} to {beyond:.3g}" if beyond is not None else f": c_act above {last}"


def write_rates(prediction: Mapping[str, Any], file: Path, text: Path) -> None:
    """Write a prediction, and beside it the same in words.

    Args:
        prediction: What `predict_rates` or `summarise_sweep` returned.
        file: The JSON file.
        text: The Markdown file.
    """
    write_text(f"```text\n{describe_rates(prediction)}\n```\n", text)
    write_text(json.dumps(prediction, indent=1) + "\n", file)


def read_rates(file: Path) -> dict[str, Any]:
    """Read a learning_rates.json or learning_rate_sweep.json.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        prediction: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not all(network["critical_learning_rate"] > 0 for network in prediction["networks"]):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: missing or damaged; delete it and run again") from None
    return prediction
