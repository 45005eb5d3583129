"""Real data through the official tensorflow-datasets builder.

These tests need a folder of official files, named by SGDPHASES_REAL_DATA, with the four MNIST
.gz files in its subfolder mnist. They never use the network.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests

from sgdphases.datasets import Dataset, load, load_definition, prepare, verify
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
MNIST = load_definition(Path(__file__).parents[1] / "config" / "datasets" / "mnist.yaml")


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


def sample_hashes(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> list[str]:
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
        "assert load(Path(sys.argv[1]), num_train=512).train_inputs.shape == (512, 28, 28, 1)\n"
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
        ("no_such_dataset", ["not known to tensorflow-datasets"]),
        ("mnist:9.9.9", ["9.9.9"]),
        ("imdb_reviews", ["'image' and 'label'"]),
        ("imagenet2012", ["images all of one size"]),
        ("cifar10", ["cifar-10-binary.tar.gz", "missing", "no network"]),
    ],
)
def test_other_builders(
    tfds_name: str, fragments: list[str], official_dir: Path, tmp_path: Path
) -> None:
    definition = {"source": "tfds", "tfds_name": tfds_name}
    assert_refused(tmp_path, definition, official_dir, [tfds_name, *fragments])


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


def test_genuine_cifar_subset_as_own_arrays(tmp_path: Path) -> None:
    path = Path(str(REAL_DATA)) / "cifar10_subset_10k_2k.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    definition = {"source": "npz", "path": str(path), "normalisation": "standardise"}
    prepare("cifar", definition, tmp_path / "cifar", None)
    dataset = load(tmp_path / "cifar", num_train=1000)
    assert dataset.train_inputs.shape == (1000, 32, 32, 3)
    assert dataset.manifest["class_balance"] == {"train": [1000] * 10, "test": [200] * 10}
    mean = dataset.manifest["normalisation"]["mean"]
    np.testing.assert_allclose(mean, [0.4936, 0.4832, 0.4470], atol=1e-4)
