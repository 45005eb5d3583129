"""Score every claim of the papers against what the experiments measured."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from sgdphases.claims import (
    catapult,
    catapult_linearized,
    catapult_performance,
    catapult_theory,
    l2,
    l2_theory,
    richness,
    richness_dynamics,
    richness_portraits,
    richness_theory,
    temperature,
    temperature_theory,
)
from sgdphases.claims.types import ClaimMeasure
from sgdphases.storage import write_text
from sgdphases.tables import ExperimentTables

REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"

MEASURES: dict[str, ClaimMeasure] = {
    **catapult_theory.MEASURES,
    **catapult.MEASURES,
    **catapult_linearized.MEASURES,
    **catapult_performance.MEASURES,
    **richness_theory.MEASURES,
    **richness.MEASURES,
    **richness_dynamics.MEASURES,
    **richness_portraits.MEASURES,
    **l2_theory.MEASURES,
    **l2.MEASURES,
    **temperature_theory.MEASURES,
    **temperature.MEASURES,
}

_NUMBERS = ("low", "high", "measured", "ci_low", "ci_high")
_TEXTS = ("verdict", "scale", "dataset", "experiment", "detail")


def load_claims() -> pd.DataFrame:
    """The claims of all papers: id, paper, figure, quantity, expected, tolerance."""
    with resources.files("sgdphases").joinpath("claims/table.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def verdict_of(measured: float, low: float | None, high: float | None) -> str:
    """Whether a measured value lies within the claim's range; a missing bound is no bound."""
    inside = (low is None or measured >= low) and (high is None or measured <= high)
    return REPRODUCED if inside and not np.isnan(measured) else NOT_REPRODUCED


def evaluate_claims(tables: Mapping[str, ExperimentTables]) -> pd.DataFrame:
    """Score every claim.

    Args:
        tables: Tables of the experiments at hand, by `<paper>/<experiment>`.

    Returns:
        One row per claim: `id`, `paper`, `figure`, `quantity`, `expected`, `tolerance`, `low`,
        `high`, `measured`, `ci_low`, `ci_high`, `verdict`, `scale`, `dataset`, `experiment`,
        `detail`. A claim without an experiment at hand, or whose experiment lacks what the measure
        needs, is not run, and `detail` says why.
    """
    claims = load_claims()
    scores = [
        _score(claim, paper, tables)
        for claim, paper in zip(claims["id"], claims["paper"], strict=True)
    ]
    scored = pd.concat([claims, pd.DataFrame(scores)], axis=1)
    scored[list(_NUMBERS)] = scored[list(_NUMBERS)].astype("float64")
    return scored.astype(dict.fromkeys(_TEXTS, "string"))


def _score(
    claim: str, paper: str, tables: Mapping[str, ExperimentTables]
) -> dict[str, float | str | None]:
    empty: dict[str, float | str | None] = dict.fromkeys((*_NUMBERS, *_TEXTS))
    measure = MEASURES.get(claim)
    if measure is None:
        return {**empty, "verdict": NOT_RUN, "detail": "no experiment measures it yet"}
    experiment = f"{paper}/{measure.experiment}"
    known = {**empty, "low": measure.low, "high": measure.high, "experiment": experiment}
    found = tables.get(experiment)
    if found is None:
        detail = f"the experiment was not selected: {command_for(experiment, measure)}"
        return {**known, "verdict": NOT_RUN, "detail": detail}
    dataset = (found.spec.get("dataset") or {}).get("name")
    known |= {"scale": found.spec["scale"], "dataset": dataset}
    if measure.dataset not in (None, dataset) or measure.scale not in (None, found.spec["scale"]):
        subject = [measure.dataset, measure.scale and f"scale {measure.scale}"]
        about = " at ".join(part for part in subject if part)
        detail = f"a claim about {about} alone: {command_for(experiment, measure)}"
        return {**known, "verdict": NOT_RUN, "detail": detail}
    try:
        measurement = measure.measure(found)
    except ValueError as error:
        return {**known, "verdict": NOT_RUN, "detail": str(error)}
    return {
        **known,
        "measured": measurement.value,
        "ci_low": measurement.ci_low,
        "ci_high": measurement.ci_high,
        "verdict": (
            NOT_REPRODUCED
            if measurement.unmet
            else verdict_of(measurement.value, measure.low, measure.high)
        ),
        "detail": "; ".join(filter(None, (measurement.unmet, measurement.detail))),
    }


def command_for(experiment: str, measure: ClaimMeasure) -> str:
    """The command that scores a claim on the data and at the scale it is about."""
    scale = f" scale={measure.scale}" if measure.scale else ""
    data = " data=published" if measure.dataset else ""
    return f"snakemake -c2 results/claims.md --config 'experiments=[\"{experiment}\"]'{scale}{data}"


def write_scorecard(claims: pd.DataFrame, markdown: Path, page: Path) -> None:
    """Write the scorecard for reading: as Markdown and as a page for the report.

    Args:
        claims: What `evaluate_claims` returned.
        markdown: File to write Markdown to.
        page: File to write HTML to.
    """
    measured = _presentable(claims[claims["verdict"] != NOT_RUN])
    pending = claims[claims["verdict"] == NOT_RUN]
    pending = pending[["id", "paper", "figure", "quantity", "expected", "detail"]].fillna("")
    counts = pd.crosstab(claims["paper"], claims["verdict"]).reindex(
        columns=[REPRODUCED, NOT_REPRODUCED, NOT_RUN], fill_value=0
    )
    counts.loc["all"] = counts.sum()
    counts = counts.rename_axis(columns=None)
    write_text(_markdown(counts.reset_index(), measured, pending), markdown)
    write_text(_html(counts.reset_index(), measured, pending), page)


def _presentable(claims: pd.DataFrame) -> pd.DataFrame:
    def interval(low: float, high: float) -> str:
        if np.isnan(low) and np.isnan(high):
            return ""
        ends = ["" if np.isnan(end) else f"{end:.4g}" for end in (low, high)]
        return " … ".join(ends)

    columns = {
        "id": claims["id"],
        "figure": claims["figure"],
        "quantity": claims["quantity"],
        "expected": claims["expected"],
        "range": [interval(*pair) for pair in zip(claims["low"], claims["high"], strict=True)],
        "measured": [f"{value:.4g}" for value in claims["measured"]],
        "interval": [
            interval(*pair) for pair in zip(claims["ci_low"], claims["ci_high"], strict=True)
        ],
        "verdict": claims["verdict"],
        "scale": claims["scale"],
        "dataset": claims["dataset"].fillna("none: theory"),
        "detail": claims["detail"].fillna(""),
    }
    return pd.DataFrame(columns)


_EXPLANATION = (
    "A verdict compares the measured value with the range. Scale and dataset say what it was "
    "measured on: at smoke and quick, and on embedded data, a claim is about stand-ins of the "
    "paper's experiment."
)


def _markdown(counts: pd.DataFrame, measured: pd.DataFrame, pending: pd.DataFrame) -> str:
    parts = [
        "# Claims",
        _EXPLANATION,
        counts.to_markdown(index=False),
        "## Measured",
        _escape_pipes(measured).to_markdown(index=False, disable_numparse=True),
        "## Not run",
        _escape_pipes(pending).to_markdown(index=False, disable_numparse=True),
    ]
    return "\n\n".join(parts) + "\n"


def _escape_pipes(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda cell: str(cell).replace("|", "\\|"))


_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: 4px 8px; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { background: #f4f4f4; position: sticky; top: 0; }
td:nth-child(1), td:nth-child(5), td:nth-child(7) { white-space: nowrap; }
.reproduced { background: #d8efdc; } .not-reproduced { background: #f7d9d5; }
"""


def _html(counts: pd.DataFrame, measured: pd.DataFrame, pending: pd.DataFrame) -> str:
    table = measured.to_html(index=False, border=0)
    for verdict in (REPRODUCED, NOT_REPRODUCED):
        style = verdict.replace(" ", "-")
        table = table.replace(f"<td>{verdict}</td>", f'<td class="{style}">{verdict}</td>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Claims</title>'
        f"<style>{_STYLE}</style></head><body><h1>Claims</h1><p>{_EXPLANATION}</p>"
        f"{counts.to_html(index=False, border=0)}<h2>Measured</h2>{table}"
        f"<h2>Not run</h2>{pending.to_html(index=False, border=0)}</body></html>\n"
    )
