"""Sets of labelled images or texts, prepared by their official tensorflow-datasets builders."""

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sgdphases.datasets.arrays import Array, ArrayWriter
from sgdphases.datasets.fetching import (
    INSTALL,
    PublishedFile,
    check_content,
    check_manual_dir,
    fetch,
    locate,
)
from sgdphases.datasets.images import store_images
from sgdphases.datasets.progress import Progress, telling_growth
from sgdphases.datasets.sources import PIXEL_SCALE, RawData
from sgdphases.datasets.text import RULE, make_vocabulary, token_type, tokenise
from sgdphases.datasets.work_folder import WorkFolder
from sgdphases.errors import InputError

logger = logging.getLogger(__name__)

READ_BATCH = 1000
VOCABULARY_FILE = "vocabulary.txt"


def read_tfds(
    tfds_name: str,
    work: WorkFolder,
    manual_dir: Path | None,
    train_split: str = "train",
    test_split: str = "test",
    image_size: int | None = None,
    vocabulary_size: int | None = None,
    length: int | None = None,
) -> RawData:
    """Prepare a dataset with its official tensorflow-datasets builder and read it.

    The official files are taken from `manual_dir` where they are there, and downloaded otherwise.

    Args:
        tfds_name: The builder's name, such as "mnist", with optional config and version.
        work: Where the arrays and everything on the way to them are written.
        manual_dir: A folder with the official files as published, or None.
        train_split: The split of the training samples, or a slice of one, as train[:80%].
        test_split: The split of the test samples, alike.
        image_size: Height and width that images are brought to, shorter side first, then cut
            around the centre; None for images that are all of one size.
        vocabulary_size: Number of tokens of a set of texts, see `sgdphases.datasets.text`.
        length: Number of tokens that each text is cut or filled up to.

    Returns:
        uint8 images (samples, height, width, channels) or tokens (samples, length), and int32
        labels, in the order in which tensorflow-datasets reads them without shuffling.

    Raises:
        InputError: tensorflow-datasets is not installed, does not know the dataset, or the dataset
            is not one of images or texts with labels; an official file in `manual_dir` is truncated
            or wrong; a file is missing and cannot be downloaded.
    """
    splits = {"train": train_split, "test": test_split}
    with _temporary_files_in(work.scratch):
        try:
            tfds = _import_tfds()
            builder = _make_builder(tfds, tfds_name, work.scratch / "tfds")
            samples: _Images | _Texts
            if _kind_of(tfds, builder, tfds_name) == "image":
                _check_image_options(builder, tfds_name, image_size, vocabulary_size, length)
                samples = _Images(tfds, builder, work, image_size)
            else:
                if vocabulary_size is None or length is None or image_size is not None:
                    raise InputError(
                        f"dataset {tfds_name}: a set of texts; allowed: vocabulary_size and "
                        f"length, both, and no image_size"
                    )
                samples = _Texts(tfds, builder, work, vocabulary_size, length)
            official_dir = _find_official_files(builder, tfds_name, work, manual_dir)
            _import_tensorflow()
        except ImportError as error:
            raise InputError(f"dataset {tfds_name}: {error}; {INSTALL}") from error
        _download_and_prepare(tfds, builder, tfds_name, work, official_dir)
        for split in splits.values():
            _check_split(builder, split)
        samples.begin(splits)
        targets = {}
        for name, split in splits.items():
            targets[name] = samples.store(split, work.arrays / f"{name}_inputs.npy")
            if targets[name].min() < 0:
                raise InputError(f"dataset {tfds_name}: split {split!r} has no labels")
    label = builder.info.features["label"]
    return RawData(
        train_inputs=np.load(work.arrays / "train_inputs.npy", mmap_mode="r"),
        train_targets=targets["train"],
        test_inputs=np.load(work.arrays / "test_inputs.npy", mmap_mode="r"),
        test_targets=targets["test"],
        num_classes=int(label.num_classes),
        scale=samples.scale,
        origin={
            "description": f"official tensorflow-datasets builder {builder.info.full_name}",
            "homepage": builder.info.homepage,
            "citation": builder.info.citation,
            "files": {
                url: {"sha256": info.checksum, "bytes": int(info.size)}
                for url, info in sorted((builder.url_infos or {}).items())
            },
            "splits": splits,
            "image_size": image_size,
        },
        licence=builder.info.redistribution_info.license
        or f"not stated by tensorflow-datasets; see {builder.info.homepage}",
        sample_order="as tensorflow-datasets reads with shuffle_files=False; it shuffles once, "
        "the same way everywhere, when it writes its records",
        versions={"tensorflow-datasets": metadata.version("tensorflow-datasets")},
        class_names=label.names,
        tokens=samples.tokens,
        files=samples.files,
    )


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Redirect temporary files: TFDS makes folders in the system's and never removes them."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _import_tfds() -> Any:
    # Both are read when TensorFlow is imported: no start-up messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    # Its notices and warnings would otherwise reach the root logger's handlers.
    logging.getLogger("absl").setLevel(logging.ERROR)
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


def _kind_of(tfds: Any, builder: Any, tfds_name: str) -> str:
    """Whether a set is one of images or of texts."""
    features = builder.info.features
    is_named = isinstance(features, tfds.features.FeaturesDict)
    known = dict(features.items()) if is_named else {}
    if isinstance(known.get("label"), tfds.features.ClassLabel):
        for name, kind in (("image", tfds.features.Image), ("text", tfds.features.Text)):
            if isinstance(known.get(name), kind):
                return name
    raise InputError(
        f"dataset {tfds_name}: not usable here; allowed: tensorflow-datasets sets with the "
        f"features 'image' and 'label', or 'text' and 'label'"
    )


def _check_image_options(
    builder: Any,
    tfds_name: str,
    image_size: int | None,
    vocabulary_size: int | None,
    length: int | None,
) -> None:
    if vocabulary_size is not None or length is not None:
        raise InputError(
            f"dataset {tfds_name}: a set of images; allowed: no vocabulary_size and no length"
        )
    image = builder.info.features["image"]
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise InputError(
            f"dataset {tfds_name}: images of shape {image.shape} and type {image.np_dtype}; "
            f"allowed: 8-bit images of 1 or 3 channels"
        )
    if None in image.shape and image_size is None:
        raise InputError(
            f"dataset {tfds_name}: images of shape {image.shape}; give image_size in the dataset "
            f"definition to bring all to one size"
        )


def _find_official_files(
    builder: Any, tfds_name: str, work: WorkFolder, manual_dir: Path | None
) -> Path | None:
    """Check or download the official files; give the folder in which the builder finds them."""
    check_manual_dir(manual_dir)
    files = [
        PublishedFile(
            (info.filename or url.rsplit("/", 1)[-1],), url, int(info.size), info.checksum
        )
        for url, info in sorted((builder.url_infos or {}).items())
    ]
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _check_manual_download(builder, tfds_name, files, manual_dir)
        # The records will hold the same encoded images.
        work.require_space(sum(file.num_bytes or 0 for file in files))
        return manual_dir
    # The builder looks in a folder only for files whose name it has recorded; and the files of
    # several configs are listed together, of which not all are needed.
    is_complete = all(info.filename for info in (builder.url_infos or {}).values())
    if not files or not is_complete or len(builder.BUILDER_CONFIGS) > 1:
        for file in files:
            if path := locate(file, manual_dir):
                check_content(path, file)
        logger.info("%s: tensorflow-datasets downloads what is missing", tfds_name)
        return manual_dir
    official_dir = work.scratch / "official"
    official_dir.mkdir()
    for file, path in zip(files, fetch(files, work, manual_dir), strict=True):
        (official_dir / file.names[0]).symlink_to(path.resolve())
    return official_dir


def _check_manual_download(
    builder: Any, tfds_name: str, files: list[PublishedFile], manual_dir: Path | None
) -> None:
    """Check the files of a set that its authors give out on request only."""
    found = {file: locate(file, manual_dir) for file in files}
    missing = [file.names[0] for file, path in found.items() if path is None]
    if manual_dir is None or missing:
        where = "no manual_dir given" if manual_dir is None else f"not in {manual_dir}"
        raise InputError(
            f"dataset {tfds_name}: {', '.join(missing) or 'its files'} missing ({where}); they "
            f"cannot be downloaded without registration: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    for file, path in found.items():
        if path is not None:
            check_content(path, file)


def _download_and_prepare(
    tfds: Any, builder: Any, tfds_name: str, work: WorkFolder, official_dir: Path | None
) -> None:
    """Let the builder write its records."""
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    advice = "run again with network access, or put its official files into manual_dir"
    logger.info("%s: tensorflow-datasets writes its records; this takes a while", tfds_name)
    work.require_space(int(builder.info.dataset_size or 0))
    download_dir = work.downloads / "tfds"
    _remove_begun(download_dir)  # of a killed attempt
    try:
        with (
            telling_growth(f"{tfds_name}: tensorflow-datasets writes its records", work.scratch),
            # It announces itself on standard output, which belongs to the caller.
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder.download_and_prepare(
                download_dir=download_dir,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=official_dir,
                    extract_dir=work.scratch / "extracted",
                    try_download_gcs=False,
                ),
            )
    except (requests.RequestException, tfds.download.DownloadError) as error:
        raise InputError(
            f"dataset {tfds_name}: download failed ({type(error).__name__}); {advice}"
        ) from error
    except NonMatchingChecksumError as error:
        raise InputError(
            f"dataset {tfds_name}: a downloaded file is not the official one; {advice}"
        ) from error
    except (AssertionError, OSError, ValueError, KeyError) as error:
        raise InputError(f"dataset {tfds_name}: tensorflow-datasets stopped: {error}") from error
    finally:
        _remove_begun(download_dir)


def _remove_begun(download_dir: Path) -> None:
    """Remove downloads that broke off, as tensorflow-datasets continues none, and empty folders."""
    for folder in list(download_dir.rglob("*.tmp.*")):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    for path in (*sorted(download_dir.rglob("*"), reverse=True), download_dir):
        with contextlib.suppress(OSError):  # a file, or not empty
            path.rmdir()


def _check_split(builder: Any, split: str) -> None:
    if split.partition("[")[0] not in builder.info.splits:
        raise InputError(
            f"dataset {builder.info.full_name}: has no split {split!r}, only "
            f"{', '.join(sorted(builder.info.splits))}; give train_split and test_split in the "
            f"dataset definition, such as train[:80%] and train[80%:]"
        )
    # tensorflow-datasets refuses a slice that begins beyond the split's end; one that ends before
    # it begins has less than no samples.
    try:
        number = builder.info.splits[split].num_examples
    except (AssertionError, ValueError):
        number = 0
    if number < 1:
        whole = builder.info.splits[split.partition("[")[0]].num_examples
        raise InputError(
            f"dataset {builder.info.full_name}: split {split!r} has no samples; allowed: slices of "
            f"its {whole}"
        )


def _batches(
    tfds: Any, builder: Any, feature: str, split: str, **decoders: Any
) -> Iterator[tuple[Array, Array]]:
    """A feature and the labels of a split in the builder's own order, a batch at a time."""
    batches = builder.as_dataset(
        split=split,
        shuffle_files=False,
        batch_size=READ_BATCH,
        decoders=tfds.decode.PartialDecoding({feature: True, "label": True}, decoders=decoders),
    )
    number = builder.info.splits[split].num_examples
    progress = Progress(f"{builder.info.name}: reading {split}", number)
    done = 0
    for batch in tfds.as_numpy(batches):
        yield batch[feature], batch["label"].astype(np.int32)
        done += len(batch[feature])
        progress.update(done)
    if done != number:
        raise InputError(
            f"dataset {builder.info.full_name}: split {split!r} gave {done} samples of {number}"
        )


class _Images:
    """Writes the images of a set."""

    scale = PIXEL_SCALE
    tokens = None
    files = ()

    def __init__(self, tfds: Any, builder: Any, work: WorkFolder, image_size: int | None) -> None:
        self._tfds = tfds
        self._builder = builder
        self._work = work
        self._image_size = image_size

    def begin(self, splits: Mapping[str, str]) -> None:
        """Check that the images will fit."""
        info = self._builder.info
        height, width, channels = info.features["image"].shape
        if self._image_size is not None:
            height = width = self._image_size
        number = sum(info.splits[split].num_examples for split in splits.values())
        self._work.require_space(number * height * width * channels)

    def store(self, split: str, path: Path) -> Array:
        """Write the images of a split, and give the labels."""
        if self._image_size is not None:
            return self._store_resized(split, path, self._image_size)
        labels = []
        shape = tuple(self._builder.info.features["image"].shape)
        with ArrayWriter(path, shape, np.uint8) as writer:
            for images, of_batch in _batches(self._tfds, self._builder, "image", split):
                writer.append(images)
                labels.append(of_batch)
        return np.concatenate(labels)

    def _store_resized(self, split: str, path: Path, size: int) -> Array:
        labels = []

        def encoded_images() -> Iterator[bytes]:
            decoder = self._tfds.decode.SkipDecoding()
            batches = _batches(self._tfds, self._builder, "image", split, image=decoder)
            for images, of_batch in batches:
                labels.append(of_batch)
                yield from images

        info = self._builder.info
        store_images(
            path,
            ((f"{info.name}: {split} image {i}", x) for i, x in enumerate(encoded_images())),
            info.splits[split].num_examples,
            bytes,
            info.features["image"].shape[-1],
            (size, size),
            resizes=True,
            num_threads=self._work.num_threads,
        )
        return np.concatenate(labels)


class _Texts:
    """Makes a vocabulary from the texts of a set and, with it, tokens."""

    scale = 1.0
    files = (VOCABULARY_FILE,)

    def __init__(
        self, tfds: Any, builder: Any, work: WorkFolder, vocabulary_size: int, length: int
    ) -> None:
        self._tfds = tfds
        self._builder = builder
        self._work = work
        self._vocabulary_size = vocabulary_size
        self._length = length
        self._words: dict[str, int] = {}

    def begin(self, splits: Mapping[str, str]) -> None:
        """Make the vocabulary from the training texts, and write it."""
        batches = _batches(self._tfds, self._builder, "text", splits["train"])
        texts = (text for batch, _ in batches for text in _decode_texts(batch))
        vocabulary = make_vocabulary(texts, self._vocabulary_size)
        path = self._work.arrays / VOCABULARY_FILE
        path.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        self._words = {word: number for number, word in enumerate(vocabulary, start=1)}

    def store(self, split: str, path: Path) -> Array:
        """Write the tokens of a split, and give the labels."""
        labels = []
        size, length = self._vocabulary_size, self._length
        with ArrayWriter(path, (length,), token_type(size)) as writer:
            for texts, of_batch in _batches(self._tfds, self._builder, "text", split):
                writer.append(tokenise(_decode_texts(texts), self._words, size, length))
                labels.append(of_batch)
        return np.concatenate(labels)

    @property
    def tokens(self) -> dict[str, Any]:
        """How tokens were made, for the manifest."""
        return {
            "vocabulary_size": self._vocabulary_size,
            "length": self._length,
            "words": RULE,
            "vocabulary": "the most frequent words of the training texts, equally frequent ones "
            f"in alphabetical order; line i of {VOCABULARY_FILE}, counted from 1, is token i",
            "padding": "token 0, at the end of texts of fewer words; of longer texts the first "
            "words are kept",
            "other_words": f"token {self._vocabulary_size - 1}",
        }


def _decode_texts(texts: Array) -> list[str]:
    return [text.decode("utf-8", "replace") for text in texts]
