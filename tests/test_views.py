"""Views of a prepared dataset: which samples, which targets, which pixels."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from sgdphases.batches import batch_indices, open_batches
from sgdphases.datasets import load, prepare
from sgdphases.datasets.facts import facts_of_definition
from sgdphases.datasets.loading import ARRAY_NAMES
from sgdphases.datasets.views import (
    GREY_WEIGHTS,
    Facts,
    Pixels,
    check_view,
    facts_of_manifest,
    read_view,
)
from sgdphases.errors import InputError
from sgdphases.workflow import make_plan

NUM_TRAIN, NUM_TEST, CLASSES = 120, 40, 5
SHAPE = (6, 4, 3)
MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.3, 0.2, 0.1])

rng = np.random.default_rng(0)
PIXELS = {
    "train": rng.integers(0, 256, (NUM_TRAIN, *SHAPE), dtype=np.uint8),
    "test": rng.integers(0, 256, (NUM_TEST, *SHAPE), dtype=np.uint8),
}
LABELS = {"train": rng.integers(0, CLASSES, NUM_TRAIN), "test": rng.integers(0, CLASSES, NUM_TEST)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("views")
    arrays = {f"x_{split}": PIXELS[split] for split in PIXELS}
    np.savez(base / "own.npz", **arrays, **{f"y_{split}": LABELS[split] for split in LABELS})
    definition = {
        "source": "npz",
        "path": str(base / "own.npz"),
        "num_classes": CLASSES,
        "normalisation": {"mean": MEAN.tolist(), "std": STD.tolist()},
    }
    prepare("own", definition, base / "own", None)
    return base / "own"


def both(folder, view, dtype=np.float64):
    """The view in memory, and in memory maps."""
    return [load(folder, view, dtype, most) for most in (10**9, 0)]


def whole(split, rows=slice(None)):
    return (PIXELS[split][rows] / 255 - MEAN) / STD


def test_nothing_is_the_whole_dataset(folder):
    for dataset in both(folder, {"name": "own", "num_train": None}):
        assert (dataset.num_train, dataset.input_shape, dataset.num_outputs) == (120, SHAPE, 5)
        assert dataset.train_rows is dataset.pixels is dataset.stream is None


@pytest.mark.parametrize(
    ("view", "rows", "test_rows", "labels"),
    [
        ({"num_train": 7, "num_test": 3}, np.arange(7), np.arange(3), range(CLASSES)),
        (
            {"classes": [3, 1]},
            np.flatnonzero(np.isin(LABELS["train"], [3, 1])),
            np.flatnonzero(np.isin(LABELS["test"], [3, 1])),
            [3, 1],
        ),
        (
            {"classes": [0, 4, 2], "samples_per_class": 5, "num_train": 12, "num_test": 4},
            np.sort(np.concatenate([np.flatnonzero(LABELS["train"] == c)[:5] for c in (0, 4, 2)]))[
                :12
            ],
            np.flatnonzero(np.isin(LABELS["test"], [0, 4, 2]))[:4],
            [0, 4, 2],
        ),
        (
            {"samples_per_class": 3},
            np.sort(np.concatenate([np.flatnonzero(LABELS["train"] == c)[:3] for c in range(5)])),
            np.arange(NUM_TEST),
            range(CLASSES),
        ),
    ],
)
def test_samples_and_labels(folder, view, rows, test_rows, labels):
    for dataset in both(folder, view):
        assert dataset.num_train == len(rows)
        assert dataset.num_outputs == len(labels)
        for split, chosen in (("train", rows), ("test", test_rows)):
            own = [list(labels).index(label) for label in LABELS[split][chosen]]
            inputs, targets = dataset.evaluation_set(split, None, np.float64)
            np.testing.assert_allclose(inputs, whole(split, chosen), atol=1e-12)
            np.testing.assert_array_equal(targets, np.eye(len(labels))[own])
        at = np.array([[2, 0], [1, 1]])
        np.testing.assert_allclose(
            dataset.inputs_at(at, np.float64), whole("train", rows[at]), atol=1e-12
        )
        own = [[list(labels).index(label) for label in row] for row in LABELS["train"][rows[at]]]
        np.testing.assert_array_equal(
            dataset.targets_at(at, np.float64), np.eye(len(labels))[np.array(own)]
        )


def test_parity_is_that_of_the_datasets_own_classes(folder):
    for dataset in both(folder, {"labels": "parity", "classes": [3, 2, 1]}):
        assert (dataset.num_outputs, dataset.train_labels, dataset.test_labels) == (1, None, None)
        for split in ("train", "test"):
            own = LABELS[split][np.isin(LABELS[split], [3, 2, 1])]
            _, targets = dataset.evaluation_set(split, None, np.float64)
            np.testing.assert_array_equal(targets, (1.0 - 2 * (own % 2))[:, None])


def test_shuffled_labels_are_a_permutation_of_the_training_labels(folder):
    asked = {"num_train": 60, "shuffled_labels": 0}
    plain, other = (load(folder, {**asked, "shuffled_labels": seed}) for seed in (None, 1))
    for dataset in both(folder, asked):
        np.testing.assert_array_equal(np.sort(dataset.train_labels), np.sort(plain.train_labels))
        assert (dataset.train_labels != plain.train_labels).mean() > 0.5
        assert (dataset.train_labels != other.train_labels).mean() > 0.5
        np.testing.assert_array_equal(dataset.test_labels, plain.test_labels)
    signs = load(folder, {**asked, "labels": "parity"}).train_targets
    np.testing.assert_array_equal(signs[:, 0], 1 - 2 * (dataset.train_labels % 2))


def area_mean(image, size):
    """By a grid so fine that every old and new pixel is a whole number of its cells."""
    fine = np.kron(image, np.ones((size, size)))
    cells = fine.reshape(size, image.shape[0], size, image.shape[1])
    return cells.mean((1, 3))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_resized_pixels_are_means_over_areas(folder, size):
    expected = [[area_mean(whole("train")[i, :, :, c], size) for c in range(3)] for i in range(4)]
    for dataset in both(folder, {"resize": size}):
        assert dataset.input_shape == (size, size, 3)
        found, _ = dataset.evaluation_set("train", 4, np.float64)
        np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, atol=1e-12)


def test_grey_is_normalised_by_weighted_numbers(folder):
    weights = np.array(GREY_WEIGHTS)
    assert weights.sum() == pytest.approx(1)
    expected = (PIXELS["test"] / 255 @ weights - MEAN @ weights) / (STD @ weights)
    for dataset in both(folder, {"grey": True}):
        assert dataset.input_shape == (6, 4, 1)
        found, _ = dataset.evaluation_set("test", None, np.float64)
        np.testing.assert_allclose(found[..., 0], expected, atol=1e-12)


def test_pixels_are_those_of_pillow():
    """Within its rounding to whole numbers; Pillow takes exact means where sides divide."""
    images = PIXELS["test"][:5]
    for image in images:
        grey = np.asarray(Image.fromarray(image).convert("L"), float)
        np.testing.assert_allclose(Pixels(True, None).apply(image / 1.0)[..., 0], grey, atol=1.0)
        small = Image.fromarray(image).resize((2, 2), Image.Resampling.BOX)
        np.testing.assert_allclose(Pixels(False, 2).apply(image / 1.0), small, atol=1.0)


def test_grey_leaves_grey_images_as_they_are(tmp_path):
    prepare("digits", {"source": "digits", "normalisation": "standardise"}, tmp_path / "out", None)
    grey, plain = (
        load(tmp_path / "out", {"grey": value, "num_train": 9}) for value in (True, False)
    )
    np.testing.assert_array_equal(grey.train_inputs, plain.train_inputs)
    assert load(tmp_path / "out", {"resize": 8}, "f4", 0).pixels is None


def test_pixels_in_jax_are_those_in_numpy():
    images = np.random.default_rng(0).normal(size=(2, 3, *SHAPE)).astype(np.float32)
    pixels = Pixels(to_grey=True, size=3)
    assert pixels.shape(SHAPE) == (3, 3, 1)
    np.testing.assert_allclose(pixels.apply(images), pixels.apply(images, jnp), atol=1e-6)


VIEW = {
    "classes": [4, 0, 1],
    "samples_per_class": 12,
    "num_train": 33,
    "shuffled_labels": 5,
    "grey": True,
    "resize": 3,
}


@pytest.mark.parametrize("labels", ["classes", "parity"])
@pytest.mark.parametrize("device_bytes", [0, 10**9])
def test_batches_are_those_of_the_view(folder, labels, device_bytes):
    small, raw = both(folder, {**VIEW, "labels": labels}, np.float32)
    assert raw.train_inputs.shape == (NUM_TRAIN, *SHAPE)
    assert isinstance(raw.train_inputs, np.memmap)
    expected, expected_targets = small.evaluation_set("train", None, np.float32)
    indices = batch_indices(33, 8, 0, 10, 3)
    for dataset in (small, raw):
        with open_batches(dataset, 8, 3, np.float32, last_step=10, device_bytes=device_bytes) as b:
            segment = b.segment(0, 10)
            assert segment.inputs.shape == (10, 8, 3, 3, 1)
            np.testing.assert_allclose(segment.inputs, expected[indices], atol=2e-6)
            np.testing.assert_array_equal(segment.targets, expected_targets[indices])
        with open_batches(dataset, 64, 3, np.float32) as b:  # all that the view leaves
            assert b.is_full_batch
            np.testing.assert_allclose(b.segment(0, 1).inputs[0], expected, atol=2e-6)


def test_a_view_writes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path.name for path in before} == {*(f"{n}.npy" for n in ARRAY_NAMES), "manifest.json"}
    both(folder, VIEW)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_facts_of_definition_and_manifest_agree(folder, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert facts_of_manifest(manifest) == Facts("classification", CLASSES, 120, 40, SHAPE)
    seeded = {"num_train": 6, "num_test": 3, "seed": 0}
    for definition in (
        {"source": "digits"},
        {"source": "points", "inputs": [[1.0, 2.0]], "targets": [[3.0]]},
        {"source": "gaussian", "input_dim": 3, "output_dim": 2, **seeded},
        {"source": "gaussian_mixture", "num_classes": 3, "input_dim": 4, "separation": 1, **seeded},
        {"source": "single_index", "input_dim": 4, "link_power": 3, **seeded},
    ):
        prepare("it", definition, tmp_path / "it", None)
        manifest = json.loads((tmp_path / "it/manifest.json").read_text())
        assert facts_of_manifest(manifest) == facts_of_definition(definition)


IMAGES = Facts("classification", 10, 100, 20, (8, 8, 3))


@pytest.mark.parametrize(
    ("view", "facts", "says"),
    [
        ({"classes": [3, 10]}, IMAGES, ["classes: 10", "0 to 9"]),
        ({"num_train": 101}, IMAGES, ["num_train: 101", "1 to 100"]),
        ({"num_test": 21}, IMAGES, ["num_test: 21", "1 to 20"]),
        ({"labels": "parity", "classes": [5, 3]}, Facts(), ["labels: 'parity'", "[5, 3], all odd"]),
        ({"grey": True}, Facts(input_shape=(8, 8, 4)), ["grey", "4 channels", "1 (", "3"]),
        ({"grey": True}, Facts(input_shape=(8,)), ["grey", "shape (8,)", "images"]),
        ({"resize": 4}, Facts(input_shape=(8,)), ["resize: 4", "shape (8,)", "images"]),
        ({"labels": "parity"}, Facts("regression"), ["labels: 'parity'", "regression"]),
        ({"classes": [0, 1]}, Facts("regression"), ["classes: [0, 1]", "regression"]),
        ({"shuffled_labels": 0}, Facts("regression"), ["shuffled_labels: 0", "regression"]),
        ({"num_train": 3}, Facts(is_stream=True), ["num_train: 3", "afresh", "num_test"]),
    ],
)
def test_views_that_do_not_suit(view, facts, says):
    with pytest.raises(InputError) as caught:
        check_view(read_view(view), facts, "file.yaml: dataset.")
    message = str(caught.value)
    assert message.startswith("file.yaml: dataset.")
    assert "\n" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("view", "says"),
    [
        ({"num_train": 121}, "num_train: 121 is not allowed; allowed: 1 to 120"),
        ({"classes": [0, 1], "num_train": 100}, "num_train: 100 is not allowed; allowed: 1 to"),
        ({"samples_per_class": 100}, "samples_per_class: 100 is not allowed: class 0 has"),
        ({"classes": [0, 7]}, "classes: 7 is no class of the dataset; allowed: 0 to 4"),
    ],
)
def test_what_only_the_data_show(folder, view, says):
    for most in (0, 10**9):
        with pytest.raises(InputError, match=says) as caught:
            load(folder, view, "f4", most)
        assert str(caught.value).startswith("dataset own: ")


# --- found before any job --------------------------------------------------------------------

CONFIG_DIR = Path(__file__).parents[1] / "config" / "datasets"
GOOD = {
    "description": "A tiny grid",
    "dataset": "digits",
    "hyperparameters": {"model": "fully_connected", "width": 8},
    "grid": {"learning_rate": [0.1]},
    "stopping": {"num_steps": 2},
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    def write_and_plan(changes):
        folder = tmp_path / "config"
        shutil.copytree(CONFIG_DIR, folder / "datasets")
        (folder / "experiments/user").mkdir(parents=True)
        (folder / "experiments/user/tiny.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
        monkeypatch.chdir(tmp_path)
        return make_plan({"scale": "quick"})

    return write_and_plan


@pytest.mark.parametrize(
    ("dataset", "changes"),
    [
        ({"name": "digits", "labels": "parity", "classes": [3, 4], "samples_per_class": 9}, {}),
        ({"name": "digits", "grey": True, "resize": 4, "shuffled_labels": 0}, {}),
        ({"name": "single_index_quadratic", "num_test": 100}, {"stopping": {"physical_time": 3}}),
        ("gaussian_mixture", {"stopping": {"epochs": 1}}),
    ],
)
def test_views_that_suit(plan, dataset, changes):
    assert plan({"dataset": dataset, **changes}).experiments["user/tiny"].runs


CROSS_ENTROPY = {"hyperparameters": {**GOOD["hyperparameters"], "loss": "cross_entropy"}}
SHIFTED = {"hyperparameters": {**GOOD["hyperparameters"], "label_shift": -0.01}}


@pytest.mark.parametrize(
    ("dataset", "changes", "says"),
    [
        ({"name": "digits", "embedded": "digits"}, {}, ["dataset: {", "or with published"]),
        ({"name": "digits", "classes": [3]}, {}, ["dataset.classes: [3]", "at least two"]),
        ({"name": "digits", "classes": [3, 3]}, {}, ["dataset.classes: [3, 3]", "different"]),
        ({"name": "digits", "classes": [3, 10]}, {}, ["dataset.classes: 10", "0 to 9"]),
        ({"name": "digits", "samples_per_class": 0}, {}, ["dataset.samples_per_class: 0"]),
        ({"name": "digits", "num_train": 5000}, {}, ["dataset.num_train: 5000", "1 to 1437"]),
        ({"name": "digits", "shuffled_labels": -1}, {}, ["shuffled_labels: -1", "at least 0"]),
        ({"name": "digits", "labels": "odd"}, {}, ["dataset.labels: 'odd'", "parity"]),
        ({"name": "digits", "grey": 1}, {}, ["dataset.grey: 1", "true or false"]),
        ({"name": "digits", "resize": 0}, {}, ["dataset.resize: 0", "at least 1"]),
        ({"name": "gaussian_regression", "labels": "parity"}, {}, ["labels: 'parity'", "regres"]),
        ({"name": "gaussian_mixture", "grey": True}, {}, ["dataset.grey: true", "(64,)", "images"]),
        ({"name": "imdb", "resize": 4}, {}, ["resize: 4", "shape (256,)", "images"]),
        ({"name": "single_index_cubic", "num_train": 9}, {}, ["num_train: 9", "afresh"]),
        ({"name": "digits", "labels": "parity"}, CROSS_ENTROPY, ["'cross_entropy'", "+1 and -1"]),
        ("single_index_cubic", CROSS_ENTROPY, ["'cross_entropy'", "mean_squared_error"]),
        ("single_index_cubic", SHIFTED, ["label_shift: -0.01", "has no classes", "allowed: 0"]),
        ({"name": "digits", "labels": "parity"}, SHIFTED, ["label_shift: -0.01", "no classes"]),
        ("single_index_cubic", {"stopping": {"epochs": 1}}, ["stopping.epochs", "num_steps"]),
        (
            "single_index_cubic",
            {"grid": {"budget_epochs": [1], "learning_rate": [0.1]}, "stopping": {"num_steps": 9}},
            ["budget_epochs", "without end"],
        ),
        (
            "single_index_cubic",
            {"stopping": {"num_steps": 9, "train_accuracy": 1.0}},
            ["stopping.train_accuracy", "without classes"],
        ),
    ],
)
def test_what_does_not_suit_is_found_before_any_job(plan, dataset, changes, says):
    with pytest.raises(InputError) as caught:
        plan({"dataset": dataset, **changes})
    message = str(caught.value)
    assert message.startswith("config/experiments/user/tiny.yaml: ")
    assert "\n" not in message
    for part in says:
        assert part in message
