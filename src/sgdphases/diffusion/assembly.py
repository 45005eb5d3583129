"""Put the shards of a generated dataset together."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import MANIFEST_FILE, ArrayWriter, describe_array
from sgdphases.datasets.loading import load, verify
from sgdphases.datasets.statistics import input_statistics
from sgdphases.diffusion.classes import shard_classes
from sgdphases.errors import InputError
from sgdphases.storage import replacing, write_text

Images = npt.NDArray[np.uint8]

# Of the definition, what the manifest tells.
_ORIGIN = ("num_shards", "seed", "process", "network", "training", "sampling")


def write_shard(images: Images, path: Path) -> None:
    """Write the images of a shard, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, images, allow_pickle=False)


def assemble(
    name: str, definition: Mapping[str, Any], shards: Sequence[Path], base: Path, output: Path
) -> None:
    """Write the arrays of a generated dataset and, last, their manifest.

    One shard at a time is in memory. The test samples, the normalisation and what else the manifest
    says of the data are those of the base dataset.

    Args:
        name: The dataset's name.
        definition: Its resolved definition.
        shards: Files with the shards' images, in order.
        base: Folder of the base dataset.
        output: Folder of the dataset.

    Raises:
        InputError: A shard or the base dataset is damaged.
    """
    verify(base)
    real = load(base, most_normalised_bytes=0)
    num_images, num_classes = definition["num_images"], real.num_outputs
    size = num_images // len(shards)
    output.mkdir(parents=True, exist_ok=True)
    # An older manifest must not vouch for arrays that are being replaced.
    (output / MANIFEST_FILE).unlink(missing_ok=True)
    with (
        replacing(output / "train_inputs.npy") as temporary,
        ArrayWriter(temporary, real.input_shape, np.uint8) as writer,
    ):
        for path in shards:
            writer.append(_read_shard(path, (size, *real.input_shape)))
    classes = np.concatenate([shard_classes(i, size, num_classes) for i in range(len(shards))])
    with replacing(output / "train_targets.npy") as temporary, temporary.open("wb") as file:
        np.save(file, classes, allow_pickle=False)
    for array in ("test_inputs", "test_targets"):
        with replacing(output / f"{array}.npy") as temporary:
            shutil.copyfile(base / real.manifest["arrays"][array]["file"], temporary)
    statistics = input_statistics(output / "train_inputs.npy", real.input_shape[-1])
    manifest = {
        **real.manifest,
        "name": name,
        "source": definition["source"],
        "num_train": num_images,
        "arrays": {
            array: describe_array(output / f"{array}.npy") for array in real.manifest["arrays"]
        },
        "class_balance": {
            **real.manifest["class_balance"],
            "train": np.bincount(classes, minlength=num_classes).tolist(),
        },
        "train_inputs_raw": statistics.describe(per_channel=True),
        "normalisation": {**real.manifest["normalisation"], "from": f"dataset {real.name}"},
        "sample_order": "as drawn, shard by shard; the classes take turns",
        "origin": {
            "description": f"drawn from a diffusion model of {real.name} (Ho et al. 2020, Ho and "
            f"Salimans 2022); the test samples are those of {real.name}",
            "base": {"name": real.name, "origin": real.manifest["origin"]},
            **{key: definition[key] for key in _ORIGIN},
        },
        "licence": f"drawn by the user; of {real.name}: {real.manifest['licence']}",
        "versions": {package: metadata.version(package) for package in ("numpy", "jax", "optax")},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(f"{text}\n", output / MANIFEST_FILE)


def _read_shard(path: Path, shape: tuple[int, ...]) -> Images:
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: no readable shard ({error}); delete it and run again") from None
    if images.shape != shape or images.dtype != np.uint8:
        raise InputError(
            f"{path}: {images.dtype} images of shape {images.shape} found, uint8 of shape {shape} "
            "expected; delete it and run again"
        )
    return np.ascontiguousarray(images)
