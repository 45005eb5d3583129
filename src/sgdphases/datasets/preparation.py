"""Turning a dataset definition into a folder of arrays with a manifest."""

import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sgdphases.datasets.arrays import (
    ARRAY_NAMES,
    MANIFEST_FILE,
    Array,
    ArrayWriter,
    describe_array,
    describe_file,
)
from sgdphases.datasets.cifar5m import read_cifar5m
from sgdphases.datasets.definition import validate_definition
from sgdphases.datasets.generated import read_gaussian_mixture, read_single_index
from sgdphases.datasets.image_folder import read_image_folder
from sgdphases.datasets.official import read_tfds
from sgdphases.datasets.sources import (
    RawData,
    read_digits,
    read_gaussian,
    read_npz,
    read_points,
)
from sgdphases.datasets.statistics import Statistics, input_statistics
from sgdphases.datasets.tiny_imagenet import read_tiny_imagenet
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError
from sgdphases.fingerprint import stage_fingerprint

logger = logging.getLogger(__name__)

# Inputs with this many axes are images with channels last.
IMAGE_NDIM = 4


def prepare(
    name: str,
    definition: dict[str, Any],
    output_dir: Path,
    manual_dir: Path | None,
    num_threads: int = 1,
) -> None:
    """Write the arrays of a dataset and, last, their manifest.

    Everything is written in a work folder beside `output_dir` and moved into place when it is
    complete. The same definition and data give the same bytes. After an interruption the work
    folder keeps finished downloads and, for `cifar5m`, finished parts; the next call goes on with
    them.

    Args:
        name: The dataset's name.
        definition: Its definition, as `load_definition` gives it.
        output_dir: Where the arrays go; created where it does not exist.
        manual_dir: A folder with official files downloaded earlier, or None.
        num_threads: How many images are decoded at a time.

    Raises:
        InputError: The definition or the data is faulty, a file cannot be read or written, or the
            disk is too small; `output_dir` is then left as it was.
    """
    validate_definition(definition, f"dataset {name}")
    # Resolved, so that the final moves stay within one file system behind a linked folder.
    output_dir = output_dir.resolve()
    work = WorkFolder(name, output_dir.with_name(f".{name}.partial"), num_threads)
    work.open({"definition": definition, "code": stage_fingerprint("datasets.preparation")})
    try:
        raw = _read_source(definition, work, manual_dir)
        for array_name in ARRAY_NAMES:
            _store(getattr(raw, array_name), work.arrays / f"{array_name}.npy")
        is_image = raw.train_inputs.ndim == IMAGE_NDIM
        statistics = input_statistics(
            work.arrays / "train_inputs.npy", raw.train_inputs.shape[-1] if is_image else 1
        )
        normalisation = _resolve_normalisation(name, definition, raw, statistics)
        manifest = _describe(name, definition, raw, statistics, normalisation, work.arrays)
        (work.arrays / MANIFEST_FILE).write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        _move_into_place(work.arrays, output_dir, raw.files)
    except OSError as error:
        work.close()
        raise InputError(
            f"dataset {name}: {error.filename or work.path}: {error.strerror or error}"
        ) from error
    except BaseException:
        work.close()
        raise
    work.remove()
    logger.info(
        "%s: %d training and %d test samples", name, manifest["num_train"], manifest["num_test"]
    )


def _read_source(definition: dict[str, Any], work: WorkFolder, manual_dir: Path | None) -> RawData:
    options = {
        key: value for key, value in definition.items() if key not in ("source", "normalisation")
    }
    if "path" in options:
        options["path"] = Path(options["path"]).expanduser()
    match definition["source"]:
        case "diffusion":
            raise InputError(
                f"dataset {work.dataset}: is drawn by other rules; allowed: any other source, or "
                f"snakemake results/datasets/{work.dataset}/manifest.json"
            )
        case "digits":
            return read_digits()
        case "tfds":
            return read_tfds(**options, work=work, manual_dir=manual_dir)
        case "cifar5m":
            return read_cifar5m(**options, work=work, manual_dir=manual_dir)
        case "tiny_imagenet":
            return read_tiny_imagenet(work=work, manual_dir=manual_dir)
        case "npz":
            return read_npz(**options, work=work)
        case "folder":
            return read_image_folder(**options, work=work)
        case "points":
            return read_points(**options)
        case "gaussian":
            return read_gaussian(**options)
        case "gaussian_mixture":
            return read_gaussian_mixture(**options)
        case "single_index":
            return read_single_index(**options)
    raise AssertionError(f"source {definition['source']!r} passed the schema but is not handled")


def _store(array: Array, path: Path) -> None:
    """Write an array that its source has not written there itself."""
    if not (isinstance(array, np.memmap) and Path(str(array.filename)) == path):
        with ArrayWriter(path, array.shape[1:], array.dtype) as writer:
            writer.append(array)


def _move_into_place(finished_dir: Path, output_dir: Path, files: tuple[str, ...]) -> None:
    """Move the files one by one, as the workflow may have created `output_dir` already."""
    output_dir.mkdir(exist_ok=True)
    # An older manifest must not vouch for arrays that are being replaced.
    (output_dir / MANIFEST_FILE).unlink(missing_ok=True)
    for file in (*(f"{array_name}.npy" for array_name in ARRAY_NAMES), *files, MANIFEST_FILE):
        (finished_dir / file).replace(output_dir / file)


def _resolve_normalisation(
    name: str, definition: dict[str, Any], raw: RawData, statistics: Statistics
) -> dict[str, Any]:
    """Give the numbers of x = (raw * scale - mean) / std."""
    choice = definition.get("normalisation", "none")
    if choice == "none":
        return {"mean": 0.0, "std": 1.0, "scale": raw.scale, "from": "none"}
    if choice == "standardise":
        mean, std = statistics.channel_mean, statistics.channel_std
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


def _describe(
    name: str,
    definition: dict[str, Any],
    raw: RawData,
    statistics: Statistics,
    normalisation: dict[str, Any],
    finished_dir: Path,
) -> dict[str, Any]:
    """Make the manifest; nothing in it depends on the time or on this machine's folders."""
    is_classification = raw.num_classes is not None
    is_image = raw.train_inputs.ndim == IMAGE_NDIM
    return {
        "name": name,
        "source": definition["source"],
        "task": "classification" if is_classification else "regression",
        "num_classes": raw.num_classes,
        "num_outputs": raw.num_classes if is_classification else raw.train_targets.shape[1],
        "num_train": len(raw.train_inputs),
        "num_test": len(raw.test_inputs),
        "arrays": {
            array_name: describe_array(finished_dir / f"{array_name}.npy")
            for array_name in ARRAY_NAMES
        },
        "class_balance": {
            "train": np.bincount(raw.train_targets, minlength=raw.num_classes).tolist(),
            "test": np.bincount(raw.test_targets, minlength=raw.num_classes).tolist(),
        }
        if raw.num_classes is not None
        else None,
        "class_names": raw.class_names,
        "train_inputs_raw": statistics.describe(is_image),
        "tokens": raw.tokens,
        "files": {file: describe_file(finished_dir / file) for file in raw.files},
        "normalisation": normalisation,
        "stream": raw.stream,
        "sample_order": raw.sample_order,
        "origin": raw.origin,
        "licence": raw.licence,
        "versions": {"numpy": metadata.version("numpy"), **raw.versions},
    }
