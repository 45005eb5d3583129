"""CIFAR-5M and Tiny ImageNet: real images in the published layouts, and killed preparations."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dataset_layouts import (
    TinySet,
    random_images,
    real_file,
    real_tiny_set,
    registered,
    small_tiny_set,
    write_cifar10,
    write_files,
    write_parts,
    write_zip,
)
from sgdphases.datasets import cifar5m, load, load_definition, prepare, tiny_imagenet, verify
from sgdphases.datasets.arrays import ARRAY_NAMES
from sgdphases.errors import InputError

CONFIG_DIR = Path(__file__).parents[1] / "config" / "datasets"
FILES = (*(f"{name}.npy" for name in ARRAY_NAMES), "manifest.json")


def sample_hash(image: npt.NDArray[np.uint8], label: Any) -> str:
    return hashlib.sha256(image.tobytes() + bytes([int(label)])).hexdigest()


def assert_statistics(manifest: dict[str, Any], published: list[float], images: Any) -> None:
    """Channel means are those of the full set, within four standard errors of a subset."""
    of_images = images.mean(axis=(1, 2)) / 255
    errors = of_images.std(axis=0) / np.sqrt(len(images))
    found = np.array(manifest["train_inputs_raw"]["channel_mean"]) / 255
    np.testing.assert_allclose(found, of_images.mean(axis=0), atol=1e-9)
    assert (np.abs(found - published) < 4 * errors).all()
    spread = np.array(manifest["train_inputs_raw"]["channel_std"]) / 255
    np.testing.assert_allclose(spread, (images / 255).std(axis=(0, 1, 2)), atol=1e-9)


# --- CIFAR-5M --------------------------------------------------------------------------------


@pytest.mark.real_data
def test_cifar5m_of_genuine_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(real_file("cifar10_subset_10k_2k.npz")) as data:
        x_train, y_train, x_test, y_test = (
            data[key] for key in ("x_train", "y_train", "x_test", "y_test")
        )
        class_names = [str(name) for name in data["class_names"]]
    write_parts(tmp_path, x_train, y_train, compressed=[1, 4])
    archive = write_cifar10(tmp_path, (x_train[:10], y_train[:10]), (x_test, y_test))
    monkeypatch.setattr(cifar5m, "CIFAR10", registered(cifar5m.CIFAR10, archive))
    monkeypatch.setattr(cifar5m, "NUM_TEST", len(x_test))
    definition = load_definition(CONFIG_DIR / "cifar5m.yaml")
    prepare("cifar5m", definition, tmp_path / "out" / "cifar5m", tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cifar5m"]
    verify(tmp_path / "out" / "cifar5m")
    manifest = load(tmp_path / "out" / "cifar5m").manifest
    assert (manifest["num_train"], manifest["num_test"]) == (10000, 2000)
    assert manifest["class_balance"] == {"train": [1000] * 10, "test": [200] * 10}
    assert manifest["class_names"] == class_names
    assert_statistics(manifest, [0.4914, 0.4822, 0.4465], x_train)
    stored = {name: np.load(tmp_path / "out" / "cifar5m" / f"{name}.npy") for name in ARRAY_NAMES}
    for split, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        for i in (0, -1):
            assert sample_hash(
                stored[f"{split}_inputs"][i], stored[f"{split}_targets"][i]
            ) == sample_hash(images[i], labels[i])
        np.testing.assert_array_equal(stored[f"{split}_inputs"], images)
        np.testing.assert_array_equal(stored[f"{split}_targets"], labels)
    parts = {
        f"https://storage.googleapis.com/gresearch/cifar5m/part{i}.npz": {
            "sha256": hashlib.sha256((tmp_path / f"part{i}.npz").read_bytes()).hexdigest(),
            "bytes": (tmp_path / f"part{i}.npz").stat().st_size,
        }
        for i in range(6)
    }
    assert parts.items() <= manifest["origin"]["files"].items()


# What a preparation in a process of its own runs: at the pace of a slow disk, or at its own.
PREPARATION = """
import logging, resource, sys, time
from dataclasses import replace
from pathlib import Path
from sgdphases.datasets import cifar5m, npz, prepare
from sgdphases.datasets.arrays import ArrayWriter

folder, output_dir, pause, size, checksum, num_test = sys.argv[1:]
cifar5m.CIFAR10 = replace(cifar5m.CIFAR10, num_bytes=int(size), checksum=checksum)
cifar5m.NUM_TEST = int(num_test)
if float(pause):
    npz.BLOCK_BYTES = 2**17
    append = ArrayWriter.append
    def append_slowly(self, samples):
        time.sleep(float(pause))
        append(self, samples)
    ArrayWriter.append = append_slowly
logging.basicConfig(level=logging.INFO, format="%(message)s")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare("cifar5m", {"source": "cifar5m"}, Path(output_dir), Path(folder))
assert not {"jax", "tensorflow", "tensorflow_datasets"} & set(sys.modules)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def parts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 MB of images in six parts, one of them compressed, and a test batch of 100."""
    folder = tmp_path_factory.mktemp("parts")
    images, labels = random_images(36_000)
    write_parts(folder, images, labels, compressed=[2])
    write_cifar10(folder, (images[:5], labels[:5]), (images[:100], labels[:100]))
    return folder


def start_preparation(parts_dir: Path, output_dir: Path, pause: float) -> subprocess.Popen[str]:
    archive = registered(cifar5m.CIFAR10, parts_dir / cifar5m.CIFAR10.names[0])
    arguments = [parts_dir, output_dir, pause, archive.num_bytes, archive.checksum, 100]
    return subprocess.Popen(
        [sys.executable, "-c", PREPARATION, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def undisturbed(parts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("datasets") / "cifar5m"
    process = start_preparation(parts_dir, output_dir, 0)
    output, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    # Kilobytes: what is added to an idle process while 110 MB pass through it.
    assert int(output) < 60_000
    return output_dir


def journal_of(output_dir: Path) -> list[Any]:
    path = output_dir.with_name(".cifar5m.partial") / "journal.json"
    return json.loads(path.read_text()) if path.exists() else []


def kill_after(process: subprocess.Popen[str], output_dir: Path, num_parts: int) -> None:
    """Kill a preparation at a random moment after it has finished so many parts."""
    while len(journal_of(output_dir)) < num_parts and process.poll() is None:
        time.sleep(0.002)
    time.sleep(random.random() * 0.15)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_preparation_goes_on(parts_dir: Path, undisturbed: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "cifar5m"
    for num_parts in (0, 2, 4):
        kill_after(start_preparation(parts_dir, output_dir, 0.002), output_dir, num_parts)
        assert len(journal_of(output_dir)) >= num_parts
        with pytest.raises(InputError):
            load(output_dir)
    process = start_preparation(parts_dir, output_dir, 0)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert "going on after" in messages
    assert [path.name for path in tmp_path.iterdir()] == ["cifar5m"]
    for file in FILES:
        assert (output_dir / file).read_bytes() == (undisturbed / file).read_bytes()


def spoil_kept_array(work_dir: Path, parts: Path) -> None:
    del parts
    with (work_dir / "arrays" / "train_inputs.npy").open("r+b") as file:
        file.seek(30_000_000)  # in the second part
        file.write(b"\x00\x01\x02")


def remove_kept_array(work_dir: Path, parts: Path) -> None:
    del parts
    (work_dir / "arrays" / "train_targets.npy").unlink()


def replace_second_part(work_dir: Path, parts: Path) -> None:
    del work_dir
    content = bytearray((parts / "part1.npz").read_bytes())
    (parts / "part1.npz").unlink()
    (parts / "part1.npz").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def forget_identity(work_dir: Path, parts: Path) -> None:
    del parts
    (work_dir / "identity.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "num_kept"),
    [
        (spoil_kept_array, 1),
        (remove_kept_array, 0),
        (replace_second_part, 1),
        (forget_identity, 0),
    ],
)
def test_only_what_is_still_right_is_kept(
    change: Callable[[Path, Path], None],
    num_kept: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, labels = random_images(12_000)
    parts = tmp_path / "parts"
    parts.mkdir()
    write_parts(parts, images[:30], labels[:30])
    for number in range(2):  # two larger ones, so that they can be told apart by position
        span = slice(6000 * number, 6000 * (number + 1))
        np.savez(parts / f"part{number}.npz", X=images[span], Y=labels[span])
    archive = write_cifar10(parts, (images[:5], labels[:5]), (images[:100], labels[:100]))
    monkeypatch.setattr(cifar5m, "CIFAR10", registered(cifar5m.CIFAR10, archive))
    monkeypatch.setattr(cifar5m, "NUM_TEST", 100)
    third = (parts / "part2.npz").read_bytes()
    damaged = bytearray(third)
    damaged[5000] ^= 1  # seen only when it is read
    (parts / "part2.npz").write_bytes(damaged)
    definition = {"source": "cifar5m"}
    with pytest.raises(InputError, match=r"part2\.npz"):
        prepare("cifar5m", definition, tmp_path / "out", parts)
    assert len(json.loads((tmp_path / ".cifar5m.partial" / "journal.json").read_text())) == 2
    (parts / "part2.npz").write_bytes(third)
    change(tmp_path / ".cifar5m.partial", parts)
    with caplog.at_level("INFO", "sgdphases"):
        prepare("cifar5m", definition, tmp_path / "out", parts)
    going_on = [m for m in caplog.messages if "going on after" in m]
    assert going_on == ([f"cifar5m: going on after {num_kept} finished parts"] * bool(num_kept))
    stored = np.load(tmp_path / "out" / "train_inputs.npy", mmap_mode="r")
    assert len(stored) == 12_020
    np.testing.assert_array_equal(stored[:12_000], images[:12_000])
    verify(tmp_path / "out")


def test_pinned_checksums_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = random_images(60)
    paths = write_parts(tmp_path, images, labels)
    archive = write_cifar10(tmp_path, (images[:5], labels[:5]), (images[:10], labels[:10]))
    monkeypatch.setattr(cifar5m, "CIFAR10", registered(cifar5m.CIFAR10, archive))
    monkeypatch.setattr(cifar5m, "NUM_TEST", 10)
    pins = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    prepare("good", {"source": "cifar5m", "sha256": pins}, tmp_path / "good", tmp_path)
    pins["part3.npz"] = "0" * 64
    with pytest.raises(InputError, match=r"part3\.npz: wrong content: SHA-256 .* expected"):
        prepare("bad", {"source": "cifar5m", "sha256": pins}, tmp_path / "bad", tmp_path)
    assert not (tmp_path / "bad").exists()


# --- Tiny ImageNet ---------------------------------------------------------------------------


def decoded(content: bytes) -> npt.NDArray[np.uint8]:
    import io

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def assert_same_images(output_dir: Path, tiny: TinySet) -> None:
    """Every stored image is one of the set, with the label of its class, and none is lost."""
    stored = {name: np.load(output_dir / f"{name}.npy") for name in ARRAY_NAMES}
    expected = [
        sample_hash(decoded(image), label)
        for label, images in enumerate(tiny.train)
        for image in images
    ]
    found = [
        sample_hash(*sample)
        for sample in zip(stored["train_inputs"], stored["train_targets"], strict=True)
    ]
    assert sorted(found) == sorted(expected)
    assert found != expected
    for sample, (image, label) in zip(
        zip(stored["test_inputs"], stored["test_targets"], strict=True),
        tiny.validation,
        strict=True,
    ):
        assert sample_hash(*sample) == sample_hash(decoded(image), label)


@pytest.mark.real_data
def test_tiny_imagenet_of_genuine_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = real_tiny_set(train_per_class=10, validation_per_class=2)
    archive = write_zip(tmp_path / "tiny-imagenet-200.zip", tiny.files())
    tiny.register(monkeypatch, archive)
    definition = load_definition(CONFIG_DIR / "tiny_imagenet.yaml")
    output_dir = tmp_path / "out" / "tiny_imagenet"
    prepare("tiny_imagenet", definition, output_dir, tmp_path)
    verify(output_dir)
    manifest = load(output_dir).manifest
    assert (manifest["num_train"], manifest["num_test"]) == (2000, 400)
    assert manifest["class_balance"] == {"train": [10] * 200, "test": [2] * 200}
    assert manifest["class_names"] == tiny.names
    assert manifest["arrays"]["train_inputs"]["shape"] == [2000, 64, 64, 3]
    assert_statistics(manifest, [0.4802, 0.4481, 0.3975], np.load(output_dir / "train_inputs.npy"))
    assert_same_images(output_dir, tiny)
    # The order is the same everywhere: the first samples of a subset are, too.
    assert np.load(output_dir / "train_targets.npy")[:6].tolist() == [194, 123, 138, 194, 163, 47]


def test_tiny_imagenet_unpacked_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = small_tiny_set()
    for kind in ("packed", "unpacked"):
        (tmp_path / kind).mkdir()
    archive = write_zip(tmp_path / "packed" / "tiny-imagenet-200.zip", tiny.files())
    write_files(tmp_path / "unpacked" / "tiny-imagenet-200", tiny.files())
    tiny.register(monkeypatch, archive)
    for kind in ("packed", "unpacked"):
        prepare(kind, {"source": "tiny_imagenet"}, tmp_path / "out" / kind, tmp_path / kind)
        assert_same_images(tmp_path / "out" / kind, tiny)
    for name in ARRAY_NAMES:
        packed, unpacked = (
            (tmp_path / "out" / kind / f"{name}.npy").read_bytes()
            for kind in ("packed", "unpacked")
        )
        assert packed == unpacked
    manifest = load(tmp_path / "out" / "packed").manifest
    assert manifest["class_names"] == ["cat", "dog", "fish"]


def test_official_sizes_are_expected() -> None:
    """What the tests here override."""
    assert cifar5m.NUM_TEST == 10_000
    assert cifar5m.CIFAR10.num_bytes == 170_052_171
    assert (tiny_imagenet.NUM_CLASSES, tiny_imagenet.TRAIN_PER_CLASS) == (200, 500)
    assert tiny_imagenet.NUM_VALIDATION == 10_000
    assert tiny_imagenet.ARCHIVE.num_bytes == 248_100_043
