"""Turning a dataset definition into a folder of arrays with a manifest."""

import json
import logging
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sgdphases.datasets.arrays import Array, sha256_of
from sgdphases.datasets.definition import validate_definition
from sgdphases.datasets.loading import ARRAY_NAMES, MANIFEST_FILE
from sgdphases.datasets.official import read_tfds
from sgdphases.datasets.sources import (
    RawData,
    read_digits,
    read_gaussian,
    read_npz,
    read_points,
)
from sgdphases.errors import InputError

logger = logging.getLogger(__name__)

# Statistics go through the samples in blocks of this many values, to bound the memory.
BLOCK_VALUES = 2**22

# Inputs with this many axes are images with channels last.
IMAGE_NDIM = 4


def prepare(
    name: str, definition: dict[str, Any], output_dir: Path, manual_dir: Path | None
) -> None:
    """Write the arrays of a dataset and, last, their manifest.

    Everything is written in a temporary folder beside `output_dir` and moved into place when it is
    complete. The same definition and data give the same bytes.

    Args:
        name: The dataset's name.
        definition: Its definition, as `load_definition` gives it.
        output_dir: Where the arrays go; created where it does not exist.
        manual_dir: A folder with official files downloaded earlier (source tfds), or None.

    Raises:
        InputError: The definition or the data is faulty; `output_dir` is then left as it was.
    """
    validate_definition(definition, f"dataset {name}")
    # Resolved, so that the final moves stay within one file system behind a linked folder.
    output_dir = output_dir.resolve()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{name}-", ".partial"
    for leftover in output_dir.parent.glob(f"{prefix}*{suffix}"):
        logger.info("%s: removing what an interrupted run left behind", name)
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(
        prefix=prefix, suffix=suffix, dir=output_dir.parent
    ) as work_name:
        work_dir = Path(work_name)
        raw = _read_source(definition, work_dir, manual_dir)
        normalisation = _resolve_normalisation(name, definition, raw)
        finished_dir = work_dir / "finished"
        finished_dir.mkdir()
        for array_name in ARRAY_NAMES:
            np.save(
                finished_dir / f"{array_name}.npy",
                np.ascontiguousarray(getattr(raw, array_name)),
                allow_pickle=False,
            )
        manifest = _describe(name, definition, raw, normalisation, finished_dir)
        (finished_dir / MANIFEST_FILE).write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        _move_into_place(finished_dir, output_dir)
    logger.info(
        "%s: %d training and %d test samples", name, manifest["num_train"], manifest["num_test"]
    )


def _read_source(definition: dict[str, Any], work_dir: Path, manual_dir: Path | None) -> RawData:
    match definition["source"]:
        case "digits":
            return read_digits()
        case "tfds":
            return read_tfds(definition["tfds_name"], work_dir, manual_dir)
        case "npz":
            return read_npz(Path(definition["path"]).expanduser(), definition.get("num_classes"))
        case "points":
            return read_points(definition["inputs"], definition["targets"])
        case "gaussian":
            options = {key: value for key, value in definition.items() if key != "source"}
            return read_gaussian(**options)
    raise AssertionError(f"source {definition['source']!r} passed the schema but is not handled")


def _move_into_place(finished_dir: Path, output_dir: Path) -> None:
    """Move the files one by one, as the workflow may have created `output_dir` already."""
    output_dir.mkdir(exist_ok=True)
    # An older manifest must not vouch for arrays that are being replaced.
    (output_dir / MANIFEST_FILE).unlink(missing_ok=True)
    for array_name in ARRAY_NAMES:
        (finished_dir / f"{array_name}.npy").replace(output_dir / f"{array_name}.npy")
    (finished_dir / MANIFEST_FILE).replace(output_dir / MANIFEST_FILE)


def _resolve_normalisation(name: str, definition: dict[str, Any], raw: RawData) -> dict[str, Any]:
    """Give the numbers of x = (raw * scale - mean) / std."""
    choice = definition.get("normalisation", "none")
    if choice == "none":
        return {"mean": 0.0, "std": 1.0, "scale": raw.scale, "from": "none"}
    if choice == "standardise":
        mean, std = _moments(raw.train_inputs, per_channel=raw.train_inputs.ndim == IMAGE_NDIM)
        if not (np.isfinite(std).all() and (std > 0).all()):
            raise InputError(
                f"dataset {name}: normalisation: 'standardise' is impossible, the training inputs "
                f"have standard deviation {np.squeeze(std).tolist()}"
            )
        return {
            "mean": _as_json(mean * raw.scale),
            "std": _as_json(std * raw.scale),
            "scale": raw.scale,
            "from": "mean and standard deviation of all training inputs",
        }
    num_channels = raw.train_inputs.shape[-1]
    for key in ("mean", "std"):
        if isinstance(choice[key], list) and len(choice[key]) not in (1, num_channels):
            raise InputError(
                f"dataset {name}: normalisation.{key}: {len(choice[key])} numbers; allowed: one "
                f"number, or {num_channels}, one per channel"
            )
    return {
        "mean": _as_json(np.array(choice["mean"], dtype=np.float64)),
        "std": _as_json(np.array(choice["std"], dtype=np.float64)),
        "scale": raw.scale,
        "from": "dataset definition",
    }


def _as_json(values: Array) -> float | list[float]:
    """Give a single number where there is only one."""
    flat: list[float] = np.ravel(values).tolist()
    return flat[0] if len(flat) == 1 else flat


def _moments(inputs: Array, per_channel: bool) -> tuple[Array, Array]:
    """Compute mean and standard deviation in float64, over everything or for each last index."""
    columns = inputs.reshape(-1, inputs.shape[-1] if per_channel else 1)
    block_rows = max(1, BLOCK_VALUES // columns.shape[1])
    blocks = [slice(start, start + block_rows) for start in range(0, len(columns), block_rows)]
    total = np.zeros(columns.shape[1])
    for block in blocks:
        total += columns[block].sum(axis=0, dtype=np.float64)
    mean = total / len(columns)
    squares = np.zeros(columns.shape[1])
    for block in blocks:
        squares += ((columns[block] - mean) ** 2).sum(axis=0)
    return mean, np.sqrt(squares / len(columns))


def _describe(
    name: str,
    definition: dict[str, Any],
    raw: RawData,
    normalisation: dict[str, Any],
    finished_dir: Path,
) -> dict[str, Any]:
    """Make the manifest; nothing in it depends on the time or on this machine's folders."""
    mean, std = _moments(raw.train_inputs, per_channel=False)
    is_classification = raw.num_classes is not None
    return {
        "name": name,
        "source": definition["source"],
        "task": "classification" if is_classification else "regression",
        "num_classes": raw.num_classes,
        "num_outputs": raw.num_classes if is_classification else raw.train_targets.shape[1],
        "num_train": len(raw.train_inputs),
        "num_test": len(raw.test_inputs),
        "arrays": {
            array_name: _describe_array(finished_dir / f"{array_name}.npy")
            for array_name in ARRAY_NAMES
        },
        "class_balance": {
            "train": np.bincount(raw.train_targets, minlength=raw.num_classes).tolist(),
            "test": np.bincount(raw.test_targets, minlength=raw.num_classes).tolist(),
        }
        if raw.num_classes is not None
        else None,
        "train_inputs_raw": {
            "min": raw.train_inputs.min().item(),
            "max": raw.train_inputs.max().item(),
            "mean": mean.item(),
            "std": std.item(),
        },
        "normalisation": normalisation,
        "sample_order": raw.sample_order,
        "origin": raw.origin,
        "licence": raw.licence,
        "versions": {"numpy": metadata.version("numpy"), **raw.versions},
    }


def _describe_array(path: Path) -> dict[str, Any]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {
        "file": path.name,
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }
