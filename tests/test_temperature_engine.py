"""What the temperature paper needs of the engine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import erf

from sgdphases.alignment import ntk_gram
from sgdphases.config import network_of
from sgdphases.curvature import critical_learning_rates, measure_networks
from sgdphases.datasets.loading import Dataset
from sgdphases.errors import InputError
from sgdphases.hyperparameters import complete_run
from sgdphases.infinite_width import infinite_width_kernel
from sgdphases.losses import NORMALISATIONS
from sgdphases.models import build_network
from sgdphases.training import Execution, train_shard

SAMPLES, FEATURES, CLASSES = 12, 5, 3
SETTINGS = {
    "experiment": "temperature/test",
    "stopping": {"num_steps": 20},
    "measurements": {"every": 5, "weight_movement": {"every": 5}},
    "curvature": {"batch_size": SAMPLES, "num_batches": 1, "num_lanczos_steps": 40},
    "evaluation": {},
    "divergence_factor": 1e6,
    "data_seed": 0,
}


def make_dataset():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES + 4, FEATURES))
    targets = np.eye(CLASSES)[rng.integers(0, CLASSES, SAMPLES + 4)]
    return Dataset(
        name="test",
        manifest={},
        train_inputs=inputs[:SAMPLES],
        train_targets=targets[:SAMPLES],
        test_inputs=inputs[SAMPLES:],
        test_targets=targets[SAMPLES:],
    )


def make_run(name="run", **changes):
    setting = {
        "model": "fully_connected",
        "depth": 3,
        "width": 8,
        "loss": "cross_entropy",
        "batch_size": SAMPLES,
        "learning_rate": 0.3,
        "precision": "float64",
        "learning_rate_relative_to": "absolute",
        **changes,
    }
    return {"run_id": name, **complete_run(setting)}


def train(runs, **changes):
    ids = [""] * len(runs)
    return train_shard({**SETTINGS, **changes}, runs, ids, make_dataset(), {}, Execution())


@pytest.mark.parametrize("inverse_temperature", [0.125, 1.0, 16.0])
@pytest.mark.parametrize(
    "network",
    [
        {"parametrisation": "mup", "centered": True, "momentum": 0.5},
        {"parametrisation": "ntk", "head_correlation": -0.3, "batch_size": 4},
    ],
    ids=["centered", "second head"],
)
def test_an_inverse_temperature_is_one_over_a_richness(network, inverse_temperature):
    """β multiplies the outputs that γ divides: both descriptions are the same run."""
    rate = 0.3 / inverse_temperature
    hot = make_run("hot", **network, learning_rate=rate, inverse_temperature=inverse_temperature)
    rich = make_run("rich", **network, learning_rate=rate, richness=1 / inverse_temperature)
    history = train([hot, rich]).history.drop(columns="experiment")
    columns = ["run_id", "step"]
    one, other = (history[history["run_id"] == n].drop(columns=columns) for n in ("hot", "rich"))
    assert len(one) == 5
    assert one["weight_movement_frobenius_input"].iloc[-1] > 1e-3
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_both_have_the_same_critical_learning_rate():
    runs = [make_run(inverse_temperature=8.0), make_run(richness=0.125)]
    networks = [{"network_id": str(i), **network_of(run)} for i, run in enumerate(runs)]
    rates = critical_learning_rates(measure_networks(SETTINGS, networks, make_dataset()))
    assert rates["0"] == pytest.approx(rates["1"], rel=1e-9)
    alone = {"network_id": "2", **network_of(make_run())}
    (rate,) = critical_learning_rates(measure_networks(SETTINGS, [alone], make_dataset())).values()
    assert rates["0"] == pytest.approx(rate / 64, rel=1e-9)


def test_both_are_computed_in_double_precision_alike():
    for changes in ({"inverse_temperature": 2000.0}, {"richness": 5e-4}):
        assert make_run(precision=None, **changes)["precision"] == "float64"
    assert make_run(precision=None, inverse_temperature=100.0)["precision"] == "float32"


OPTIONS = {
    "num_samples": SAMPLES,
    "linearized": False,
    "infinite_width": False,
    "shuffled_labels": None,
}


def measured(run, num_steps=1, **options):
    measurements = {"timescales": {**OPTIONS, "linearized": True, **options}}
    return train([run], stopping={"num_steps": num_steps}, measurements=measurements).history


def dense_motion(run):
    """Ż and Z̈_nl from Jacobians written out, the kernel's change by central differences."""
    dataset = make_dataset()
    network = build_network(
        {k: v for k, v in run.items() if k != "run_id"}, dataset.input_shape, CLASSES
    )
    beta = run["inverse_temperature"]
    flat, unravel = ravel_pytree(network.init(jax.random.key(run["seed"])))
    inputs = jnp.asarray(dataset.train_inputs)

    def logits(values):
        return network.apply(unravel(values), inputs).ravel()

    error = dataset.train_targets - jax.nn.softmax(beta * logits(flat).reshape(SAMPLES, CLASSES))
    error = np.asarray(error).ravel()

    jacobian = jax.jit(jax.jacobian(logits))

    def kernel(values):
        found = np.asarray(jacobian(values))
        return found @ found.T

    direction = np.asarray(jacobian(flat)).T @ error
    step = 1e-5
    change = (kernel(flat + step * direction) - kernel(flat - step * direction)) / (2 * step)
    return kernel(flat) @ error, change @ error / beta, beta * np.asarray(logits(flat))


@pytest.mark.parametrize("inverse_temperature", [0.1, 5.0])
def test_timescales_are_those_of_the_dense_kernel(inverse_temperature):
    run = make_run(
        activation="erf",
        bias_scale=0.3,
        inverse_temperature=inverse_temperature,
        loss_normalisation="sum",
    )
    with jax.enable_x64(True):
        velocity, acceleration, scaled = map(np.linalg.norm, dense_motion(run))
    start = measured(run).iloc[0]
    assert start["scaled_logit_norm"] == pytest.approx(scaled, rel=1e-10)
    assert start["logit_speed"] == pytest.approx(velocity, rel=1e-10)
    assert start["logit_timescale"] == pytest.approx(scaled / velocity, rel=1e-10)
    assert start["nonlinear_timescale"] == pytest.approx(velocity / acceleration, rel=1e-6)


@pytest.mark.parametrize(
    ("activation", "head_correlation"),
    [("relu", -0.9), pytest.param("erf", None, marks=pytest.mark.slow)],
)
def test_estimates_at_short_times_agree_with_the_definitions(activation, head_correlation):
    """Trained for some tiny steps, of a loss that is a mean, beside the linearised network."""
    run = make_run(
        activation=activation,
        width=64,
        head_correlation=head_correlation,
        inverse_temperature=0.5,
        learning_rate=1e-5,
    )
    start, *_, end = measured(run, num_steps=400).to_dict("records")
    time = end["physical_time"] * 0.25
    speed = end["scaled_logit_change"] / time
    acceleration = 2 * end["scaled_linearized_distance"] / time**2
    assert start["scaled_logit_norm"] / speed == pytest.approx(start["logit_timescale"], rel=1e-3)
    assert speed / acceleration == pytest.approx(start["nonlinear_timescale"], rel=0.01)


@pytest.mark.slow
def test_the_normalisation_of_the_loss_is_in_the_times():
    """Three times as long per class means: the factor 1/(2k) of 3 classes, 1/M of the mean."""
    times = {name: measured(make_run(loss_normalisation=name)).iloc[0] for name in NORMALISATIONS}
    for column in ("logit_timescale", "nonlinear_timescale"):
        ratio = times["per_sample"][column] / times["sum"][column]
        assert ratio == pytest.approx(SAMPLES, rel=1e-9)
        ratio = times["per_class"][column] / times["per_sample"][column]
        assert ratio == pytest.approx(2 * CLASSES, rel=1e-9)


def test_the_speed_at_zero_logits_does_not_depend_on_the_correlation_of_heads():
    runs = [make_run(str(c), head_correlation=c, width=16) for c in (-1.0, -0.5, 0.0, 1.0)]
    start = train(runs, measurements={"timescales": OPTIONS}).history.query("step == 0")
    speeds = start["small_logit_speed"].to_numpy()
    np.testing.assert_allclose(speeds, speeds[0], rtol=1e-12)
    assert start["scaled_logit_norm"].is_monotonic_increasing
    assert start["scaled_logit_norm"].iloc[0] == 0
    assert start["logit_speed"].iloc[0] == pytest.approx(speeds[0], rel=1e-12)


@pytest.mark.parametrize(
    ("activation", "depth", "bias_scale"),
    [("relu", 3, None), ("erf", 2, 0.4)],
)
def test_the_infinitely_wide_kernel_is_that_of_wide_networks(activation, depth, bias_scale):
    hyperparameters = {
        "model": "fully_connected",
        "depth": depth,
        "width": 1024,
        "activation": activation,
        "parametrisation": "ntk",
        "weight_scale": 1.3,
        "bias_scale": bias_scale,
        "precision": "float64",
    }
    with jax.enable_x64(True):
        inputs = jnp.asarray(make_dataset().train_inputs)
        expected = infinite_width_kernel(hyperparameters, inputs)
        network = build_network(hyperparameters, (FEATURES,), 1)
        found = jnp.mean(
            jnp.stack(
                [
                    ntk_gram(network.apply, network.init(jax.random.key(seed)), inputs)
                    for seed in range(3)
                ]
            ),
            axis=0,
        )
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.06
    np.testing.assert_allclose(expected, expected.T, rtol=1e-12)
    assert np.linalg.eigvalsh(expected).min() > 0


FUNCTIONS = {
    "relu": (lambda h: np.maximum(h, 0), lambda h: 1.0 * (h > 0)),
    "erf": (erf, lambda h: 2 / np.sqrt(np.pi) * np.exp(-(h**2))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_hidden_layer_against_quadrature(name):
    """Θ = E[φφ'] + E[φ̇φ̇'] Σ of readout and input layer, by Gauss and Hermite in two dimensions."""
    activation, derivative = FUNCTIONS[name]
    inputs = np.array([[1.0, 0.5], [-0.3, 1.2]])
    hyperparameters = {
        "depth": 2,
        "activation": name,
        "parametrisation": "ntk",
        "weight_scale": 1.0,
        "bias_scale": None,
    }
    covariance = inputs @ inputs.T / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"))
    first, second = np.tensordot(np.linalg.cholesky(covariance), grid, 1)
    measure = np.outer(weights, weights) / (2 * np.pi)

    def mean(function):
        return (measure * function(first) * function(second)).sum()

    with jax.enable_x64(True):
        kernel = infinite_width_kernel(hyperparameters, jnp.asarray(inputs))
    expected = mean(activation) + mean(derivative) * covariance[0, 1]
    # A kink converges slowly.
    assert kernel[0, 1] == pytest.approx(expected, rel=1e-2 if name == "relu" else 1e-10)


@pytest.mark.slow
def test_linearised_networks_have_one_curve_in_effective_time():
    """From zero logits, at the same ηβ²; the networks themselves leave it, small β more."""
    shared = {"head_correlation": -1.0, "activation": "tanh"}
    pairs = [(0.1, 50.0), (1.0, 0.5), (10.0, 0.005)]
    losses = {}
    for linearize_at in (0, None):
        runs = [
            make_run(
                str(beta),
                inverse_temperature=beta,
                learning_rate=rate,
                linearize_at=linearize_at,
                **shared,
            )
            for beta, rate in pairs
        ]
        history = train(runs, measurements={"every": 5}).history
        losses[linearize_at] = history.pivot_table("train_loss", index="step", columns="run_id")
    linear = losses[0]
    assert linear.iloc[0].to_list() == pytest.approx([np.log(CLASSES)] * 3)
    np.testing.assert_allclose(linear["0.1"], linear["10.0"], rtol=1e-10)
    np.testing.assert_allclose(linear["1.0"], linear["10.0"], rtol=1e-10)
    distance = (losses[None] - linear).abs().iloc[-1]
    assert distance["10.0"] < 0.1 * distance["1.0"] < 0.1 * distance["0.1"]


@pytest.mark.slow
def test_samples_may_be_computed_in_chunks(monkeypatch):
    options = {"infinite_width": True, "shuffled_labels": 3}
    run = make_run(head_correlation=-0.5)
    whole = measured(run, **options)
    monkeypatch.setattr("sgdphases.training._EVALUATION_CHUNK", 5)
    columns = whole.columns.drop(["experiment", "run_id"])
    chunked = measured(run, **options)
    np.testing.assert_allclose(chunked[columns], whole[columns], rtol=1e-9, atol=1e-14)


@pytest.mark.slow
def test_shuffled_labels_change_speeds_at_the_same_logits():
    """With a permuted dataset the speeds are those that are measured besides."""
    options = {"infinite_width": True, "shuffled_labels": 3}
    start = measured(make_run(activation="erf", width=32), **options).iloc[0]
    dataset = make_dataset()
    order = np.random.default_rng(3).permutation(SAMPLES)
    shuffled = dataclasses.replace(dataset, train_targets=dataset.train_targets[order])
    settings = {**SETTINGS, "stopping": {"num_steps": 1}}
    settings["measurements"] = {"timescales": {**OPTIONS, "infinite_width": True}}
    run = make_run(activation="erf", width=32)
    other = train_shard(settings, [run], [""], shuffled, {}, Execution()).history.iloc[0]
    for name in ("logit_speed", "infinite_width_logit_speed"):
        assert start[f"shuffled_{name}"] == pytest.approx(other[name], rel=1e-9)
        assert start[name] != pytest.approx(other[name], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"parametrisation": "mup"}, {}, "parametrisation mup is not allowed"),
        ({"loss": "mean_squared_error"}, {}, "loss mean_squared_error"),
        ({"activation": "tanh"}, {"infinite_width": True}, "no closed form for activation 'tanh'"),
        ({"parametrisation": "standard"}, {"infinite_width": True}, "relu, erf in parametrisation"),
    ],
)
def test_what_has_no_timescales_is_refused(changes, options, message):
    with pytest.raises(InputError, match=message):
        measured(make_run(**changes), **options)
