"""Real data through official tensorflow-datasets builders.

These tests need a folder named by SGDPHASES_REAL_DATA, with the four official MNIST .gz files in
its subfolder mnist. What is too large to be at hand whole (CIFAR, ImageNet, IMDB) is put into an
archive of the official layout, whose checksum stands in for the registered one. No test uses the
network.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
from PIL import Image

from dataset_layouts import (
    cifar_records,
    jpeg,
    read_reviews,
    real_file,
    real_tiny_set,
    write_cifar10,
    write_imdb,
    write_tar,
)
from sgdphases.datasets import Dataset, load, load_definition, prepare, verify
from sgdphases.datasets.arrays import sha256_of
from sgdphases.errors import InputError

REAL_DATA = os.environ.get("SGDPHASES_REAL_DATA")

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        REAL_DATA is None,
        reason="SGDPHASES_REAL_DATA is not set to a folder with mnist/*.gz",
    ),
]

MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CONFIG_DIR = Path(__file__).parents[1] / "config" / "datasets"
MNIST = load_definition(CONFIG_DIR / "mnist.yaml")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection at once, so that a test cannot pass by downloading."""

    def refuse(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests.Session, "request", refuse)


@pytest.fixture(scope="session")
def official_dir() -> Path:
    folder = Path(str(REAL_DATA)) / "mnist"
    absent = [name for name in MNIST_FILES if not (folder / name).is_file()]
    if absent:
        pytest.skip(f"{folder} lacks {', '.join(absent)}")
    return folder


@pytest.fixture(scope="session")
def prepared(official_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST, prepared in a process of its own, as a workflow job does."""
    output_dir = tmp_path_factory.mktemp("datasets") / "mnist"
    temporary_dir = tmp_path_factory.mktemp("temporary")
    code = (
        "import sys; from pathlib import Path; from sgdphases.datasets import *\n"
        "config, output_dir, manual_dir = map(Path, sys.argv[1:])\n"
        "prepare('mnist', load_definition(config), output_dir, manual_dir)"
    )
    config = Path(__file__).parents[1] / "config" / "datasets" / "mnist.yaml"
    done = subprocess.run(
        [sys.executable, "-c", code, config, output_dir, official_dir],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary_dir)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
    assert [path.name for path in output_dir.parent.iterdir()] == ["mnist"]
    assert list(temporary_dir.iterdir()) == []
    return output_dir


@pytest.fixture(scope="session")
def dataset(prepared: Path) -> Dataset:
    return load(prepared)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one of the official files by its published format."""
    content = gzip.decompress(path.read_bytes())
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def sample_hashes(images: Iterable[npt.NDArray[Any]], labels: Iterable[Any]) -> list[str]:
    return [
        hashlib.sha256(image.tobytes() + bytes([int(label)])).hexdigest()
        for image, label in zip(images, labels, strict=True)
    ]


def test_counts_and_statistics(dataset: Dataset) -> None:
    manifest = dataset.manifest
    assert (manifest["num_train"], manifest["num_test"]) == (60000, 10000)
    assert manifest["class_balance"] == {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    assert manifest["train_inputs_raw"]["mean"] / 255 == pytest.approx(0.1307, abs=1e-4)
    assert manifest["train_inputs_raw"]["std"] / 255 == pytest.approx(0.3081, abs=1e-4)
    inputs, targets = dataset.evaluation_set("train", None, np.float32)
    assert inputs.shape == (60000, 28, 28, 1)
    assert inputs.dtype == np.float32
    assert inputs.mean(dtype=np.float64) == pytest.approx(0, abs=1e-3)
    assert inputs.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)
    assert targets.shape == (60000, 10)
    assert (targets.argmax(axis=1) == dataset.train_labels).all()
    assert "tensorflow-datasets" in manifest["versions"]


@pytest.mark.parametrize(("part", "prefix"), [("train", "train"), ("test", "t10k")])
def test_samples_are_the_official_ones(
    part: str, prefix: str, prepared: Path, official_dir: Path
) -> None:
    images = read_idx(official_dir / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(official_dir / f"{prefix}-labels-idx1-ubyte.gz")
    stored_images = np.load(prepared / f"{part}_inputs.npy", mmap_mode="r")
    stored_labels = np.load(prepared / f"{part}_targets.npy")
    official, stored = sample_hashes(images, labels), sample_hashes(stored_images, stored_labels)
    assert Counter(stored) == Counter(official)
    # TFDS shuffles once when it writes: its order is not that of the official files.
    assert stored != official


def test_order_is_the_one_recorded_for_this_builder(prepared: Path) -> None:
    """The first samples of every paper's subset stay the same from machine to machine."""
    assert np.load(prepared / "train_targets.npy")[:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
    assert np.load(prepared / "test_targets.npy")[:10].tolist() == [2, 0, 4, 8, 7, 6, 0, 6, 3, 1]


def test_load_needs_no_tensorflow(prepared: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sgdphases.datasets import load\n"
        "dataset = load(Path(sys.argv[1]), {'num_train': 512})\n"
        "assert dataset.train_inputs.shape == (512, 28, 28, 1)\n"
        "assert not {'tensorflow', 'tensorflow_datasets', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, prepared], check=True)


def test_verify(prepared: Path) -> None:
    verify(prepared)


def truncate(folder: Path) -> None:
    path = folder / MNIST_FILES[0]
    path.write_bytes(path.read_bytes()[:1_000_000])


def flip(folder: Path) -> None:
    path = folder / MNIST_FILES[3]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def replace_by_page(folder: Path) -> None:
    (folder / MNIST_FILES[1]).write_text("<html>" + 40_000 * "x")


def remove(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return act


FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "truncated": (truncate, [MNIST_FILES[0], "truncated", "1000000 bytes", "9912422"]),
    "wrong checksum": (flip, [MNIST_FILES[3], "SHA-256", "f7ae60f92e00ec6debd23a6088c31dbd"]),
    "another file": (replace_by_page, [MNIST_FILES[1], "not the official file", "28881"]),
    "one missing": (remove(MNIST_FILES[0]), [MNIST_FILES[0], "missing", "no network", "http"]),
    "all missing": (remove(*MNIST_FILES), [*MNIST_FILES, "missing", "no network", "http"]),
    "no folder": (shutil.rmtree, ["no such folder"]),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_official_files_are_named(case: str, official_dir: Path, tmp_path: Path) -> None:
    spoil, fragments = FAULTS[case]
    manual_dir = tmp_path / "official"
    manual_dir.mkdir()
    for name in MNIST_FILES:
        shutil.copyfile(official_dir / name, manual_dir / name)
    spoil(manual_dir)
    assert_refused(tmp_path, MNIST, manual_dir, [str(manual_dir), *fragments])


def test_no_folder_and_no_network(tmp_path: Path, official_dir: Path) -> None:
    assert_refused(tmp_path, MNIST, None, [*MNIST_FILES, "no manual_dir given", "no network"])


@pytest.mark.parametrize(
    ("tfds_name", "fragments"),
    [
        ("no_such_dataset", ["no_such_dataset", "not known to tensorflow-datasets"]),
        ("mnist:9.9.9", ["mnist", "9.9.9"]),
        ("glue", ["glue", "'image' and 'label'"]),
        ("imdb_reviews", ["imdb_reviews", "vocabulary_size and length"]),
        ("imagenet2012", ["imagenet2012", "image_size"]),
        ("cifar10", ["cifar-10-binary.tar.gz", "missing", "no network"]),
    ],
)
def test_other_builders(
    tfds_name: str, fragments: list[str], official_dir: Path, tmp_path: Path
) -> None:
    definition = {"source": "tfds", "tfds_name": tfds_name}
    assert_refused(tmp_path, definition, official_dir, fragments)


@pytest.mark.parametrize("error_name", ["DownloadError", "NonMatchingChecksumError"])
def test_failing_download_is_one_line(
    error_name: str, official_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets
    from tensorflow_datasets.core.download import download_manager, util

    error = getattr(util, error_name, None) or getattr(download_manager, error_name)

    def fail(*_: Any, **__: Any) -> None:
        raise error("line one\nline two")

    builder_class = tensorflow_datasets.core.DatasetBuilder
    monkeypatch.setattr(builder_class, "download_and_prepare", fail)
    assert_refused(tmp_path, MNIST, official_dir, ["dataset mnist"])


def assert_refused(
    tmp_path: Path, definition: dict[str, Any], manual_dir: Path | None, fragments: list[str]
) -> None:
    """Preparing must fail with one line that holds `fragments`, and leave nothing behind."""
    output_dir = tmp_path / "datasets" / "refused"
    output_dir.mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        prepare("refused", definition, output_dir, manual_dir)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    assert list(output_dir.iterdir()) == []
    assert [path.name for path in output_dir.parent.iterdir()] == ["refused"]


# --- sets that are at hand in part -----------------------------------------------------------


def register_archives(
    monkeypatch: pytest.MonkeyPatch, tfds_name: str, paths: dict[str, Path]
) -> None:
    """Let a builder expect these archives, by their address, in place of the official ones."""
    import tensorflow_datasets as tfds

    infos = {
        url: tfds.core.download.checksums.UrlInfo(
            size=path.stat().st_size, checksum=sha256_of(path), filename=path.name
        )
        for url, path in paths.items()
    }
    monkeypatch.setattr(tfds.builder_cls(tfds_name), "url_infos", infos)


def stored_arrays(folder: Path, split: str) -> list[npt.NDArray[Any]]:
    return [np.load(folder / f"{split}_{kind}.npy") for kind in ("inputs", "targets")]


@pytest.fixture(scope="session")
def genuine_cifar() -> dict[str, npt.NDArray[Any]]:
    with np.load(real_file("cifar10_subset_10k_2k.npz")) as data:
        return {key: data[key] for key in data.files}


def test_cifar10(
    genuine_cifar: dict[str, npt.NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = genuine_cifar["x_train"][::4], genuine_cifar["y_train"][::4]
    test_images, test_labels = genuine_cifar["x_test"][:100], genuine_cifar["y_test"][:100]
    archive = write_cifar10(tmp_path, (images, labels), (test_images, test_labels))
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    register_archives(monkeypatch, "cifar10", {url: archive})
    prepare("cifar10", load_definition(CONFIG_DIR / "cifar10.yaml"), tmp_path / "out", tmp_path)
    verify(tmp_path / "out")
    manifest = load(tmp_path / "out").manifest
    assert manifest["class_names"] == genuine_cifar["class_names"].tolist()
    assert manifest["class_balance"]["train"] == np.bincount(labels).tolist()
    assert manifest["normalisation"]["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.012)
    expected = np.array(manifest["train_inputs_raw"]["channel_mean"])
    np.testing.assert_allclose(expected, images.mean(axis=(0, 1, 2)), rtol=1e-9)
    for split, official in (
        ("train", (images, labels)),
        ("test", (test_images, test_labels)),
    ):
        stored = [
            np.load(tmp_path / "out" / f"{split}_{kind}.npy") for kind in ("inputs", "targets")
        ]
        assert Counter(sample_hashes(*stored)) == Counter(sample_hashes(*official))


def test_damage_that_the_checksum_does_not_give_away(
    genuine_cifar: dict[str, npt.NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = genuine_cifar["x_test"][:10], np.array([0, 1, 200, 3, 4, 5, 6, 7, 8, 9])
    archive = write_cifar10(tmp_path, (images, labels), (images, labels))
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    register_archives(monkeypatch, "cifar10", {url: archive})
    definition = {"source": "tfds", "tfds_name": "cifar10"}
    assert_refused(tmp_path, definition, tmp_path, ["cifar10", "200"])


def test_cifar100_takes_the_fine_labels(
    genuine_cifar: dict[str, npt.NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, fine = genuine_cifar["x_test"][:200], np.arange(200) % 100
    records = cifar_records(images, fine // 5, fine)
    names = {
        "coarse": [f"group {i:02}" for i in range(20)],
        "fine": [f"c{i:02}" for i in range(100)],
    }
    files = {
        "cifar-100-binary/train.bin": records,
        "cifar-100-binary/test.bin": records[: 50 * 3074],
        **{
            f"cifar-100-binary/{kind}_label_names.txt": "\n".join(lines).encode()
            for kind, lines in names.items()
        },
    }
    archive = write_tar(tmp_path / "cifar-100-binary.tar.gz", files)
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    register_archives(monkeypatch, "cifar100", {url: archive})
    prepare("cifar100", load_definition(CONFIG_DIR / "cifar100.yaml"), tmp_path / "out", tmp_path)
    manifest = load(tmp_path / "out").manifest
    assert (manifest["num_train"], manifest["num_test"]) == (200, 50)
    assert manifest["class_names"] == names["fine"]
    assert manifest["class_balance"]["train"] == [2] * 100
    whole = stored_arrays(tmp_path / "out", "train")
    assert Counter(sample_hashes(*whole)) == Counter(sample_hashes(images, fine))
    # A set without a test split is cut in two.
    definition = {"source": "tfds", "tfds_name": "cifar100"}
    slices = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    prepare("cut", definition | slices, tmp_path / "cut", tmp_path)
    parts = [stored_arrays(tmp_path / "cut", split) for split in ("train", "test")]
    assert [len(part[0]) for part in parts] == [160, 40]
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    absent = definition | {"test_split": "validation"}
    assert_refused(tmp_path, absent, tmp_path, ["'validation'", "only test, train", "test_split"])
    for empty in ("test[:0]", "test[40:30]", "test[60:]"):
        cut = definition | {"test_split": empty}
        assert_refused(tmp_path / empty, cut, tmp_path, [repr(empty), "of its 50"])


def test_imdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = read_reviews(150)
    archive = write_imdb(tmp_path, reviews)
    url = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
    register_archives(monkeypatch, "imdb_reviews", {url: archive})
    definition = load_definition(CONFIG_DIR / "imdb.yaml") | {"vocabulary_size": 500, "length": 40}
    prepare("imdb", definition, tmp_path / "out", tmp_path)
    verify(tmp_path / "out")
    manifest = load(tmp_path / "out").manifest
    assert manifest["class_balance"] == {"train": [150, 150], "test": [150, 150]}
    assert manifest["class_names"] == ["neg", "pos"]
    assert manifest["normalisation"]["from"] == "none"
    assert manifest["arrays"]["train_inputs"]["dtype"] == "uint16"
    vocabulary = (tmp_path / "out" / "vocabulary.txt").read_text().splitlines()
    recorded = manifest["files"]["vocabulary.txt"]["sha256"]
    assert recorded == sha256_of(tmp_path / "out" / "vocabulary.txt")
    counts = Counter(
        word for row in reviews if row["split"] == "train" for word in words_by_hand(row["text"])
    )
    assert vocabulary == sorted(counts, key=lambda word: (-counts[word], word))[:498]
    tokens = {word: i for i, word in enumerate(vocabulary, start=1)}
    for split in ("train", "test"):
        stored = [
            np.load(tmp_path / "out" / f"{split}_{kind}.npy") for kind in ("inputs", "targets")
        ]
        assert stored[0].shape == (300, 40)
        expected = Counter(
            (
                tuple(
                    ([tokens.get(word, 499) for word in words_by_hand(row["text"])] + [0] * 40)[:40]
                ),
                int(row["label"]),
            )
            for row in reviews
            if row["split"] == split
        )
        found = Counter(
            (tuple(row.tolist()), int(label)) for row, label in zip(*stored, strict=True)
        )
        assert found == expected


def words_by_hand(text: str) -> list[str]:
    """What is left between characters that are neither letters, digits nor inner apostrophes."""
    text = text.lower().replace("<br />", " ").replace("’", "'")
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text)
    parts = (part.strip("'") for chunk in kept.split() for part in re.split("''+", chunk))
    return [part for part in parts if part]


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = real_tiny_set(train_per_class=1, validation_per_class=1)
    train_files = {}
    for wnid, [image] in zip(tiny.wnids, tiny.train, strict=True):
        inner = write_tar(tmp_path / "inner.tar", {f"{wnid}_0.JPEG": image}, "w")
        train_files[f"{wnid}.tar"] = inner.read_bytes()
    # One that is no square, to be cut at its sides.
    wide = jpeg(0, (60, 100))
    inner = write_tar(tmp_path / "inner.tar", {"n01440764_1.JPEG": wide}, "w")
    train_files["n01440764.tar"] = inner.read_bytes()
    validation = {
        f"ILSVRC2012_val_{i:08}.JPEG": image for i, (image, _) in enumerate(tiny.validation[:20], 1)
    }
    official = tmp_path / "official"
    official.mkdir()
    base = "http://www.image-net.org/challenges/LSVRC/2012/nnoupb"
    archives = {
        f"{base}/{name}": write_tar(official / name, files, "w")
        for name, files in (
            ("ILSVRC2012_img_train.tar", train_files),
            ("ILSVRC2012_img_val.tar", validation),
        )
    }
    definition = load_definition(CONFIG_DIR / "imagenet.yaml") | {"image_size": 48}
    assert_refused(tmp_path, definition, None, ["ILSVRC2012_img_train.tar", "registration"])
    shutil.rmtree(tmp_path / "datasets")
    assert_refused(tmp_path, definition, official, ["img_train.tar", "truncated", "147897477120"])
    register_archives(monkeypatch, "imagenet2012", archives)
    prepare("imagenet", definition, tmp_path / "out", official)
    manifest = load(tmp_path / "out").manifest
    num_train = len(train_files)
    assert (manifest["num_train"], manifest["num_test"]) == (num_train, 20)
    assert manifest["num_classes"] == 1000
    assert manifest["class_names"][:2] == ["n01440764", "n01443537"]
    assert manifest["arrays"]["train_inputs"]["shape"] == [num_train, 48, 48, 3]
    names = manifest["class_names"]
    expected = Counter(
        sample_hashes([resized(image, 48)], [names.index(wnid) % 256])[0]
        for wnid, [image] in zip(tiny.wnids, tiny.train, strict=True)
    )
    stored = stored_arrays(tmp_path / "out", "train")
    found = Counter(sample_hashes(stored[0], stored[1] % 256))
    cut = resized(wide, 48)
    expected[sample_hashes([cut], [0])[0]] += 1
    assert found == expected
    # Their labels come with the builder: the first validation images are of these classes.
    validation_labels = np.load(tmp_path / "out" / "test_targets.npy")
    official_first = ["n01751748", "n09193705", "n02105855", "n04263257", "n03125729"]
    first = {
        sample_hashes([resized(image, 48)], [0])[0]: names[label]
        for image, label in zip(validation.values(), range(20), strict=True)
    }
    test_images = np.load(tmp_path / "out" / "test_inputs.npy")
    by_image = dict(
        zip(sample_hashes(test_images, np.zeros(20, int)), validation_labels, strict=True)
    )
    found_first = [names[by_image[key]] for key in list(first)[:5]]
    assert found_first == official_first


def resized(content: bytes, size: int) -> npt.NDArray[np.uint8]:
    """The shorter side to `size`, then the centre, by other calls than the code's own."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def test_genuine_cifar_subset_as_own_arrays(tmp_path: Path) -> None:
    path = Path(str(REAL_DATA)) / "cifar10_subset_10k_2k.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    definition = {"source": "npz", "path": str(path), "normalisation": "standardise"}
    prepare("cifar", definition, tmp_path / "cifar", None)
    dataset = load(tmp_path / "cifar", {"num_train": 1000})
    assert dataset.train_inputs.shape == (1000, 32, 32, 3)
    assert dataset.manifest["class_balance"] == {"train": [1000] * 10, "test": [200] * 10}
    mean = dataset.manifest["normalisation"]["mean"]
    np.testing.assert_allclose(mean, [0.4936, 0.4832, 0.4470], atol=1e-4)
