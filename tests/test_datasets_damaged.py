"""Damaged inputs of the dataset sources: each is named in one line, and none counts as prepared."""

import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from dataset_layouts import (
    TinySet,
    jpeg,
    random_images,
    registered,
    small_tiny_set,
    write_cifar10,
    write_files,
    write_parts,
    write_zip,
)
from sgdphases.datasets import cifar5m, load, prepare
from sgdphases.errors import InputError
from sgdphases.workflow import dataset_files


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests.Session, "request", refuse)


def assert_refused(
    tmp_path: Path, definition: dict[str, Any], manual_dir: Path | None, fragments: list[str]
) -> None:
    """One line that says what is wrong, twice, and no dataset."""
    # As Snakemake does, the folder of the outputs exists before the job runs.
    output_dir = tmp_path / "datasets" / "mine"
    output_dir.mkdir(parents=True)
    for _ in range(2):  # what the first attempt leaves must not let the second one through
        with pytest.raises(InputError) as caught:
            prepare("mine", definition, output_dir, manual_dir)
        message = str(caught.value)
        assert "\n" not in message
        for fragment in fragments:
            assert fragment in message
        assert list(output_dir.iterdir()) == []
        with pytest.raises(InputError):
            load(output_dir)
    if definition["source"] != "cifar5m":  # finished parts are kept
        assert [path.name for path in output_dir.parent.iterdir()] == ["mine"]


# --- CIFAR-5M --------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six good parts of five images and a good archive of CIFAR-10."""
    folder = tmp_path / "official"
    folder.mkdir()
    images, labels = random_images(30)
    write_parts(folder, images, labels)
    register_cifar10(write_cifar10(folder, (images, labels), (images[:7], labels[:7])), monkeypatch)
    monkeypatch.setattr(cifar5m, "NUM_TEST", 7)
    return folder


def register_cifar10(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar5m, "CIFAR10", registered(cifar5m.CIFAR10, archive))


def part_with(**changes: Any) -> Callable[[Path], None]:
    """Replaces the fourth part by one whose arrays differ from good ones."""

    def write(folder: Path) -> None:
        images, labels = random_images(5)
        arrays = {"X": images, "Y": labels, **changes}
        np.savez(folder / "part3.npz", **{k: v for k, v in arrays.items() if v is not None})

    return write


def truncated(name: str, number: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:number])

    return cut


def flipped(name: str, position: int) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 0xFF
        (folder / name).write_bytes(content)

    return flip


def swap_keys(folder: Path) -> None:
    images, labels = random_images(5)
    part_with(X=labels, Y=images)(folder)


def spoil_length(folder: Path) -> None:
    """An array whose header promises more than there is, in an intact archive."""
    images, labels = random_images(5)
    content = io.BytesIO()
    np.save(content, images)
    with zipfile.ZipFile(folder / "part3.npz", "w") as archive:
        archive.writestr("X.npy", content.getvalue()[:-100])
        content = io.BytesIO()
        np.save(content, labels)
        archive.writestr("Y.npy", content.getvalue())


def remove(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return act


IMAGES, LABELS = random_images(5)
PART_FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "truncated": (truncated("part3.npz", 9000), ["part3.npz", "truncated"]),
    "empty file": (truncated("part3.npz", 0), ["part3.npz", "not an .npz file"]),
    "flipped bits": (flipped("part3.npz", 3000), ["part3.npz", "X is damaged", "CRC"]),
    "too short": (spoil_length, ["part3.npz", "X is damaged", "sample 4"]),
    "label 200": (part_with(Y=[1, 2, 200, 3, 4]), ["part3.npz", "Y[2]", "label 200", "0 to 9"]),
    "label of 64 bits": (part_with(Y=LABELS + 2**32), ["part3.npz", "Y[0]", "0 to 9"]),
    "swapped keys": (swap_keys, ["part3.npz", "X holds int64", "(5,)", "uint8"]),
    "other keys": (part_with(X=None, x=IMAGES), ["part3.npz", "missing X", "found: Y, x"]),
    "floating pixels": (part_with(X=IMAGES / 255), ["part3.npz", "X holds float64", "uint8"]),
    "floating labels": (part_with(Y=np.ones(5)), ["part3.npz", "Y holds float64", "integers"]),
    "larger images": (
        part_with(X=np.zeros((5, 64, 64, 3), np.uint8)),
        ["part3.npz", "(5, 64, 64, 3)", "(samples, 32, 32, 3)"],
    ),
    "channels first": (
        part_with(X=IMAGES.transpose(0, 3, 1, 2)),
        ["part3.npz", "(5, 3, 32, 32)", "(samples, 32, 32, 3)"],
    ),
    "too few labels": (part_with(Y=LABELS[:4]), ["part3.npz", "(4,)", "(5,)"]),
    "pickled": (part_with(Y=np.array([{}] * 5)), ["part3.npz", "Y holds Python objects"]),
    "missing part": (remove("part3.npz"), ["part3.npz missing", "no network", "https://"]),
    "missing test set": (remove("cifar-10-binary.tar.gz"), ["cifar-10-binary.tar.gz missing"]),
    "truncated test set": (
        truncated("cifar-10-binary.tar.gz", 1000),
        ["cifar-10-binary.tar.gz", "truncated", "1000 bytes"],
    ),
    "wrong checksum": (
        flipped("cifar-10-binary.tar.gz", 500),
        ["cifar-10-binary.tar.gz", "wrong content", "SHA-256"],
    ),
}


@pytest.mark.parametrize("case", PART_FAULTS)
def test_damaged_cifar5m(case: str, parts: Path, tmp_path: Path) -> None:
    spoil, fragments = PART_FAULTS[case]
    spoil(parts)
    assert_refused(tmp_path, {"source": "cifar5m"}, parts, [str(parts), *fragments])


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


TAR_FAULTS = {
    "path out of it": (tarfile.TarInfo("../outside.bin"), "'../outside.bin' leads out"),
    "absolute path": (tarfile.TarInfo("/outside.bin"), "'/outside.bin' leads out"),
    "link out of it": (
        link("cifar-10-batches-bin/test_batch.bin", "/etc/hostname"),
        "test_batch.bin' is a link",
    ),
    "nothing in it": (tarfile.TarInfo("readme"), "has no cifar-10-batches-bin/test_batch.bin"),
}


@pytest.mark.parametrize("case", TAR_FAULTS)
def test_unsafe_tar_archive(
    case: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, fragment = TAR_FAULTS[case]
    path = parts / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member)
    register_cifar10(path, monkeypatch)
    assert_refused(tmp_path, {"source": "cifar5m"}, parts, [str(path), fragment])
    assert not (tmp_path / "outside.bin").exists()


def test_test_batch_of_another_length(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar5m, "NUM_TEST", 8)
    assert_refused(tmp_path, {"source": "cifar5m"}, parts, ["test_batch.bin", "not 8 images"])


# --- Tiny ImageNet ---------------------------------------------------------------------------

Files = dict[str, bytes]


def without(*names: str) -> Callable[[Files], None]:
    def act(files: Files) -> None:
        for name in [file for file in files if file.startswith(names)]:
            del files[name]

    return act


def with_file(name: str, content: bytes) -> Callable[[Files], None]:
    def act(files: Files) -> None:
        files[name] = content

    return act


def annotations(old: str, new: str) -> Callable[[Files], None]:
    def act(files: Files) -> None:
        name = "val/val_annotations.txt"
        files[name] = files[name].replace(old.encode(), new.encode())

    return act


TREE_FAULTS: dict[str, tuple[Callable[[Files], None], list[str]]] = {
    "no annotations": (without("val/val_ann"), ["val/val_annotations.txt is missing"]),
    "no list of classes": (without("wnids.txt"), ["wnids.txt is missing"]),
    "missing class folder": (without("train/n01/"), ["train/n01/images", "0 images", "2 expected"]),
    "lost image": (without("train/n02/images/n02_1"), ["train/n02/images", "1 images"]),
    "class of its own": (with_file("train/n07/images/n07_0.JPEG", b""), ["train/n07", "wnids.txt"]),
    "unknown wnid": (annotations("n03", "n77"), ["val_1.JPEG", "'n77'", "wnids.txt"]),
    "unknown image": (annotations("val_2.", "val_9."), ["val/images/val_9.JPEG is missing"]),
    "too few annotations": (
        annotations("val_3.JPEG\tn03\t0\t32\t44\t62\n", ""),
        ["val_annotations.txt", "3 images", "4 different"],
    ),
    "class given twice": (with_file("wnids.txt", b"n01\nn01\nn02\n"), ["wnids.txt", "2 classes"]),
    "corrupt JPEG": (
        with_file("train/n02/images/n02_1.JPEG", jpeg(0)[:1500]),
        ["train/n02/images/n02_1.JPEG", "damaged image", "truncated"],
    ),
    "no image": (
        with_file("val/images/val_0.JPEG", b"<html>not found</html>"),
        ["val/images/val_0.JPEG", "not an image"],
    ),
    "image of another size": (
        with_file("val/images/val_0.JPEG", jpeg(0, (32, 64))),
        ["val/images/val_0.JPEG", "32 x 64 pixels", "64 x 64"],
    ),
}


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
@pytest.mark.parametrize("case", TREE_FAULTS)
def test_damaged_tiny_imagenet(
    case: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, fragments = TREE_FAULTS[case]
    tiny = small_tiny_set()
    files = tiny.files()
    change(files)
    where = place(tiny, files, packed, tmp_path, monkeypatch)
    assert_refused(tmp_path, {"source": "tiny_imagenet"}, tmp_path, [str(where), *fragments])


def place(
    tiny: TinySet, files: Files, packed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    if packed:
        archive = write_zip(folder / "tiny-imagenet-200.zip", files)
        tiny.register(monkeypatch, archive)
        return archive
    tiny.register(monkeypatch)
    return write_files(folder / "tiny-imagenet-200", files)


def zip_link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("tiny-imagenet-200/train")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


ZIP_FAULTS = {
    "path out of it": ("../outside.txt", "'../outside.txt' leads out"),
    "absolute path": ("/outside.txt", "'/outside.txt' leads out"),
    "path of another system": ("..\\outside.txt", "leads out"),
    "drive of another system": ("C:/outside.txt", "leads out"),
    "link": (zip_link(), "'tiny-imagenet-200/train' is a link"),
}


@pytest.mark.parametrize("case", ZIP_FAULTS)
def test_unsafe_zip_archive(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member, fragment = ZIP_FAULTS[case]
    tiny = small_tiny_set()
    path = write_zip(tmp_path / "tiny-imagenet-200.zip", tiny.files())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "/etc")
    tiny.register(monkeypatch, path)
    assert_refused(tmp_path, {"source": "tiny_imagenet"}, tmp_path, [str(path), fragment])


def test_damaged_zip_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = small_tiny_set()
    path = write_zip(tmp_path / "tiny-imagenet-200.zip", tiny.files())
    tiny.register(monkeypatch, path)
    whole = path.read_bytes()
    definition = {"source": "tiny_imagenet"}
    for content, fragments in (
        (whole[:-100], ["truncated", f"{len(whole) - 100} bytes"]),
        (whole[:5000] + bytes(10) + whole[5010:], ["wrong content", "MD5"]),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            prepare("mine", definition, tmp_path / "out", tmp_path)
        assert all(fragment in str(caught.value) for fragment in (str(path), *fragments))
    # Damage that the checksum does not give away.
    tiny.register(monkeypatch, path)
    assert_refused(tmp_path, definition, tmp_path, [str(path), "is damaged"])


# --- a user's own images ---------------------------------------------------------------------


def png(mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size[::-1]).save(content, "PNG")
    return content.getvalue()


def own_images() -> Files:
    return {
        f"{split}/{name}/{i}.png": png()
        for split in ("train", "test")
        for name in ("cat", "dog")
        for i in range(3)
    }


FOLDER_FAULTS: dict[str, tuple[Callable[[Files], None], dict[str, Any], list[str]]] = {
    "no images": (with_file("train/dog/notes.txt", b"todo"), {}, ["train/dog/notes.txt", "not an"]),
    "corrupt JPEG": (
        with_file("test/cat/3.jpg", jpeg(0, (8, 8))[:300]),
        {},
        ["test/cat/3.jpg", "damaged image"],
    ),
    "class lacks in test": (without("test/dog"), {}, ["test", "1 class folders"]),
    "class of its own": (with_file("test/owl/0.png", png()), {}, ["train", "'owl' is missing"]),
    "no test folder": (without("test"), {}, ["no folder 'test'", "test_fraction"]),
    "folder in a class": (with_file("train/dog/more/0.png", png()), {}, ["dog/more", "not a file"]),
    "sizes differ": (
        with_file("test/dog/0.png", png(size=(8, 9))),
        {},
        ["test/dog/0.png", "8 x 9", "8 x 8", "image_size"],
    ),
    "16 bits": (with_file("train/dog/0.png", png("I;16")), {}, ["train/dog/0.png", "8-bit"]),
    "class too small": (
        lambda files: files.update({"cat/0.png": png(), "dog/0.png": png()}) or without("t")(files),
        {"test_fraction": 0.2},
        ["cat", "1 images", "0.2"],
    ),
}


@pytest.mark.parametrize("case", FOLDER_FAULTS)
def test_damaged_image_folder(case: str, tmp_path: Path) -> None:
    change, options, fragments = FOLDER_FAULTS[case]
    files = own_images()
    change(files)
    path = write_files(tmp_path / "images", files)
    definition = {"source": "folder", "path": str(path), **options}
    assert_refused(tmp_path, definition, None, [str(path), *fragments])


def test_empty_class_and_missing_folder(tmp_path: Path) -> None:
    definition = {"source": "folder", "path": str(tmp_path / "images")}
    assert_refused(tmp_path / "a", definition, None, [str(tmp_path / "images"), "no such folder"])
    write_files(tmp_path / "images", own_images())
    (tmp_path / "images" / "train" / "owl").mkdir()
    (tmp_path / "images" / "test" / "owl").mkdir()
    assert_refused(tmp_path / "b", definition, None, ["train/owl", "no images"])


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_files(tmp_path / "images", own_images())
    listing = Path.iterdir

    def refuse(self: Path) -> Any:
        if self.name == "cat":
            raise PermissionError(13, "Permission denied", str(self))
        return listing(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="train/cat: Permission denied"):
        prepare("mine", {"source": "folder", "path": str(path)}, tmp_path / "mine", None)
    assert not (tmp_path / "mine").exists()


def test_class_whose_name_is_no_text(tmp_path: Path) -> None:
    path = write_files(tmp_path / "images", own_images())
    (path / "train" / "cat").rename(path / "train" / os.fsdecode(b"caf\xe9"))
    definition = {"source": "folder", "path": str(path)}
    assert_refused(tmp_path, definition, None, ["train: class folder 'caf\\udce9'", "UTF-8"])


def test_class_that_is_a_link_to_nowhere(tmp_path: Path) -> None:
    path = write_files(tmp_path / "images", own_images())
    for split in ("train", "test"):
        (path / split / "owl").symlink_to(tmp_path / "absent")
    definition = {"source": "folder", "path": str(path)}
    assert_refused(tmp_path, definition, None, ["train/owl: a link that leads nowhere"])


# --- what the workflow finds before any job ------------------------------------------------------


def files_of_mine(folder: Path, definition: dict[str, Any]) -> list[str]:
    """What the workflow takes for the files of the dataset "mine", defined in a folder."""
    write_files(folder, {"config/datasets/mine.yaml": yaml.safe_dump(definition).encode()})
    return dataset_files("mine")


def test_files_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "images", own_images())
    split = files_of_mine(tmp_path, {"source": "folder", "path": "images"})
    assert split == [
        f"images/{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")
    ]
    # A class may be called train.
    to_be_split = {"source": "folder", "path": "images", "test_fraction": 0.5}
    assert files_of_mine(tmp_path, to_be_split) == ["images/test", "images/train"]


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ({"source": "npz", "path": "absent.npz"}, "path: 'absent.npz': no such file"),
        ({"source": "npz", "path": "locked/mine.npz"}, "path: locked/mine.npz: Permission denied"),
        ({"source": "folder", "path": "locked"}, "path: locked/train: Permission denied"),
        ({"source": "npz", "path": "{a}.npz"}, "path: '{a}.npz' is not allowed"),
    ],
)
def test_files_that_a_workflow_cannot_take(
    definition: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {"{a}.npz": b"", "locked/mine.npz": b""})
    look = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        # No folder is locked for a superuser.
        if str(path).startswith("locked/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError) as caught:
        files_of_mine(tmp_path, definition)
    assert says in str(caught.value)
    assert "config/datasets/mine.yaml" in str(caught.value)


# --- the disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["npz", "folder", "cifar5m", "tiny_imagenet"])
def test_no_space_is_noticed_beforehand(
    source: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition: dict[str, Any] = {"source": source}
    if source == "npz":
        images, labels = random_images(30)
        definition |= {"path": str(tmp_path / "mine.npz"), "num_classes": 10}
        np.savez(
            tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels
        )
    elif source == "folder":
        definition["path"] = str(write_files(tmp_path / "images", own_images()))
    elif source == "tiny_imagenet":
        tiny = small_tiny_set()
        place(tiny, tiny.files(), False, parts, monkeypatch)
    usage = os.statvfs_result((4096, 4096, 100, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda *_: usage)
    assert_refused(tmp_path, definition, parts, ["dataset mine", "no space", "needed", "0 bytes"])
    assert not list((tmp_path / "datasets").glob(".mine.partial/arrays/*.npy"))


def test_full_disk_is_one_line(parts: Path, tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk that fills up while it is written to."""
    code = """
import resource, sys
from pathlib import Path
from sgdphases.datasets import prepare
from sgdphases.scripting import run_script
definition = {"source": "npz", "path": sys.argv[1], "num_classes": 10}
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
run_script(lambda: prepare("mine", definition, Path(sys.argv[2]), None), [])
"""
    images, labels = random_images(300)
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    output_dir = tmp_path / "out" / "mine"
    done = subprocess.run(
        [sys.executable, "-c", code, path, output_dir], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train_inputs.npy: File too large" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    prepare("mine", {"source": "npz", "path": str(path)}, output_dir, None)
    assert load(output_dir).num_train == 300


def test_half_written_output_is_not_taken_for_a_dataset(tmp_path: Path, parts: Path) -> None:
    output_dir = tmp_path / "mine"
    output_dir.mkdir()
    (output_dir / "train_inputs.npy").write_bytes(b"\x93NUMPY half of it")
    leftovers = tmp_path / ".mine.partial"
    write_files(
        leftovers, {"arrays/train_inputs.npy": b"half", "scratch/x": b"", "journal.json": b"["}
    )
    with pytest.raises(InputError, match="not prepared"):
        load(output_dir)
    prepare("mine", {"source": "cifar5m"}, output_dir, parts)
    assert load(output_dir).num_train == 30
    assert not leftovers.exists()
