"""Generated datasets: definition, network, training, sampling, assembly."""

import errno
import functools
import hashlib
import json
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import yaml

from sgdphases.datasets import load, load_definition, prepare, verify
from sgdphases.devices import use_compilation_cache
from sgdphases.diffusion import sampling, training
from sgdphases.diffusion.assembly import assemble, write_shard
from sgdphases.diffusion.definition import resolve_definition
from sgdphases.diffusion.model_file import read_model, write_model
from sgdphases.diffusion.process import linear_schedule, velocity_of
from sgdphases.diffusion.quality import measure_quality, relative_spread
from sgdphases.diffusion.sampling import (
    Sampler,
    noise_predictor,
    plan_moves,
    sample_shard,
    shard_keys,
    to_pixels,
)
from sgdphases.diffusion.training import check_base, drop_labels, train_denoiser
from sgdphases.diffusion.unet import build_unet, from_patches, to_patches
from sgdphases.errors import InputError
from sgdphases.figures.samples import draw_samples
from sgdphases.interruption import Interrupted

SHIPPED = Path(__file__).parents[1] / "config/datasets/mnist1m.yaml"
SOURCES = {"digits": "digits", "mnist": "tfds", "mnist1m": "diffusion"}
SHAPE = (8, 8, 1)
TINY = {
    "source": "diffusion",
    "base": "digits",
    "num_images": 60,
    "num_shards": 3,
    "process": {"num_steps": 20, "last_beta": 0.3},
    "network": {"width": 4, "channel_multipliers": [1], "vector_width": 16},
    "training": {"num_steps": 60, "batch_size": 16, "learning_rate": 2.0e-3},
    "sampling": {"num_steps": 4},
}


def resolve(definition, scale="smoke", data="embedded"):
    return resolve_definition(definition, scale, data, SOURCES, "mine.yaml")


TINY_RESOLVED = resolve(TINY)
SCHEDULE = linear_schedule(400, 1e-4, 0.02)


# --- definition ------------------------------------------------------------------------------


def test_shipped_definition_at_every_scale():
    definition = load_definition(SHIPPED)
    for scale in ("smoke", "quick", "paper"):
        for data, base in (("embedded", "digits"), ("published", "mnist")):
            resolved = resolve(definition, scale, data)
            assert resolved["base"] == base
            assert resolved["process"] == {"num_steps": 400, "first_beta": 1e-4, "last_beta": 0.02}
            assert resolved["training"]["label_dropout"] == 0.1
            assert "scales" not in resolved
    assert resolved["num_images"] == 1_000_000
    assert resolved["num_images"] % (10 * resolved["num_shards"]) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sampling: {guidance: -0.5}", "sampling.guidance: -0.5 is not allowed; allowed: a number"),
        ("sampling: {sampler: euler}", "sampling.sampler: 'euler' is not allowed; allowed: ddpm"),
        ("sampling: {num_steps: 0}", "sampling.num_steps: 0 is not allowed"),
        ("sampling: {num_steps: 401}", "sampling.num_steps: 401; allowed: at most process"),
        ("sampling: {eta: 1.5}", "sampling.eta: 1.5 is not allowed"),
        ("sampling: {sampler: ddpm, num_steps: 10}", "nothing with ddpm"),
        ("training: {num_steps: 0}", "training.num_steps: 0 is not allowed"),
        ("training: {label_dropout: 1}", "training.label_dropout: 1 is not allowed"),
        ("training: {rate: 1}", "training: unknown key 'rate'; allowed"),
        ("network: {width: 7}", "network.width: 7 is not allowed; allowed: an even"),
        ("process: {last_beta: 1.0}", "process.last_beta: 1.0 is not allowed"),
        ("process: {first_beta: 0.1}", "process.last_beta: 0.02; allowed: at least"),
        ("num_shards: 7", "num_images: 100; allowed: a multiple of num_shards, 7"),
        ("base: mnist1m", "base: 'mnist1m' is no dataset to learn from; allowed: digits, mnist"),
        ("base: mnits", "base: 'mnits' is no dataset to learn from"),
        ("scales: {smoke: {num_image: 5}}", "(scale smoke): unknown key 'num_image'"),
        ("scales: {smoke: {sampling: {guidance: -1}}}", "(scale smoke): sampling.guidance: -1"),
        ("scales: {tiny: {}}", "scales: unknown key 'tiny'"),
    ],
)
def test_faulty_definition_is_named(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    document = {"source": "diffusion", "base": "digits", "num_images": 100}
    path.write_text(yaml.safe_dump({**document, **yaml.safe_load(text)}))
    with pytest.raises(InputError) as caught:
        resolve_definition(load_definition(path), "smoke", "embedded", SOURCES, str(path))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


# --- network ---------------------------------------------------------------------------------


def test_patches_are_undone():
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    for size in (1, 2, 4):
        patches = to_patches(images, size)
        assert patches.shape == (2, 8 // size, 12 // size, 3 * size**2)
        np.testing.assert_array_equal(from_patches(patches, size), images)


NETWORK = {
    "width": 4,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "vector_width": 8,
    "patch_size": 1,
}


@pytest.fixture(scope="module")
def unet():
    """A network, compiled, and parameters of it none of which are zero."""
    denoiser = build_unet(NETWORK, SHAPE, 10)
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    parameters = jax.tree.map(
        lambda leaf: 0.3 * generator.standard_normal(leaf.shape, np.float32), shapes
    )
    return denoiser._replace(apply=jax.jit(denoiser.apply)), parameters


def test_network_starts_at_zero(unet):
    denoiser, _ = unet
    images = np.random.default_rng(1).standard_normal((4, *SHAPE), np.float32)
    start = jax.jit(denoiser.init)(jax.random.key(0))
    output = denoiser.apply(start, images, np.arange(4), np.arange(4))
    np.testing.assert_array_equal(output, np.zeros((4, *SHAPE)))


def test_network_reads_step_and_class_of_each_image(unet):
    denoiser, parameters = unet
    image = np.random.default_rng(1).standard_normal((1, *SHAPE), np.float32)
    images = np.repeat(image, 4, axis=0)
    steps, classes = np.array([5, 5, 9, 5]), np.array([1, 10, 1, 1])
    output = np.asarray(denoiser.apply(parameters, images, steps, classes))
    assert output.shape == images.shape
    assert np.abs(output[0] - output[1]).max() > 0.01
    assert np.abs(output[0] - output[2]).max() > 0.01
    np.testing.assert_allclose(output[0], output[3], rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(InputError, match=r"28x28 pixels cannot be cut.*multiples of 8"):
        build_unet({**NETWORK, "patch_size": 4}, (28, 28, 1), 10)


# --- training --------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs: training again is compiled once."""
    use_compilation_cache(tmp_path_factory.mktemp("programs"))
    yield
    jax.config.update("jax_compilation_cache_dir", None)


def test_labels_are_dropped_at_the_stated_rate():
    labels = jnp.arange(100_000) % 10
    dropped = np.asarray(drop_labels(jax.random.key(0), labels, 0.1, 10))
    is_dropped = dropped == 10
    # Four standard deviations of a binomial share.
    assert abs(is_dropped.mean() - 0.1) < 4 * np.sqrt(0.09 / 100_000)
    np.testing.assert_array_equal(dropped[~is_dropped], np.asarray(labels)[~is_dropped])


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", {"source": "digits", "normalisation": "standardise"}, folder, None)
    return folder


@pytest.fixture(scope="module")
def base(base_folder):
    return load(base_folder, most_normalised_bytes=0)


@pytest.fixture(scope="module")
def trained(base):
    return train_denoiser("tiny", TINY_RESOLVED, base)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.parameters)]


def assert_same_model(left, right):
    for one, other in zip(leaves(left), leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_learns(trained):
    model, losses = trained
    assert (model.image_shape, model.num_classes, model.scale) == (SHAPE, 10, 1 / 16)
    # Of a prediction of zero, as at the start, the loss is 1.
    assert losses["step"].tolist() == [20, 40, 60]
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0] < 1.2


class _Stop:
    """An interruption that is requested when asked for the second time."""

    def __init__(self):
        self.asked = 0

    @property
    def requested(self):
        self.asked += 1
        return self.asked >= 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_interrupted_training_resumes_at_the_same_numbers(base, trained, tmp_path, monkeypatch):
    train = functools.partial(train_denoiser, "tiny", TINY_RESOLVED, base, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(training, "saving_on_signal", _Stop)
        with pytest.raises(Interrupted) as caught:
            train()
    assert 0 < caught.value.step < 60
    assert caught.value.saved
    # A checkpoint of other code, or a damaged one, is not used.
    (file,) = sorted(tmp_path.glob("*.npz"))[-1:]
    model, losses = train()
    assert_same_model(model, trained[0])
    pd.testing.assert_frame_equal(losses, trained[1])
    file.write_bytes(file.read_bytes()[:-100])
    assert_same_model(train()[0], trained[0])


def test_base_without_images_or_classes_is_refused(tmp_path, base):
    points = {"source": "points", "inputs": [[1.0]], "targets": [[1.0]]}
    prepare("points", points, tmp_path / "points", None)
    with pytest.raises(InputError, match=r"base: 'points' .*no labels; allowed: 8-bit images"):
        train_denoiser("tiny", TINY_RESOLVED, load(tmp_path / "points", most_normalised_bytes=0))
    with pytest.raises(InputError, match="num_images: 33; allowed: a multiple of 10"):
        check_base("tiny", {"num_images": 33}, base)


def test_model_file(trained, tmp_path):
    path = tmp_path / "model.npz"
    write_model(trained[0], path)
    assert_same_model(read_model(path), trained[0])
    assert read_model(path).image_shape == SHAPE
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"model.npz: no readable model.*delete it and run again"):
        read_model(path)
    with pytest.raises(InputError, match="no such file"):
        read_model(tmp_path / "absent.npz")


# --- sampling --------------------------------------------------------------------------------


def draw(model, shard=0, definition=TINY_RESOLVED, **options):
    return sample_shard("tiny", definition, model, shard, 20, **options)


def test_shards_depend_on_seed_and_number_alone(trained, monkeypatch):
    model, _ = trained
    images = draw(model)
    assert (images.shape, images.dtype) == ((20, *SHAPE), np.uint8)
    assert images.max() <= 16
    np.testing.assert_array_equal(images, draw(model))
    assert (images != draw(model, 1)).any()
    assert (images != draw(model, definition={**TINY_RESOLVED, "seed": 1})).any()
    # How many are drawn at once changes rounding at most.
    monkeypatch.setattr(sampling, "_MOST_AT_ONCE_ON_CPU", 7)
    others = draw(model).astype(int)
    assert np.abs(others - images).max() <= 1


def test_interrupted_shard_resumes_with_the_same_bytes(trained, tmp_path, monkeypatch):
    model, _ = trained
    monkeypatch.setattr(sampling, "_MOST_AT_ONCE_ON_CPU", 5)
    whole = draw(model)
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "saving_on_signal", _Stop)
        with pytest.raises(Interrupted) as caught:
            draw(model, checkpoint_folder=tmp_path)
    assert (caught.value.step, caught.value.saved) == (5, True)
    np.testing.assert_array_equal(draw(model, checkpoint_folder=tmp_path), whole)


def test_keys_of_images_differ():
    keys = jax.random.key_data(jnp.concatenate([shard_keys(0, shard, 50) for shard in range(4)]))
    assert len(np.unique(np.asarray(keys), axis=0)) == 200


def sampler_of(predict_noise, guidance, settings, **options):
    moves = plan_moves(SCHEDULE, settings)
    return Sampler(predict_noise, SHAPE, 10, moves, guidance, **options)


def test_guidance_0_never_asks_without_the_class(unet):
    denoiser, parameters = unet
    none = jnp.arange(11)[:, None] == 10
    none_changed = {**parameters, "class": {"weight": parameters["class"]["weight"] + none}}
    keys, classes = shard_keys(0, 0, 4), jnp.arange(4)
    settings = {"sampler": "ddim", "num_steps": 4, "eta": 0.0}
    for guidance in (0.0, 1.0):
        predict = noise_predictor(denoiser, velocity_of(SCHEDULE, 0.2, 0.3))
        sampler = sampler_of(predict, guidance, settings)
        left, right = (sampler.images(p, keys, classes) for p in (parameters, none_changed))
        assert bool((left == right).all()) == (guidance == 0.0)


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "ddpm"}, {"sampler": "ddim", "num_steps": 100, "eta": 0.0}],
    ids=["ddpm", "ddim"],
)
def test_sampler_recovers_gaussian_images(settings):
    """With the best denoiser of pixels from N(m_c, s²), c the class, in place of the network."""
    signal, spread = jnp.asarray(SCHEDULE.signal), jnp.asarray(SCHEDULE.noise)
    means, deviation = jnp.linspace(-0.5, 0.5, 11), 0.3

    def best(parameters, noisy, steps, classes):
        del parameters
        a, b = (x[steps][:, None, None, None] for x in (signal, spread))
        mean = means[classes][:, None, None, None]
        return b * (noisy - a * mean) / ((a * deviation) ** 2 + b**2)

    sampler = sampler_of(best, 0.0, settings, limits=None)
    classes = jnp.arange(400) % 10
    images = np.asarray(sampler.images({}, shard_keys(0, 0, 400), classes))
    for label in range(10):
        of_class = images[np.asarray(classes) == label]
        # 40 images of 64 pixels, drawn from N(0, 1) in place of the process's end.
        assert of_class.mean() == pytest.approx(float(means[label]), abs=0.05)
        assert of_class.std() == pytest.approx(deviation, rel=0.06)


def test_pixels_are_rounded_and_cut_off():
    values = jnp.array([-0.2, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.7])
    np.testing.assert_array_equal(to_pixels(values, 1 / 255), [0, 0, 0, 1, 255, 255])
    np.testing.assert_array_equal(to_pixels(jnp.array([0.5, 1.2]), 1 / 16), [8, 16])


# --- the dataset -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(base_folder, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    shards = [folder / f"{index}.npy" for index in range(3)]
    for index, path in enumerate(shards):
        write_shard(draw(trained[0], index), path)
    assemble("tiny", TINY_RESOLVED, shards, base_folder, folder / "tiny")
    return folder / "tiny", shards


def test_dataset_is_like_any_other(generated, base, base_folder):
    folder, shards = generated
    verify(folder)
    raw = load(folder, most_normalised_bytes=0)
    np.testing.assert_array_equal(
        raw.train_inputs, np.concatenate([np.load(path) for path in shards])
    )
    np.testing.assert_array_equal(np.bincount(raw.train_labels), np.full(10, 6))
    np.testing.assert_array_equal(raw.train_labels, np.arange(60) % 10)
    np.testing.assert_array_equal(raw.test_inputs, base.test_inputs)
    np.testing.assert_array_equal(raw.test_labels, base.test_labels)
    manifest = json.loads((folder / "manifest.json").read_text())
    expected = json.loads((base_folder / "manifest.json").read_text())
    assert set(manifest) == set(expected)
    for key in ("mean", "std", "scale"):
        assert manifest["normalisation"][key] == expected["normalisation"][key]
    pixels = np.asarray(raw.train_inputs, np.float64)
    measured = manifest["train_inputs_raw"]
    assert measured["mean"] == pytest.approx(pixels.mean(), rel=1e-12)
    assert measured["std"] == pytest.approx(pixels.std(), rel=1e-12)
    assert (measured["min"], measured["max"]) == (pixels.min(), pixels.max())
    assert manifest["class_balance"]["train"] == [6] * 10
    # Downstream stages read it as any other.
    ready = load(folder)
    assert ready.train_inputs.dtype == np.float32
    assert ready.train_targets.shape == (60, 10)


def test_same_shards_give_the_same_bytes(generated, base_folder, tmp_path):
    folder, shards = generated
    assemble("tiny", TINY_RESOLVED, shards, base_folder, tmp_path / "again")
    for path in folder.iterdir():
        digests = [
            hashlib.sha256(f.read_bytes()).digest() for f in (path, tmp_path / "again" / path.name)
        ]
        assert digests[0] == digests[1], path.name


def test_damaged_shard_is_named_and_nothing_counts_as_prepared(generated, base_folder, tmp_path):
    _, shards = generated
    broken = tmp_path / "1.npy"
    for content, says in (
        (shards[1].read_bytes()[:-10], "no readable shard"),
        (b"", "no readable shard"),
    ):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=rf"1.npy: {says}.*delete it and run again"):
            assemble(
                "tiny", TINY_RESOLVED, [shards[0], broken, shards[2]], base_folder, tmp_path / "out"
            )
        assert not (tmp_path / "out/manifest.json").exists()
        assert not list((tmp_path / "out").glob("*.npy"))
    np.save(broken, np.zeros((20, 4, 4, 1), np.uint8))
    with pytest.raises(InputError, match=r"shape \(20, 4, 4, 1\) found"):
        assemble(
            "tiny", TINY_RESOLVED, [shards[0], broken, shards[2]], base_folder, tmp_path / "out"
        )


def test_full_disk_is_named_and_nothing_counts_as_prepared(generated, base_folder, tmp_path):
    _, shards = generated
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            assemble("tiny", TINY_RESOLVED, shards, base_folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert Path(caught.value.filename).name == "train_inputs.npy"
    assert list((tmp_path / "out").iterdir()) == []


def test_preparing_it_as_any_other_is_refused(tmp_path):
    with pytest.raises(InputError, match="dataset mnist1m: is drawn by other rules"):
        prepare("mnist1m", load_definition(SHIPPED), tmp_path / "out", None)


def test_quality_of_real_images_is_that_of_real_images(base_folder):
    """Real images in place of generated ones: labels agree, and both classifiers are one."""
    real = load(base_folder)
    settings = {"num_samples": 400, "num_train": 1437, "num_steps": 600, "width": 128}
    measured = measure_quality(real, real, settings, seed=0)
    assert measured["label_agreement"] > 0.99
    assert measured["classifier_test_accuracy"] > 0.9
    assert measured["test_accuracy_of_generated"] == measured["test_accuracy_of_real"] > 0.9
    assert measured["relative_spread"] == 1
    assert measured["num_train"] == 1437
    assert len(measured["label_agreement_of_classes"]) == 10


def test_relative_spread_is_a_ratio_of_variances():
    generator = np.random.default_rng(0)
    labels = np.arange(20_000) % 2
    centres = labels[:, None] * 10.0
    real = centres + generator.normal(0, 2, (20_000, 3))
    generated = centres + generator.normal(0, 1, (20_000, 3))
    assert relative_spread((generated, labels), (real, labels), 2) == pytest.approx(0.25, rel=0.05)


def test_sample_sheet_shows_ten_of_each_class(generated, tmp_path):
    folder, _ = generated
    dataset = load(folder, most_normalised_bytes=0)
    draw_samples(dataset, [tmp_path / "a.svg", tmp_path / "a.png"], tmp_path / "a.parquet")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    plotted = pd.read_parquet(tmp_path / "a.parquet")
    assert plotted["panel"].value_counts().to_dict() == {"a": 10, "b": 60}
    assert set(plotted.loc[plotted["panel"] == "a", "class"]) == set(range(10))
    for row in plotted.itertuples():
        assert dataset.train_labels[row.index] == row[2]
        np.testing.assert_array_equal(dataset.train_inputs[row.index].ravel(), row.pixels)
