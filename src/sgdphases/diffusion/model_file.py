"""The file that a trained denoiser is kept in."""

import dataclasses
import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sgdphases.diffusion.unet import Denoiser, build_unet
from sgdphases.errors import InputError
from sgdphases.models.network import Parameters
from sgdphases.storage import replacing

_METADATA = "metadata"


@dataclass(frozen=True)
class TrainedDenoiser:
    """A trained network and what its samples look like.

    Attributes:
        network: Settings of the network, as `build_unet` reads them.
        image_shape: (height, width, channels).
        num_classes: Number of classes.
        scale: Factor from 8-bit values to [0, 1].
        mean: Mean of the base dataset's pixels on [0, 1].
        deviation: Their standard deviation.
        parameters: The averaged parameters.
    """

    network: dict[str, Any]
    image_shape: tuple[int, ...]
    num_classes: int
    scale: float
    mean: float
    deviation: float
    parameters: Parameters

    def build(self) -> Denoiser:
        """The network as functions."""
        return build_unet(self.network, self.image_shape, self.num_classes)

    def digest(self) -> str:
        """Hash of the parameters, in hexadecimal."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.parameters):
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()


def write_model(model: TrainedDenoiser, path: Path) -> None:
    """Write a trained denoiser, atomically and without pickles."""
    metadata = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name != "parameters"
    }
    leaves = jax.tree.leaves(model.parameters)
    arrays = {f"array_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_METADATA: text}, **arrays)


def read_model(path: Path) -> TrainedDenoiser:
    """Read a trained denoiser.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            metadata = json.loads(file[_METADATA].tobytes())
            metadata["image_shape"] = tuple(metadata["image_shape"])
            model = TrainedDenoiser(**metadata, parameters=None)
            like = jax.eval_shape(model.build().init, jax.random.key(0))
            shapes, structure = jax.tree.flatten(like)
            leaves = [file[f"array_{i}"] for i in range(len(shapes))]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: the model is not trained") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no readable model ({error}); delete it and run again") from None
    if [leaf.shape for leaf in leaves] != [shape.shape for shape in shapes]:
        raise InputError(f"{path}: a model of other shapes; delete it and run again")
    return dataclasses.replace(model, parameters=jax.tree.unflatten(structure, leaves))
