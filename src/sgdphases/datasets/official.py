"""Image classification sets prepared by their official tensorflow-datasets builders."""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import sha256_of
from sgdphases.datasets.sources import PIXEL_SCALE, RawData
from sgdphases.errors import InputError

logger = logging.getLogger(__name__)

READ_BATCH = 1000
NETWORK_TIMEOUT_SECONDS = 10

INSTALL = "install what it needs with: pip install 'sgdphases[datasets]'"


def read_tfds(tfds_name: str, work_dir: Path, manual_dir: Path | None) -> RawData:
    """Prepare a dataset with its official tensorflow-datasets builder and read it.

    The official files are taken from `manual_dir` where they are there, and downloaded otherwise.

    Args:
        tfds_name: The builder's name, such as "mnist", with optional config and version.
        work_dir: An existing folder for everything written on the way; the arrays returned are
            memory maps of files in it. The caller removes it.
        manual_dir: A folder with the official files as published, or None.

    Returns:
        uint8 images (samples, height, width, channels) and int32 labels, in the order in which
        tensorflow-datasets reads them without shuffling.

    Raises:
        InputError: tensorflow-datasets is not installed, does not know the dataset, or the dataset
            is not one of images with labels; an official file in `manual_dir` is truncated or
            wrong; a file is missing and cannot be downloaded.
    """
    with _temporary_files_in(work_dir):
        return _read(tfds_name, work_dir, manual_dir)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Redirect temporary files: TFDS makes folders in the system's and never removes them."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _read(tfds_name: str, work_dir: Path, manual_dir: Path | None) -> RawData:
    try:
        tfds = _import_tfds()
        builder = _make_builder(tfds, tfds_name, work_dir / "tfds")
        image_shape, num_classes = _image_features(tfds, builder, tfds_name)
        missing = _check_manual_files(builder, manual_dir)
        _import_tensorflow()
    except ImportError as error:
        raise InputError(f"dataset {tfds_name}: {error}; {INSTALL}") from error
    _download_and_prepare(tfds, builder, tfds_name, manual_dir, missing)
    train_inputs, train_targets = _read_split(tfds, builder, "train", image_shape, work_dir)
    test_inputs, test_targets = _read_split(tfds, builder, "test", image_shape, work_dir)
    return RawData(
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        num_classes=num_classes,
        scale=PIXEL_SCALE,
        origin={
            "description": f"official tensorflow-datasets builder {builder.info.full_name}",
            "homepage": builder.info.homepage,
            "citation": builder.info.citation,
            "files": {
                url: {"sha256": info.checksum, "bytes": int(info.size)}
                for url, info in sorted((builder.url_infos or {}).items())
            },
        },
        licence=builder.info.redistribution_info.license
        or f"not stated by tensorflow-datasets; see {builder.info.homepage}",
        sample_order="as tensorflow-datasets reads with shuffle_files=False; it shuffles once, "
        "the same way everywhere, when it writes its records",
        versions={"tensorflow-datasets": metadata.version("tensorflow-datasets")},
    )


def _import_tfds() -> Any:
    # Both are read when TensorFlow is imported: no start-up messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    # Its notices would otherwise reach the root logger's handlers.
    logging.getLogger("absl").setLevel(logging.WARNING)
    return tensorflow_datasets


def _import_tensorflow() -> None:
    import tensorflow

    # Decoding images needs no accelerator, and TensorFlow would take all of its memory. It
    # refuses to change this once in use, and then there is nothing left to prevent.
    with contextlib.suppress(RuntimeError):
        tensorflow.config.set_visible_devices([], "GPU")


def _make_builder(tfds: Any, tfds_name: str, data_dir: Path) -> Any:
    try:
        return tfds.builder(tfds_name, data_dir=data_dir, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise InputError(
            f"dataset {tfds_name}: not known to tensorflow-datasets "
            f"{metadata.version('tensorflow-datasets')}: {first_line}"
        ) from error


def _image_features(tfds: Any, builder: Any, tfds_name: str) -> tuple[tuple[int, ...], int]:
    """Give the image shape and the number of classes of an image classification set."""
    features = builder.info.features
    usable = (
        isinstance(features, tfds.features.FeaturesDict)
        and {"image", "label"} <= set(features.keys())
        and isinstance(features["image"], tfds.features.Image)
        and isinstance(features["label"], tfds.features.ClassLabel)
    )
    if not usable:
        raise InputError(
            f"dataset {tfds_name}: not usable here; allowed: tensorflow-datasets sets with the "
            f"features 'image' and 'label'"
        )
    image, label = features["image"], features["label"]
    if None in image.shape or image.np_dtype != np.uint8:
        raise InputError(
            f"dataset {tfds_name}: images of shape {image.shape} and type {image.np_dtype}; "
            f"allowed: 8-bit images all of one size"
        )
    return tuple(image.shape), int(label.num_classes)


def _check_manual_files(builder: Any, manual_dir: Path | None) -> dict[str, str]:
    """Check the official files in `manual_dir`; return the missing ones, file name to address."""
    if manual_dir is not None and not manual_dir.is_dir():
        raise InputError(f"{manual_dir}: no such folder; manual_dir must hold the official files")
    missing = {}
    for url, expected in sorted((builder.url_infos or {}).items()):
        # TFDS looks in manual_dir only for files whose published name it has recorded.
        path = manual_dir / expected.filename if manual_dir and expected.filename else None
        if path is None or not path.is_file():
            missing[expected.filename or url.rsplit("/", 1)[-1]] = url
            continue
        found_size = path.stat().st_size
        if found_size != expected.size:
            fault = "truncated" if found_size < expected.size else "not the official file"
            raise InputError(
                f"{path}: {fault}: {found_size} bytes found, {int(expected.size)} expected; "
                f"download it again from {url}"
            )
        found_checksum = sha256_of(path)
        if found_checksum != expected.checksum:
            raise InputError(
                f"{path}: wrong content: SHA-256 {found_checksum} found, {expected.checksum} "
                f"expected; download it again from {url}"
            )
    return missing


def _download_and_prepare(
    tfds: Any, builder: Any, tfds_name: str, manual_dir: Path | None, missing: dict[str, str]
) -> None:
    """Let the builder write its records, downloading what is missing."""
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    folder = "no manual_dir given" if manual_dir is None else f"not in {manual_dir}"
    place = "a folder and give it as manual_dir" if manual_dir is None else str(manual_dir)
    advice = f"put {', '.join(missing.values())} into {place}, or run again with network access"
    if missing:
        logger.info("%s: downloading %s (%s)", tfds_name, ", ".join(missing), folder)
        # Builders with several configs list the files of all of them; not all may be needed.
        if not builder.BUILDER_CONFIGS:
            _require_network(tfds_name, missing, folder, advice)
    logger.info("%s: tensorflow-datasets writes its records; this takes a while", tfds_name)
    try:
        # It announces itself on standard output, which belongs to the caller.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, try_download_gcs=False
                )
            )
    except (requests.RequestException, tfds.download.DownloadError) as error:
        raise InputError(
            f"dataset {tfds_name}: download failed ({type(error).__name__}; {folder}); {advice}"
        ) from error
    except NonMatchingChecksumError as error:
        raise InputError(
            f"dataset {tfds_name}: a downloaded file is not the official one; {advice}"
        ) from error
    except (AssertionError, OSError) as error:
        raise InputError(f"dataset {tfds_name}: tensorflow-datasets stopped: {error}") from error


def _require_network(tfds_name: str, missing: dict[str, str], folder: str, advice: str) -> None:
    """Fail within seconds where there is no network; TFDS itself retries for minutes."""
    import requests

    for url in missing.values():
        try:
            requests.head(url, timeout=NETWORK_TIMEOUT_SECONDS, allow_redirects=True)
        except requests.RequestException as error:
            raise InputError(
                f"dataset {tfds_name}: {', '.join(missing)} missing ({folder}) and no network; "
                f"{advice}"
            ) from error


def _read_split(
    tfds: Any, builder: Any, split: str, image_shape: tuple[int, ...], work_dir: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Read one split in the builder's own order, a batch at a time."""
    if split not in builder.info.splits:
        raise InputError(
            f"dataset {builder.info.full_name}: has no split {split!r}, only "
            f"{', '.join(sorted(builder.info.splits))}"
        )
    num_samples = builder.info.splits[split].num_examples
    logger.info("%s: reading %d %s samples", builder.info.name, num_samples, split)
    images = np.lib.format.open_memmap(
        work_dir / f"{split}_images.npy", "w+", np.uint8, (num_samples, *image_shape)
    )
    labels = np.empty(num_samples, dtype=np.int32)
    start = 0
    batches = builder.as_dataset(split=split, shuffle_files=False, batch_size=READ_BATCH)
    for batch in tfds.as_numpy(batches):
        stop = start + len(batch["label"])
        images[start:stop] = batch["image"]
        labels[start:stop] = batch["label"]
        start = stop
    if start != num_samples or labels.min() < 0:
        raise InputError(
            f"dataset {builder.info.full_name}: split {split!r} gave {start} labelled samples of "
            f"{num_samples}"
        )
    return images, labels
