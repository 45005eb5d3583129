"""What the jobs took: hours, and hours of GPUs or TPUs, from Snakemake's benchmark files."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sgdphases.planning import NOTE_NAME
from sgdphases.storage import write_text

_SHARD = re.compile(r"(?P<stage>training|curvature|edge_search)_(?P<shard>[0-9a-f]{12})")
# What `sgdphases.devices.check_accelerator` logs.
_COMPUTING = re.compile(r"^computing on (?P<number>\d+) x (?P<device>.+) \(\w+\)$", re.MULTILINE)
_TEXTS = ("subject", "stage", "job", "device")
_NUMBERS = ("num_devices", "hours", "device_hours", "cpu_hours", "max_memory_mib")


def collect_usage(results: Path) -> pd.DataFrame:
    """One row for each finished job that was measured.

    What a job took before it was killed or failed is not in it: Snakemake writes a benchmark file
    at the end of a job.

    Args:
        results: The results folder.

    Returns:
        `subject` (`<paper>/<experiment>`, `datasets`, `diffusion/<dataset>`), `stage`, `job`,
        `device` and `num_devices` where the job's note or log says so, wall-clock `hours`,
        `device_hours` of accelerators, `cpu_hours`, `max_memory_mib`.
    """
    folder = results / "benchmarks"
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        subject = path.parent.relative_to(folder).as_posix()
        shard = _SHARD.fullmatch(path.stem)
        stage = shard["stage"] if shard else path.stem.partition("_")[0]
        stage = "dataset" if subject == "datasets" else stage
        note = (shard and _note_of(results, subject, shard)) or _logged_device(
            results / "logs" / subject / f"{path.stem}.log"
        )
        measured = pd.read_csv(path, sep="\t", na_values=["-", "NA"]).iloc[-1]
        device, hours = note.get("device"), float(measured["s"]) / 3600
        num_devices = int(note.get("num_devices", 0)) if device not in (None, "cpu") else 0
        rows.append(
            {
                "subject": subject,
                "stage": stage,
                "job": path.stem,
                "device": device,
                "num_devices": num_devices,
                "hours": hours,
                "device_hours": hours * num_devices,
                "cpu_hours": float(measured["cpu_time"]) / 3600,
                "max_memory_mib": float(measured["max_rss"]),
            }
        )
    table = pd.DataFrame(rows, columns=["subject", "stage", "job", "device", *_NUMBERS])
    return table.astype({**dict.fromkeys(_TEXTS, "string"), "num_devices": "int64"})


def summarise_usage(usage: pd.DataFrame) -> pd.DataFrame:
    """Sums by subject, stage and device, and over all.

    Args:
        usage: What `collect_usage` returned.

    Returns:
        `subject`, `stage`, `device`, `jobs`, `hours`, `device_hours`, `cpu_hours`, and the largest
        of `max_memory_mib`; the last row is the whole.
    """
    known = usage.assign(device=usage["device"].fillna(""))
    aggregations = {
        "jobs": ("job", "count"),
        "hours": ("hours", "sum"),
        "device_hours": ("device_hours", "sum"),
        "cpu_hours": ("cpu_hours", "sum"),
        "max_memory_mib": ("max_memory_mib", "max"),
    }
    by_stage = known.groupby(["subject", "stage", "device"], as_index=False).agg(**aggregations)
    whole = known.assign(subject="all", stage="", device="")
    total = whole.groupby(["subject", "stage", "device"], as_index=False).agg(**aggregations)
    return pd.concat([by_stage, total], ignore_index=True)


def write_usage_page(usage: pd.DataFrame, page: Path) -> None:
    """Write the sums as a page for the report."""
    table = summarise_usage(usage).rename(
        columns={
            "subject": "experiment",
            "device_hours": "GPU or TPU hours",
            "cpu_hours": "CPU hours",
            "max_memory_mib": "largest memory (MiB)",
        }
    )
    text = table.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}")
    title = html.escape("What the jobs took")
    write_text(
        f"<!DOCTYPE html><html><head><meta charset='utf-8'><title>{title}</title></head>"
        f"<body style='font-family: sans-serif'><h1>{title}</h1>{text}</body></html>\n",
        page,
    )


def _note_of(results: Path, subject: str, shard: Mapping[str, Any] | re.Match[str]) -> Any:
    """The note of a shard; empty where there is none."""
    path = results / "experiments" / subject / f"{shard['stage']}_shards" / shard["shard"]
    try:
        return json.loads((path / NOTE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _logged_device(log: Path) -> dict[str, str | int]:
    """What a job's log says that it computed on; empty where it says nothing."""
    try:
        found = list(_COMPUTING.finditer(log.read_text(encoding="utf-8")))
    except OSError:
        return {}
    return {"device": found[-1]["device"], "num_devices": int(found[-1]["number"])} if found else {}
