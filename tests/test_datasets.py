"""Dataset definitions, preparation and loading, without network and without TensorFlow."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sgdphases.datasets import load, load_definition, prepare, statistics, verify
from sgdphases.datasets.arrays import ArrayWriter, read_blocks
from sgdphases.datasets.loading import ARRAY_NAMES
from sgdphases.datasets.text import make_vocabulary, split_words, tokenise
from sgdphases.errors import InputError

CONFIG_DIR = Path(__file__).parents[1] / "config" / "datasets"
FILES = {*(f"{name}.npy" for name in ARRAY_NAMES), "manifest.json"}

Arrays = dict[str, Any]


def good_arrays() -> Arrays:
    """Six training and three test samples of three classes."""
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.normal(size=(6, 4)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": generator.normal(size=(3, 4)),
        "y_test": np.array([2, 1, 0]),
    }


def write_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def assert_one_line(error: InputError, *fragments: str) -> None:
    message = str(error)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def assert_nothing_prepared(output_dir: Path) -> None:
    """No manifest, and no temporary folder beside the output."""
    assert not (output_dir / "manifest.json").exists()
    with pytest.raises(InputError):
        load(output_dir)
    assert [path.name for path in output_dir.parent.glob(".*")] == []


# --- definitions -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_definitions_are_valid(path: Path) -> None:
    assert load_definition(path)["source"]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("source: [", ["not valid YAML"]),
        ("- source", ["list", "mapping"]),
        ("{}", ["'source'", "missing"]),
        ("source: mnist", ["source", "'mnist'", "digits, tfds", "points, gaussian"]),
        ("source: npz", ["'path'", "missing"]),
        ("source: npz\npath: 3", ["path", "3", "path of an .npz file"]),
        ("source: npz\npath: a.npz\nclasses: 3", ["'classes'", "num_classes"]),
        ("source: npz\npath: a.npz\nnum_classes: 1", ["num_classes", "1", ">= 2"]),
        ("source: digits\npath: a.npz", ["'path'", "normalisation"]),
        ("source: digits\nnormalisation: standardize", ["'standardize'", "standardise"]),
        ("source: digits\nnormalisation: {mean: 0}", ["normalisation", "std"]),
        ("source: digits\nnormalisation: {mean: 0, std: 0}", ["normalisation", "std > 0"]),
        ("source: digits\nnormalisation: {mean: .nan, std: 1}", ["normalisation.mean", "finite"]),
        ("source: folder", ["'path'", "missing"]),
        ("source: folder\npath: a\nimage_size: 0", ["image_size", "0", ">= 1"]),
        ("source: folder\npath: a\ntest_fraction: 1", ["test_fraction", "1", "between 0 and 1"]),
        ("source: cifar5m\nsha256: {part7.npz: a}", ["sha256", "'part7.npz'"]),
        ("source: cifar5m\nsha256: {part0.npz: a}", ["sha256.part0.npz", "64 hexadecimal digits"]),
        ("source: tiny_imagenet\nimage_size: 64", ["'image_size'", "normalisation"]),
        ("source: tfds\ntfds_name: a\ntest_split: a b", ["test_split", "'a b'", "train[80%:]"]),
        ("source: tfds\ntfds_name: a\nvocabulary_size: 2", ["vocabulary_size", "2", ">= 3"]),
        (
            "source: tfds\ntfds_name: a\nvocabulary_size: 9\nlength: 9\nnormalisation: standardise",
            ["normalisation", "'standardise'", "none"],
        ),
        ("source: tfds\ntfds_name: ../mnist", ["tfds_name", "'../mnist'", "cifar10"]),
        ("source: points\ninputs: [[1]]\ntargets: [1]", ["targets[0]", "list of numbers"]),
        ("source: points\ninputs: [[1]]\ntargets: [[a]]", ["targets[0][0]", "'a'", "a number"]),
        ("source: points\ninputs: [[1], [1, 2]]\ntargets: [[1], [1]]", ["inputs", "equal length"]),
        ("source: points\ninputs: [[1], [2]]\ntargets: [[1]]", ["targets", "1 rows", "2"]),
        ("source: points\ninputs: [[.inf]]\ntargets: [[1]]", ["inputs", "finite"]),
        (
            "{source: gaussian, num_train: 0, num_test: 1, input_dim: 1, output_dim: 1, seed: 0}",
            ["num_train", "0", ">= 1"],
        ),
        ("{source: gaussian, num_train: 1, num_test: 1}", ["'input_dim'", "missing"]),
    ],
)
def test_faulty_definition_is_named(tmp_path: Path, text: str, fragments: list[str]) -> None:
    path = tmp_path / "faulty.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_definition(path)
    assert_one_line(caught.value, str(path), *fragments)


def test_missing_definition_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_definition(tmp_path / "absent.yaml")
    assert_one_line(caught.value, str(tmp_path / "absent.yaml"), "no such file")


def test_prepare_checks_the_definition_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare("mine", {"source": "npz"}, tmp_path / "mine", None)
    assert_one_line(caught.value, "dataset mine", "'path'")
    assert_nothing_prepared(tmp_path / "mine")


def test_import_is_light() -> None:
    code = (
        "import sys, sgdphases.datasets\n"
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'sklearn', 'pandas', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- preparing and loading -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "single_point", "gaussian_regression"])
def test_same_definition_gives_same_bytes(name: str, tmp_path: Path) -> None:
    definition = load_definition(CONFIG_DIR / f"{name}.yaml")
    for folder in ("first", "second"):
        prepare(name, definition, tmp_path / folder, None)
        assert {path.name for path in (tmp_path / folder).iterdir()} == FILES
    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "first" / "manifest.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    verify(tmp_path / "first")


def test_digits(tmp_path: Path) -> None:
    prepare("digits", load_definition(CONFIG_DIR / "digits.yaml"), tmp_path / "digits", None)
    dataset = load(tmp_path / "digits")
    manifest = dataset.manifest
    assert dataset.train_inputs.shape == (1437, 8, 8, 1)
    assert dataset.test_inputs.shape == (360, 8, 8, 1)
    assert dataset.train_inputs.dtype == np.float32
    assert dataset.train_targets.shape == (1437, 10)
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    np.testing.assert_array_equal(dataset.train_targets.argmax(axis=1), dataset.train_labels)
    np.testing.assert_array_equal(dataset.train_targets.sum(axis=1), 1)
    assert abs(dataset.train_inputs.mean()) < 1e-5
    assert abs(dataset.train_inputs.std() - 1) < 1e-5
    assert manifest["task"] == "classification"
    assert manifest["arrays"]["train_inputs"]["dtype"] == "uint8"
    assert manifest["arrays"]["train_targets"]["dtype"] == "int32"
    assert (manifest["train_inputs_raw"]["min"], manifest["train_inputs_raw"]["max"]) == (0, 16)
    # Stratified: each class has 20 % of its samples in the test part, give or take one.
    train, test = (np.array(manifest["class_balance"][part]) for part in ("train", "test"))
    assert np.abs(test - (train + test) * 360 / 1797).max() < 1
    assert "scikit-learn" in manifest["versions"]

    from sklearn.datasets import load_digits

    official = load_digits()
    stored = [np.load(tmp_path / "digits" / f"{part}_inputs.npy") for part in ("train", "test")]
    labels = [dataset.train_labels, dataset.test_labels]
    ours = np.column_stack([np.concatenate(stored).reshape(-1, 64), np.concatenate(labels)])
    theirs = np.column_stack([official.data, official.target])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_single_point(tmp_path: Path) -> None:
    definition = load_definition(CONFIG_DIR / "single_point.yaml")
    prepare("single_point", definition, tmp_path / "out", None)
    dataset = load(tmp_path / "out", dtype=np.float64)
    for array in (dataset.train_inputs, dataset.train_targets, dataset.test_inputs):
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, [[1.0]])
    assert dataset.train_labels is None
    assert dataset.manifest["task"] == "regression"
    assert dataset.manifest["num_outputs"] == 1


def test_gaussian_keeps_its_samples_when_more_are_asked_for(tmp_path: Path) -> None:
    definition = load_definition(CONFIG_DIR / "gaussian_regression.yaml")
    prepare("few", definition, tmp_path / "few", None)
    prepare("many", {**definition, "num_train": 4000}, tmp_path / "many", None)
    few = load(tmp_path / "few", dtype=np.float64)
    many = load(tmp_path / "many", dtype=np.float64)
    assert few.train_inputs.shape == (10, 5)
    assert few.train_targets.shape == (10, 1)
    np.testing.assert_array_equal(few.train_inputs, many.train_inputs[:10])
    np.testing.assert_array_equal(few.train_targets, many.train_targets[:10])
    np.testing.assert_array_equal(few.test_inputs, many.test_inputs)
    np.testing.assert_allclose(np.cov(many.train_inputs.T), np.eye(5), atol=0.1)
    correlation = np.corrcoef(np.column_stack([many.train_inputs, many.train_targets]).T)
    assert np.abs(correlation[-1, :-1]).max() < 0.07
    assert not np.isin(few.test_inputs, many.train_inputs).any()


def test_npz_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = good_arrays()
    write_npz(tmp_path / "mine.npz", {**arrays, "unrelated": np.arange(3)})
    monkeypatch.chdir(tmp_path)
    definition = {"source": "npz", "path": "mine.npz", "normalisation": "standardise"}
    prepare("mine", definition, Path("out"), None)
    dataset = load(Path("out"), dtype=np.float64)
    expected = (arrays["x_test"] - arrays["x_train"].mean()) / arrays["x_train"].std()
    np.testing.assert_allclose(dataset.test_inputs, expected, rtol=1e-12)
    np.testing.assert_array_equal(dataset.test_labels, arrays["y_test"])
    assert dataset.manifest["num_classes"] == 3
    assert dataset.manifest["origin"]["file"] == "mine.npz"
    assert dataset.manifest["class_balance"] == {"train": [2, 2, 2], "test": [1, 1, 1]}


@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_npz_regression(tmp_path: Path, shape: tuple[int, ...]) -> None:
    targets = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    arrays = {**good_arrays(), "y_train": targets, "y_test": targets[:3]}
    path = write_npz(tmp_path / "mine.npz", arrays)
    prepare("mine", {"source": "npz", "path": str(path)}, tmp_path / "out", None)
    dataset = load(tmp_path / "out")
    np.testing.assert_array_equal(dataset.train_targets, targets.reshape(6, -1))
    np.testing.assert_array_equal(dataset.train_inputs, arrays["x_train"].astype(np.float32))
    assert dataset.train_labels is None
    assert dataset.manifest["arrays"]["train_targets"]["dtype"] == "float64"


@pytest.mark.parametrize(
    "normalisation",
    ["none", "standardise", {"mean": [0.1, 0.2, 0.3], "std": 0.5}],
    ids=["none", "standardise", "given"],
)
def test_pixels_are_scaled_then_normalised_per_channel(
    tmp_path: Path, normalisation: str | dict[str, Any]
) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    pixels[..., 2] //= 2
    labels = np.arange(20) % 2
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels[:4], "y_test": labels[:4]}
    path = write_npz(tmp_path / "images.npz", arrays)
    definition = {"source": "npz", "path": str(path), "normalisation": normalisation}
    prepare("images", definition, tmp_path / "out", None)
    scaled = pixels / 255
    match normalisation:
        case "none":
            expected = scaled
        case "standardise":
            expected = (scaled - scaled.mean(axis=(0, 1, 2))) / scaled.std(axis=(0, 1, 2))
        case _:
            expected = (scaled - np.array([0.1, 0.2, 0.3])) / 0.5
    dataset = load(tmp_path / "out", dtype=np.float64)
    np.testing.assert_allclose(dataset.train_inputs, expected, atol=1e-12)
    assert dataset.manifest["arrays"]["train_inputs"]["dtype"] == "uint8"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_train", [None, 12])
def test_large_inputs_stay_raw_and_give_the_same_values(
    tmp_path: Path, dtype: npt.DTypeLike, num_train: int | None
) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, size=(20, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(20) % 3
    arrays = {"x_train": pixels, "y_train": labels, "x_test": pixels[:5], "y_test": labels[:5]}
    path = write_npz(tmp_path / "images.npz", arrays)
    definition = {"source": "npz", "path": str(path), "normalisation": "standardise"}
    prepare("images", definition, tmp_path / "out", None)
    count, view = num_train or 20, {"num_train": num_train}
    as_floats = (count + 5) * 48 * np.dtype(dtype).itemsize
    small = load(tmp_path / "out", view, dtype, most_normalised_bytes=as_floats)
    large = load(tmp_path / "out", view, dtype, most_normalised_bytes=as_floats - 1)
    assert small.normalisation is None
    assert large.normalisation is not None
    assert isinstance(large.train_inputs, np.memmap)
    assert isinstance(large.test_inputs, np.memmap)
    np.testing.assert_array_equal(large.train_inputs, pixels[:count])
    for dataset in (small, large):
        assert (dataset.num_train, dataset.input_shape, dataset.num_outputs) == (
            count,
            (4, 4, 3),
            3,
        )
        np.testing.assert_array_equal(dataset.train_labels, labels[:count])
        for split, inputs, targets in (
            ("train", small.train_inputs, small.train_targets),
            ("test", small.test_inputs, small.test_targets),
        ):
            for wanted in (None, 4, 1000):
                found = dataset.evaluation_set(split, wanted, dtype)
                for array, expected in zip(found, (inputs, targets), strict=True):
                    assert array.dtype == dtype
                    np.testing.assert_array_equal(array, expected[:wanted])
        indices = np.array([[3, 0], [7, 3]])
        found_inputs = dataset.inputs_at(indices, dtype)
        assert found_inputs.dtype == dtype
        np.testing.assert_array_equal(found_inputs, small.train_inputs[indices])


def test_large_regression_inputs_stay_raw(tmp_path: Path) -> None:
    targets = np.linspace(-1, 1, 12).reshape(6, 2)
    arrays = {**good_arrays(), "y_train": targets, "y_test": targets[:3]}
    path = write_npz(tmp_path / "mine.npz", arrays)
    definition = {"source": "npz", "path": str(path), "normalisation": {"mean": 0.5, "std": 2.0}}
    prepare("mine", definition, tmp_path / "out", None)
    small, large = (load(tmp_path / "out", most_normalised_bytes=size) for size in (10**6, 0))
    assert large.train_inputs.dtype == np.float64
    assert (large.num_outputs, large.train_labels) == (2, None)
    for split in ("train", "test"):
        found, expected = (data.evaluation_set(split, None, "f4") for data in (large, small))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_big_endian_and_fortran_arrays_are_stored_plainly(tmp_path: Path) -> None:
    arrays = good_arrays()
    unusual = {**arrays, "x_train": np.asfortranarray(arrays["x_train"].astype(">f8"))}
    for name, content in (("plain", arrays), ("unusual", unusual)):
        path = write_npz(tmp_path / f"{name}.npz", content)
        prepare(name, {"source": "npz", "path": str(path)}, tmp_path / name, None)
    for file in FILES - {"manifest.json"}:
        plain, other = ((tmp_path / name / file).read_bytes() for name in ("plain", "unusual"))
        assert plain == other


def test_num_train_takes_the_first_samples(tmp_path: Path) -> None:
    prepare("digits", {"source": "digits"}, tmp_path / "out", None)
    whole, part = load(tmp_path / "out"), load(tmp_path / "out", {"num_train": 100})
    np.testing.assert_array_equal(part.train_inputs, whole.train_inputs[:100])
    np.testing.assert_array_equal(part.train_targets, whole.train_targets[:100])
    assert part.test_inputs.shape == whole.test_inputs.shape
    for num_train in (0, 1438):
        with pytest.raises(InputError) as caught:
            load(tmp_path / "out", {"num_train": num_train})
        assert_one_line(caught.value, "digits", str(num_train), "1437")


def test_existing_folder_is_replaced_and_leftovers_removed(tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    prepare("data", {"source": "digits"}, output_dir, None)
    leftover = tmp_path / ".data.partial"
    (leftover / "arrays").mkdir(parents=True)
    (leftover / "arrays" / "train_inputs.npy").write_bytes(b"half")
    prepare("data", load_definition(CONFIG_DIR / "single_point.yaml"), output_dir, None)
    assert load(output_dir).train_inputs.shape == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_move_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = tmp_path / "out"
    prepare("data", {"source": "digits"}, output_dir, None)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare("data", {"source": "digits"}, output_dir, None)
    assert_nothing_prepared(output_dir)


# --- a folder of images ----------------------------------------------------------------------


def write_image(path: Path, pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, kind)


def distinct_images(number: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(shape)).integers(0, 256, (number, *shape), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_with_train_and_test(tmp_path: Path, channels: int) -> None:
    images = distinct_images(30, (6, 8, channels))
    expected: dict[str, dict[bytes, int]] = {"train": {}, "test": {}}
    for i, image in enumerate(images):
        split, label = ("train", "test")[i % 3 // 2], i % 2
        # Classes are numbered by name, and hidden files are not looked at.
        write_image(tmp_path / "mine" / split / ("owl", "Zebra")[label] / f"{i}.png", image)
        expected[split][image.tobytes()] = 1 - label
    (tmp_path / "mine" / "train" / "owl" / ".DS_Store").write_bytes(b"no image")
    definition = {"source": "folder", "path": str(tmp_path / "mine")}
    prepare("mine", definition, tmp_path / "out", None, num_threads=3)
    verify(tmp_path / "out")
    manifest = load(tmp_path / "out").manifest
    assert manifest["class_names"] == ["Zebra", "owl"]
    assert manifest["arrays"]["train_inputs"]["shape"] == [20, 6, 8, channels]
    labels = {}
    for split in ("train", "test"):
        stored = np.load(tmp_path / "out" / f"{split}_inputs.npy")
        labels[split] = np.load(tmp_path / "out" / f"{split}_targets.npy").tolist()
        found = [image.tobytes() for image in stored]
        assert dict(zip(found, labels[split], strict=True)) == expected[split]
    assert labels["train"] != sorted(labels["train"])  # the first samples are of all classes


def test_image_folder_is_split_within_each_class(tmp_path: Path) -> None:
    images = distinct_images(30, (4, 4, 3))
    for i, image in enumerate(images):
        write_image(tmp_path / "mine" / ("a" if i < 20 else "b") / f"{i}.png", image)
    stored = {}
    for seed in (0, 0, 1):
        definition = {
            "source": "folder",
            "path": str(tmp_path / "mine"),
            "test_fraction": 0.2,
            "split_seed": seed,
        }
        prepare("mine", definition, tmp_path / "out", None)
        manifest = load(tmp_path / "out").manifest
        assert manifest["class_balance"] == {"train": [16, 8], "test": [4, 2]}
        parts = [np.load(tmp_path / "out" / f"{split}_inputs.npy") for split in ("train", "test")]
        assert {i.tobytes() for part in parts for i in part} == {i.tobytes() for i in images}
        test_split = frozenset(image.tobytes() for image in parts[1])
        assert stored.setdefault(seed, test_split) == test_split
    assert stored[0] != stored[1]


def test_image_folder_of_many_sizes_and_kinds(tmp_path: Path) -> None:
    """Shorter side to image_size, then the centre; palettes, alpha and grey become RGB."""
    left, middle, right = (10, 20, 30), (200, 100, 50), (30, 20, 10)
    wide = np.zeros((20, 60, 3), np.uint8)
    for number, colour in enumerate((left, middle, right)):
        wide[:, 20 * number : 20 * (number + 1)] = colour
    for split in ("train", "test"):
        folder = tmp_path / "mine" / split
        write_image(folder / "wide" / "a.png", wide)
        write_image(folder / "wide" / "tall.bmp", wide.transpose(1, 0, 2), "BMP")
        (folder / "other").mkdir()
        Image.new("RGBA", (5, 7), (*middle, 128)).save(folder / "other" / "a.png")
        Image.new("P", (10, 10), 0).save(folder / "other" / "b.gif")
        Image.new("L", (10, 30), 77).save(folder / "other" / "c.jpg")
    definition = {"source": "folder", "path": str(tmp_path / "mine"), "image_size": 10}
    prepare("mine", definition, tmp_path / "out", None)
    inputs = np.load(tmp_path / "out" / "train_inputs.npy")
    labels = np.load(tmp_path / "out" / "train_targets.npy")
    assert inputs.shape == (5, 10, 10, 3)
    # At the very edge the resampling sees the pixels beside the centre.
    centre = inputs[labels == 1][:, 1:-1, 1:-1]
    np.testing.assert_array_equal(centre, np.broadcast_to(middle, (2, 8, 8, 3)))
    colours = sorted(tuple(image[5, 5].tolist()) for image in inputs[labels == 0])
    assert colours == [(0, 0, 0), (77, 77, 77), middle]


# --- memory, statistics, texts ---------------------------------------------------------------


def test_arrays_are_written_as_numpy_writes_them(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(11, 3, 2))
    np.save(tmp_path / "numpy.npy", array)
    with ArrayWriter(tmp_path / "ours.npy", (3, 2), np.float64) as writer:
        for start in range(0, 11, 4):
            writer.append(array[start : start + 4])
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    # Going on after seven samples, whatever follows them.
    with ArrayWriter(tmp_path / "ours.npy", (3, 2), np.float64, num_samples=7) as writer:
        writer.append(array[7:])
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    blocks = list(read_blocks(tmp_path / "ours.npy", block_bytes=200))
    assert [len(block) for block in blocks] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(blocks), array)
    [part] = read_blocks(tmp_path / "ours.npy", first=2, number=5)
    np.testing.assert_array_equal(part, array[2:7])
    with pytest.raises(EOFError):
        list(read_blocks(tmp_path / "ours.npy", first=2, number=10))


def test_statistics_go_through_an_array_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "BLOCK_BYTES", 1000)
    # Far from zero: sums of squares would lose all digits of the spread.
    array = np.random.default_rng(0).normal(1e6, 0.1, size=(50, 3, 4, 2))
    array += np.array([0, 5])
    np.save(tmp_path / "array.npy", array)
    found = statistics.input_statistics(tmp_path / "array.npy", num_channels=2)
    np.testing.assert_allclose(found.channel_mean, array.mean(axis=(0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(found.channel_std, array.std(axis=(0, 1, 2)), rtol=1e-7)
    assert (found.minimum, found.maximum) == (array.min(), array.max())
    assert found.mean == pytest.approx(array.mean(), rel=1e-14)
    assert found.std == pytest.approx(array.std(), rel=1e-9)


def test_words_and_tokens() -> None:
    text = "It's a 'GREAT' film!<br /><br />Émile_Zola's 10/10 -- isn''t dont’s"
    assert split_words(text) == (
        ["it's", "a", "great", "film", "émile", "zola's", "10", "10", "isn", "t", "dont's"]
    )
    vocabulary = make_vocabulary(["b a b", "c c a", "d"], vocabulary_size=5)
    assert vocabulary == ["a", "b", "c"]  # of equal frequency, in alphabetical order
    words = {word: number for number, word in enumerate(vocabulary, start=1)}
    tokens = tokenise(["b d a", "", "c c c c c"], words, vocabulary_size=5, length=4)
    np.testing.assert_array_equal(tokens, [[2, 4, 1, 0], [0, 0, 0, 0], [3, 3, 3, 3]])
    types = [tokenise([], {}, size, 3).dtype for size in (256, 257, 65536, 65537)]
    assert types == [np.uint8, np.uint16, np.uint16, np.uint32]


# --- broken input arrays ---------------------------------------------------------------------


def changed(**changes: Any) -> Callable[[Path], None]:
    """A writer of an .npz file whose arrays differ from good ones; None leaves an array out."""

    def write(path: Path) -> None:
        arrays = {**good_arrays(), **changes}
        write_npz(path, {key: value for key, value in arrays.items() if value is not None})

    return write


def with_value(key: str, index: Any, value: float) -> Callable[[Path], None]:
    array = good_arrays()[key]
    array[index] = value
    return changed(**{key: array})


def truncated(path: Path) -> None:
    write_npz(path, good_arrays())
    path.write_bytes(path.read_bytes()[:500])


def corrupted(path: Path) -> None:
    write_npz(path, good_arrays())
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)


def corrupted_lzma(path: Path) -> None:
    """As other programs may compress."""
    write_npz(path, good_arrays())
    with zipfile.ZipFile(path) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)


def as_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def as_pickle(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)


BROKEN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing file": (lambda path: None, ["no such file"]),
    "folder": (lambda path: path.mkdir(), ["no such file"]),
    "empty file": (lambda path: path.touch(), ["not an .npz file"]),
    "text file": (lambda path: path.write_text("x_train: 1"), ["not an .npz file"]),
    "npy file": (as_npy, ["not an .npz file"]),
    "pickle": (as_pickle, ["not an .npz file"]),
    "truncated": (truncated, ["truncated"]),
    "flipped bits": (corrupted, ["x_train", "damaged"]),
    "damaged LZMA": (corrupted_lzma, ["x_train", "damaged"]),
    "missing keys": (changed(x_test=None, y_test=None), ["missing x_test, y_test"]),
    "objects": (changed(y_train=np.array([0, {}] * 3, dtype=object)), ["y_train", "objects"]),
    "text inputs": (changed(x_train=np.full((6, 4), "a")), ["x_train", "<U1"]),
    "complex inputs": (changed(x_train=np.ones((6, 4), complex)), ["x_train", "complex128"]),
    "128-bit inputs": (
        changed(x_train=np.ones((6, 4), np.longdouble)),
        ["x_train", str(np.dtype(np.longdouble)), "64 bits"],
    ),
    "text labels": (changed(y_train=np.array(["a"] * 6)), ["y_train", "<U1"]),
    "bool labels": (changed(y_train=np.ones(6, bool)), ["y_train", "bool"]),
    "unequal train": (changed(y_train=np.arange(5) % 3), ["x_train has 6", "y_train has 5"]),
    "unequal test": (changed(y_test=np.array([0, 1])), ["x_test has 3", "y_test has 2"]),
    "scalar labels": (changed(y_train=np.array(1)), ["x_train has 6", "y_train has 0"]),
    "one-hot labels": (changed(y_train=np.eye(6, 3, dtype=int)), ["y_train", "(6, 3)"]),
    "negative label": (with_value("y_train", 0, -1), ["y_train", "label -1"]),
    "gap in labels": (with_value("y_train", slice(None), 2), ["y_train", "no label 0"]),
    "one class": (with_value("y_train", slice(None), 0), ["y_train", "one class"]),
    "unseen test label": (with_value("y_test", 0, 3), ["y_test", "label 3", "0 to 2"]),
    "negative test label": (with_value("y_test", 0, -2), ["y_test", "label -2"]),
    "mixed tasks": (changed(y_test=np.ones(3)), ["y_test", "float64"]),
    "mixed tasks, other way": (changed(y_train=np.ones(6)), ["y_test", "int64"]),
    "outputs differ": (
        changed(y_train=np.ones((6, 2)), y_test=np.ones((3, 1))),
        ["y_train has 2 outputs", "y_test has 1"],
    ),
    "targets of three axes": (
        changed(y_train=np.ones((6, 2, 2)), y_test=np.ones((3, 2, 2))),
        ["y_train", "(6, 2, 2)"],
    ),
    "nan input": (with_value("x_train", (4, 2), np.nan), ["x_train[4, 2]", "nan"]),
    "inf input": (with_value("x_test", (0, 1), np.inf), ["x_test[0, 1]", "inf"]),
    "nan target": (
        changed(y_train=np.full(6, np.nan), y_test=np.ones(3)),
        ["y_train[0]", "nan"],
    ),
    "empty": (changed(x_train=np.ones((0, 4)), y_train=np.ones(0, int)), ["x_train", "empty"]),
    "no features": (changed(x_test=np.ones((3, 0))), ["x_test", "empty"]),
    "one axis": (changed(x_train=np.ones(6)), ["x_train", "(6,)"]),
    "types differ": (changed(x_test=np.ones((3, 4), np.uint8)), ["x_test holds uint8", "float64"]),
    "shapes differ": (changed(x_test=np.ones((3, 5))), ["x_test", "(5,)", "(4,)"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_arrays_are_named(case: str, tmp_path: Path) -> None:
    write, fragments = BROKEN[case]
    path = tmp_path / "mine.npz"
    write(path)
    # As Snakemake does, the folder of the outputs exists before the job runs.
    output_dir = tmp_path / "datasets" / "mine"
    output_dir.mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        prepare("mine", {"source": "npz", "path": str(path)}, output_dir, None)
    assert_one_line(caught.value, str(path), *fragments)
    assert_nothing_prepared(output_dir)
    assert list(output_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "changes", "fragments"),
    [
        ({"num_classes": 2}, {}, ["y_train", "label 2", "0 to 1"]),
        ({"num_classes": 2}, {"y_train": np.ones(6), "y_test": np.ones(3)}, ["num_classes"]),
        ({"normalisation": "standardise"}, {"x_train": np.ones((6, 4))}, ["standard deviation"]),
        ({"normalisation": {"mean": [0, 0], "std": 1}}, {}, ["normalisation.mean", "4"]),
    ],
)
def test_options_that_do_not_fit_the_arrays(
    options: dict[str, Any], changes: Arrays, fragments: list[str], tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "mine.npz", {**good_arrays(), **changes})
    with pytest.raises(InputError) as caught:
        prepare("mine", {"source": "npz", "path": str(path), **options}, tmp_path / "out", None)
    assert_one_line(caught.value, "mine", *fragments)
    assert_nothing_prepared(tmp_path / "out")


def test_more_classes_than_seen_can_be_declared(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "mine.npz", good_arrays())
    definition = {"source": "npz", "path": str(path), "num_classes": 5}
    prepare("mine", definition, tmp_path / "out", None)
    assert load(tmp_path / "out").train_targets.shape == (6, 5)


def test_missing_tensorflow_datasets_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError) as caught:
        prepare("mnist", {"source": "tfds", "tfds_name": "mnist"}, tmp_path / "mnist", None)
    assert_one_line(
        caught.value, "mnist", "tensorflow_datasets", "pip install 'sgdphases[datasets]'"
    )
    assert_nothing_prepared(tmp_path / "mnist")


# --- damaged prepared folders ----------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare("digits", {"source": "digits"}, tmp_path / "digits", None)
    return tmp_path / "digits"


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def truncate_array(folder: Path) -> None:
    path = folder / "train_inputs.npy"
    path.write_bytes(path.read_bytes()[:1000])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (
        lambda folder: (folder / "manifest.json").write_text('{"name": "dig'),
        "manifest.json",
    ),
    "manifest of another kind": (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        "manifest.json",
    ),
    "manifest without arrays": (
        lambda folder: rewrite_manifest(folder, lambda manifest: manifest.pop("arrays")),
        "manifest.json",
    ),
    "missing array": (lambda folder: (folder / "test_targets.npy").unlink(), "test_targets.npy"),
    "truncated array": (truncate_array, "train_inputs.npy"),
    "other shape": (
        lambda folder: rewrite_manifest(
            folder, lambda manifest: manifest["arrays"]["train_inputs"]["shape"].append(2)
        ),
        "train_inputs.npy",
    ),
    "other type": (
        lambda folder: np.save(folder / "test_targets.npy", np.zeros(360, np.float32)),
        "test_targets.npy",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folder_is_named(case: str, prepared: Path) -> None:
    damage, file = DAMAGES[case]
    damage(prepared)
    for action in (load, verify):
        with pytest.raises(InputError) as caught:
            action(prepared)
        assert_one_line(caught.value, str(prepared / file), "delete the folder and rerun")


def test_verify_finds_changed_content(prepared: Path) -> None:
    path = prepared / "train_inputs.npy"
    manifest = json.loads((prepared / "manifest.json").read_text())
    expected = manifest["arrays"]["train_inputs"]["sha256"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    load(prepared)
    with pytest.raises(InputError) as caught:
        verify(prepared)
    assert_one_line(caught.value, str(path), "SHA-256", "delete the folder and rerun")
