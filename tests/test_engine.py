"""Every model, loss, parametrisation and optimiser against a plain loop over one run."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgdphases import batches, training
from sgdphases.batches import batch_indices
from sgdphases.datasets.loading import Dataset
from sgdphases.hyperparameters import complete_run
from sgdphases.lowering import candidate_lowerings
from sgdphases.models import build_network
from sgdphases.runs import Lowering
from sgdphases.training import Execution, train_shard

NUM_STEPS = 20
BATCH = 4
NUM_TRAIN = 12

PARAMETRISATIONS = ("standard", "ntk", "mup", "depth_mup")
LOSSES = ("mean_squared_error", "cross_entropy")
OPTIMISERS = (
    {"optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.02},
    {"optimizer": "sgd", "learning_rate": 0.05},
    {"optimizer": "adam", "learning_rate": 0.003},
    {"optimizer": "sign_sgd", "learning_rate": 0.0005},
)
# Small ones, with the shape of their inputs.
MODELS = {
    "fully_connected": ((5,), {"depth": 4, "width": 6}),
    "catapult_cnn": ((7, 7, 2), {"width": 5}),
    "l2_cnn": ((7, 7, 1), {"width": 4, "pool_window": 2, "batch_norm": True}),
    "convolutional": ((8, 8, 2), {"width": 4}),
    "wide_resnet": ((8, 8, 2), {"depth": 10, "width": 2, "widening_factor": 2}),
    "resnet": ((8, 8, 3), {"depth": 18, "width": 2, "stem": "cifar"}),
    "residual_convnet": ((8, 8, 1), {"num_blocks": 2, "width": 4}),
    "vision_transformer": ((8, 8, 1), {"num_blocks": 2, "width": 4, "num_heads": 1}),
    "gru": ((5,), {"width": 4, "vocabulary_size": 9}),
}

# They take long to compile: each in one parametrisation.
DEEP = ("wide_resnet", "resnet", "vision_transformer")


def make_dataset(shape, num_outputs=3, integers=False):
    rng = np.random.default_rng(0)
    total = NUM_TRAIN + 5
    inputs = rng.integers(0, 9, (total, *shape)) if integers else rng.normal(size=(total, *shape))
    # No two alike: sums over one-hot targets can vanish, and the sign of what is left is rounding.
    targets = rng.dirichlet(np.full(num_outputs, 0.3), size=total)
    return Dataset(
        name="test",
        manifest={},
        train_inputs=inputs[:NUM_TRAIN].astype(float),
        train_targets=targets[:NUM_TRAIN],
        test_inputs=inputs[NUM_TRAIN:].astype(float),
        test_targets=targets[NUM_TRAIN:],
    )


def make_run(name, model, **changes):
    setting = {
        "model": model,
        "batch_size": BATCH,
        "precision": "float64",
        "learning_rate_relative_to": "absolute",
        **MODELS[model][1],
        **changes,
    }
    return {"run_id": name, **complete_run(setting)}


def make_settings(num_steps=NUM_STEPS, **changes):
    return {
        "experiment": "richness/test",
        "stopping": {"num_steps": num_steps},
        "measurements": {"every": 5},
        "curvature": None,
        "evaluation": {},
        "divergence_factor": 1e6,
        "data_seed": 3,
        **changes,
    }


def train(runs, dataset, settings=None, **execution):
    ids = [""] * len(runs)
    return train_shard(settings or make_settings(), runs, ids, dataset, {}, Execution(**execution))


def rows_of(table, run):
    return table[table["run_id"] == run["run_id"]].reset_index(drop=True)


# The reference. Nothing but the network's own function is shared with the engine.


def loss_of(run, outputs, targets):
    count, classes = targets.shape
    targets = targets + run["label_shift"]
    if run["loss"] == "mean_squared_error":
        total = 0.5 * jnp.sum((outputs - targets) ** 2)
        divisor = {"per_class": classes * count, "per_sample": count, "sum": 1}
    else:
        scaled = run["inverse_temperature"] * outputs
        total = -jnp.sum(targets * jax.nn.log_softmax(scaled))
        divisor = {"per_class": 2 * classes * count, "per_sample": count, "sum": 1}
    return total / divisor[run["loss_normalisation"]]


def multiplier(run, path, leaf):
    if run["parametrisation"] not in ("mup", "depth_mup"):
        return 1.0
    if run["optimizer"] == "sgd":
        return float(run["width"])
    is_hidden = path[0].key == "hidden" and leaf.ndim >= 2
    return 1 / math.sqrt(run["width"]) if is_hidden else 1.0


def direction_of(run, step, gradient, first, second):
    """What is subtracted from the parameters, and the optimiser's two buffers."""
    if run["optimizer"] == "adam":
        b1, b2, n = run["first_moment_decay"], run["second_moment_decay"], step + 1
        first = jax.tree.map(lambda m, a: b1 * m + (1 - b1) * a, first, gradient)
        second = jax.tree.map(lambda v, a: b2 * v + (1 - b2) * a * a, second, gradient)
        direction = jax.tree.map(
            lambda m, v: (m / (1 - b1**n)) / (jnp.sqrt(v / (1 - b2**n)) + run["epsilon"]),
            first,
            second,
        )
        return direction, first, second
    first = jax.tree.map(lambda m, a: run["momentum"] * m + a, first, gradient)
    is_sign = run["optimizer"] == "sign_sgd"
    return jax.tree.map(jnp.sign, first) if is_sign else first, first, second


# Of a run, what the functions below are compiled for.
NUMBERS = ("learning_rate", "weight_decay", "momentum", "richness", "inverse_temperature", "seed")


@functools.cache
def reference_functions(items, shape):
    """Outputs and gradient of the loss of one run: compiled, but not batched."""
    static = dict(items)
    network = build_network(static, shape, 3, "native")

    def outputs(parameters, start, inputs, richness):
        value = network.apply(parameters, inputs)
        if static["centered"]:
            value = value - network.apply(start, inputs)
        return value / richness

    def loss(parameters, start, inputs, targets, richness, temperature):
        run = {**static, "inverse_temperature": temperature}
        return loss_of(run, outputs(parameters, start, inputs, richness), targets)

    return network, jax.jit(outputs), jax.jit(jax.grad(loss))


def reference_losses(run, dataset, num_steps=NUM_STEPS):
    """Training loss on all samples after 0, 1, ... steps."""
    items = tuple((k, v) for k, v in run.items() if k not in (*NUMBERS, "run_id"))
    shape = dataset.train_inputs.shape[1:]
    network, outputs, gradient = reference_functions(items, shape)
    start = parameters = network.init(jax.random.key(run["seed"]))
    scales = jax.tree_util.tree_map_with_path(lambda p, leaf: multiplier(run, p, leaf), start)
    first = second = jax.tree.map(jnp.zeros_like, start)
    batches = batch_indices(NUM_TRAIN, BATCH, 0, num_steps, 3)
    inputs, targets = dataset.train_inputs, dataset.train_targets
    richness, temperature = run["richness"], run["inverse_temperature"]
    losses = []
    for step in range(num_steps + 1):
        if step % 5 == 0:
            # As the engine evaluates convolutional networks: batch statistics are of one batch.
            parts = np.split(inputs, NUM_TRAIN // BATCH)
            everything = [outputs(parameters, start, part, richness) for part in parts]
            losses.append(float(loss_of(run, jnp.concatenate(everything), targets)))
        batch = batches[min(step, num_steps - 1)]
        g = gradient(parameters, start, inputs[batch], targets[batch], richness, temperature)
        g = jax.tree.map(lambda a, p: a + run["weight_decay"] * p, g, parameters)
        direction, first, second = direction_of(run, step, g, first, second)
        parameters = jax.tree.map(
            lambda p, d, s: p - run["learning_rate"] * s * d, parameters, direction, scales
        )
    return np.array(losses)


def check(runs, dataset, rtol=1e-9, **execution):
    shard = train(runs, dataset, **execution)
    with jax.enable_x64(True):
        for run in runs:
            history = rows_of(shard.history, run)
            expected = reference_losses(run, dataset)
            assert history["step"].tolist() == [0, 5, 10, 15, 20]
            np.testing.assert_allclose(history["train_loss"], expected, rtol=rtol, err_msg=run)
            # It moves: a run that stands still would agree with anything.
            assert abs(expected[-1] / expected[0] - 1) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "parametrisation", "optimiser"),
    list(itertools.product(LOSSES, PARAMETRISATIONS, range(len(OPTIMISERS)))),
)
def test_every_loss_parametrisation_and_optimiser(loss, parametrisation, optimiser):
    position = LOSSES.index(loss) + PARAMETRISATIONS.index(parametrisation) + optimiser
    shared = {
        "loss": loss,
        "parametrisation": parametrisation,
        "centered": position % 2 == 0,
        **OPTIMISERS[optimiser],
    }
    temperature = {"inverse_temperature": 3.0} if loss == "cross_entropy" else {}
    runs = [
        make_run("plain", "fully_connected", **shared),
        make_run("decayed", "fully_connected", **shared, weight_decay=0.3, seed=1),
        make_run("scaled", "fully_connected", **shared, **temperature, richness=0.5, seed=1),
    ]
    together = 1 if (position // 2) % 2 else "all"
    check(runs, make_dataset((5,)), lowering={"runs_together": together})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "parametrisation"),
    [
        (model, PARAMETRISATIONS[(i + k) % 4])
        for i, model in enumerate(MODELS)
        for k in ((0,) if model in DEEP else (0, 2))
        if model != "fully_connected"
    ],
)
def test_every_model(model, parametrisation):
    shape, _ = MODELS[model]
    dataset = make_dataset(shape, integers=model == "gru")
    position = list(MODELS).index(model) + PARAMETRISATIONS.index(parametrisation)
    shared = {
        "parametrisation": parametrisation,
        "loss": LOSSES[position % 2],
        "centered": position % 3 == 0,
        # Not sign_sgd: batch norm leaves gradients that are zero, with the sign of rounding.
        **OPTIMISERS[(position // 2) % 3],
    }
    # Deep networks at the edge of stability double any rounding with each step.
    shared["learning_rate"] /= 20 if model in DEEP else 1
    runs = [make_run("a", model, **shared), make_run("b", model, **shared, seed=1)]
    together = "all" if position % 2 else 1
    check(runs, dataset, rtol=1e-7, lowering={"runs_together": together})


@pytest.mark.parametrize("normalisation", ["per_class", "per_sample", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_normalisations_and_shifted_labels(loss, normalisation):
    shared = {"loss": loss, "loss_normalisation": normalisation, "label_shift": -0.01}
    run = make_run("run", "fully_connected", **shared, learning_rate=0.05)
    check([run], make_dataset((5,)))


# Shards.


@pytest.fixture(scope="module")
def shard_of_64():
    dataset = make_dataset((5,))
    runs = [
        make_run(f"run {i}", "fully_connected", learning_rate=0.01 * (i + 1), seed=i % 3)
        for i in range(64)
    ]
    return dataset, runs, train(runs, dataset, lowering={"runs_together": 8})


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("together", [1, "all"])
def test_a_run_does_not_depend_on_its_shard(size, together, shard_of_64):
    dataset, runs, large = shard_of_64
    some = runs[-size:]
    small = train(some, dataset, lowering={"runs_together": together})
    for run in some:
        np.testing.assert_allclose(
            rows_of(small.history, run)["train_loss"],
            rows_of(large.history, run)["train_loss"],
            rtol=1e-11,
        )


def test_runs_are_cut_into_programs_that_fit(shard_of_64):
    dataset, runs, large = shard_of_64
    cut = train(runs, dataset, most_runs=10)
    assert cut.runs["run_id"].tolist() == large.runs["run_id"].tolist()
    np.testing.assert_allclose(
        cut.runs["final_train_loss"], large.runs["final_train_loss"], rtol=1e-11
    )


def test_lowerings_agree():
    dataset = make_dataset((8, 8, 2))
    runs = [make_run(f"run {i}", "convolutional", learning_rate=0.02, seed=i) for i in range(2)]
    tables = {
        (together, convolution, loop): train(
            runs,
            dataset,
            lowering={"runs_together": together, "convolution": convolution, "loop": loop},
        ).history["train_loss"]
        for together, convolution, loop in [
            (1, "patches", "compiled"),
            ("all", "patches", "compiled"),
            (1, "explicit", "compiled"),
            (1, "native", "compiled"),
            (1, "native", "stepwise"),
        ]
    }
    first = next(iter(tables.values()))
    assert first.iloc[-1] < first.iloc[0]
    for table in tables.values():
        np.testing.assert_allclose(table, first, rtol=1e-9)


# A linearised network.


def linearised_reference(run, dataset, at, num_steps):
    """Full-batch descent of a network that is replaced by its linearisation at step `at`."""
    network = build_network(run, dataset.train_inputs.shape[1:], 3)
    inputs, targets = jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_targets)
    parameters = base = network.init(jax.random.key(run["seed"]))
    outputs = []
    for step in range(num_steps + 1):
        if step <= at:
            base = parameters
        jacobian = jax.jacobian(network.apply)(base, inputs)
        difference = jax.tree.map(jnp.subtract, parameters, base)
        change = sum(
            jnp.tensordot(j, d, axes=d.ndim)
            for j, d in zip(jax.tree.leaves(jacobian), jax.tree.leaves(difference), strict=True)
        )
        z = network.apply(base, inputs) + change
        outputs.append(z)
        residual = (z - targets) / targets.size
        parameters = jax.tree.map(
            lambda p, j, r=residual: p - run["learning_rate"] * jnp.tensordot(r, j, axes=2),
            parameters,
            jacobian,
        )
    return outputs


@pytest.mark.parametrize(("batch_size", "epochs"), [(4, 2), (5, 1)])
def test_an_epoch_sees_each_sample_once(batch_size, epochs, monkeypatch):
    """But for what does not fill a batch: `epochs: 1` is online training."""
    seen = []

    def recorded_indices(*arguments):
        seen.extend(batch_indices(*arguments))
        return np.stack(seen)[-arguments[3] :]

    monkeypatch.setattr(batches, "batch_indices", recorded_indices)
    run = make_run("run", "fully_connected", batch_size=batch_size, learning_rate=0.1)
    shard = train([run], make_dataset((5,)), make_settings(stopping={"epochs": epochs}))
    per_epoch = NUM_TRAIN // batch_size
    assert shard.runs["steps"].tolist() == [epochs * per_epoch]
    assert len(seen) == epochs * per_epoch
    for epoch in range(epochs):
        samples = np.concatenate(seen[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert len(set(samples)) == per_epoch * batch_size


@pytest.mark.parametrize("at", [0, 3])
def test_linearised_runs_and_twins(at):
    dataset = make_dataset((5,))
    shared = {"learning_rate": 3.0, "batch_size": NUM_TRAIN, "activation": "tanh"}
    run = make_run("linear", "fully_connected", **shared, linearize_at=at)
    settings = make_settings(8, measurements={"every": 1})
    history = train([run], dataset, settings).history
    with jax.enable_x64(True):
        outputs = linearised_reference(run, dataset, at, 8)
        expected = [float(0.5 * jnp.mean((z - dataset.train_targets) ** 2)) for z in outputs]
    np.testing.assert_allclose(history["train_loss"], expected, rtol=1e-10)

    # The twin of a nonlinear run is that linearised run.
    nonlinear = make_run("nonlinear", "fully_connected", **shared)
    measured = {
        "every": 1,
        "outputs": {"every": 1, "num_samples": 5},
        "linearized_distance": {"from_step": at, "every": 1, "num_samples": 5},
    }
    linear = train([run], dataset, make_settings(8, measurements=measured)).history
    twin = train([nonlinear], dataset, make_settings(8, measurements=measured)).history
    distance = [
        np.linalg.norm(np.subtract(a, b))
        for a, b in zip(twin["outputs"], linear["outputs"], strict=True)
    ]
    np.testing.assert_allclose(twin["linearized_distance"], distance, atol=1e-11)
    assert twin["linearized_distance"].iloc[: at + 1].max() < 1e-12
    assert twin["linearized_distance"].iloc[-1] > 1e-3


def test_accuracies_of_a_linearised_run_are_those_of_its_own_outputs():
    dataset = make_dataset((5,))
    shared = {"learning_rate": 3.0, "batch_size": NUM_TRAIN, "activation": "tanh"}
    run = make_run("linear", "fully_connected", **shared, linearize_at=3)
    settings = make_settings(30, measurements={"every": 1})
    history = train([run], dataset, settings).history
    with jax.enable_x64(True):
        outputs = linearised_reference(run, dataset, 3, 30)
    labels = dataset.train_targets.argmax(1)
    expected = [float((np.asarray(z).argmax(1) == labels).mean()) for z in outputs]
    assert len(set(expected)) > 2
    np.testing.assert_allclose(history["train_accuracy"], expected, rtol=1e-12)


def test_kernel_change_is_that_of_dense_kernels():
    dataset = make_dataset((5,))
    shared = {"learning_rate": 3.0, "batch_size": NUM_TRAIN, "activation": "tanh"}
    run = make_run("run", "fully_connected", **shared)
    measured = {"every": 1, "kernel_change": {"from_step": 2, "every": 1, "num_samples": 6}}
    history = train([run], dataset, make_settings(6, measurements=measured)).history
    with jax.enable_x64(True):
        network = build_network(run, (5,), 3)
        parameters = network.init(jax.random.key(run["seed"]))
        inputs, targets = jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_targets)
        kernels = []
        for _ in range(7):
            jacobian = jax.tree.leaves(jax.jacobian(network.apply)(parameters, inputs[:6]))
            flat = np.concatenate([np.reshape(j, (6, 3, -1)) for j in jacobian], axis=2)
            kernels.append(np.einsum("aip,bip->ab", flat, flat))
            gradient = jax.grad(
                lambda p: 0.5 * jnp.mean((network.apply(p, inputs) - targets) ** 2)
            )(parameters)
            parameters = jax.tree.map(
                lambda p, g: p - run["learning_rate"] * g, parameters, gradient
            )
    expected = [
        np.linalg.norm(kernel - kernels[2]) / np.linalg.norm(kernels[2]) for kernel in kernels[2:]
    ]
    assert expected[-1] > 1e-3
    assert (history["kernel_change"].iloc[:3] == 0).all()
    np.testing.assert_allclose(history["kernel_change"].iloc[2:], expected, rtol=1e-9)


def test_second_head_adds_a_frozen_copy():
    dataset = make_dataset((5,))
    shared = {"learning_rate": 1e-12, "learning_rate_relative_to": "absolute"}
    runs = [
        make_run(f"correlation {c}", "fully_connected", **shared, head_correlation=c)
        for c in (-1.0, 0.0, 1.0)
    ]
    measured = {"steps": [1], "outputs": {"num_samples": 5}}
    history = train(runs, dataset, make_settings(1, measurements=measured)).history
    first = history[history["step"] == 0]["outputs"].tolist()
    assert np.abs(first[0]).max() < 1e-12
    with jax.enable_x64(True):
        network = build_network(runs[0], (5,), 3)
        alone = network.apply(network.init(jax.random.key(0)), jnp.asarray(dataset.test_inputs))
    np.testing.assert_allclose(first[2], 2 * np.asarray(alone).ravel(), rtol=1e-10)


@pytest.mark.parametrize("num_samples", [4, 5])
def test_centred_outputs_start_at_zero_with_batch_norm(num_samples):
    """However many samples they are measured on: the frozen copy sees the same batches."""
    dataset = make_dataset((7, 7, 1))
    shared = {"centered": True, "richness": 1e-2, "learning_rate": 1e-4}
    run = make_run("run", "l2_cnn", parametrisation="mup", **shared)
    measured = {"every": 5, "outputs": {"num_samples": num_samples}}
    history = train([run], dataset, make_settings(1, measurements=measured)).history
    assert np.abs(history["outputs"].iloc[0]).max() < 1e-10
    assert np.abs(history["outputs"].iloc[1]).max() > 1e-6


def test_a_seed_gives_the_same_network_in_every_precision():
    losses = []
    for precision in ("float32", "float64"):
        run = make_run("run", "fully_connected", learning_rate=0.01, precision=precision)
        losses.append(train([run], make_dataset((5,)), make_settings(1)).history["train_loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_groups_that_do_not_divide_the_runs_are_filled_up(shard_of_64):
    dataset, runs, large = shard_of_64
    some = runs[-7:]
    shard = train(some, dataset, lowering={"runs_together": 3})
    assert shard.runs["run_id"].tolist() == [run["run_id"] for run in some]
    expected = large.runs["final_train_loss"][-7:]
    np.testing.assert_allclose(shard.runs["final_train_loss"], expected, rtol=1e-11)


@pytest.mark.parametrize(
    "schedule", [None, {"kind": "final_rate", "learning_rate": 0.01, "num_steps": 5}]
)
def test_a_long_job_tries_its_lowerings_and_keeps_the_choice(
    schedule, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(training, "is_worth_a_trial", lambda platform, flop: True)
    monkeypatch.setattr(training, "_SECONDS_PER_TRIAL", 0.001)
    runs = [make_run(f"run {i}", "fully_connected", learning_rate=0.05) for i in range(2)]
    settings = make_settings(10, schedule=schedule)
    with caplog.at_level("INFO"):
        first = train(runs, make_dataset((5,)), settings, cache_folder=tmp_path)
        assert sum("chosen" in message for message in caplog.messages) == 1
        second = train(runs, make_dataset((5,)), settings, cache_folder=tmp_path)
        assert sum("chosen" in message for message in caplog.messages) == 1
    assert first.runs["lowering"].tolist() == second.runs["lowering"].tolist()
    (note,) = tmp_path.glob("*.json")
    seconds = [value for _, value in json.loads(note.read_text())["seconds_per_step"]]
    assert len(seconds) > 1
    # A step of nothing would take no time: every candidate took all steps.
    assert all(1e-7 < value < 60 for value in seconds)


def test_a_users_own_convolutions_are_not_put_into_a_loop_on_cpu():
    """Whatever is asked for, they are XLA's, a hundred times slower there."""
    own = candidate_lowerings("cpu", 8, 1, has_convolutions=True, is_own_model=True)
    assert own[0] == Lowering(1, "native", "stepwise")
    assert {lowering.convolution for lowering in own} == {"native"}
    several = candidate_lowerings("cpu", 8, 2, has_convolutions=True, is_own_model=True)
    assert {lowering.loop for lowering in several} == {"compiled"}
    assert candidate_lowerings("cpu", 8, 1, True)[0] == Lowering(1, "explicit")
    dense = candidate_lowerings("cpu", 8, 1, has_convolutions=False, is_own_model=True)
    assert dense == candidate_lowerings("cpu", 8, 1, has_convolutions=False)


# PyTorch, with the same weights and batches.


def torch_losses(run, dataset, forward, start):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch)")
    leaves = [torch.tensor(np.array(w), requires_grad=True) for w in jax.tree.leaves(start)]
    optimizer = torch.optim.SGD(
        leaves,
        lr=run["learning_rate"],
        momentum=run["momentum"],
        weight_decay=run["weight_decay"],
    )
    inputs, targets = torch.tensor(dataset.train_inputs), torch.tensor(dataset.train_targets)

    def loss_on(some):
        outputs = forward(torch, leaves, inputs[some])
        if run["loss"] == "cross_entropy":
            return torch.nn.functional.cross_entropy(outputs, targets[some])
        return torch.nn.functional.mse_loss(outputs, targets[some]) / 2

    losses = []
    batches = batch_indices(NUM_TRAIN, BATCH, 0, NUM_STEPS, 3)
    for step in range(NUM_STEPS + 1):
        if step % 5 == 0:
            losses.append(loss_on(slice(None)).item())
        optimizer.zero_grad()
        loss_on(batches[min(step, NUM_STEPS - 1)]).backward()
        optimizer.step()
    return losses


def torch_fully_connected(torch, leaves, inputs):
    *hidden, readout = [leaves[1], leaves[0], leaves[2]]  # as sorted: hidden, input, readout
    for weight in hidden:
        inputs = torch.relu(inputs @ weight)
    return inputs @ readout


def torch_convolutional(torch, leaves, inputs):
    # As sorted: two matrices under hidden come before the first convolution.
    second, dense, first, readout = leaves
    hidden = inputs.permute(0, 3, 1, 2)
    for kernel in (first, second):
        hidden = torch.nn.functional.conv2d(hidden, kernel.permute(3, 2, 0, 1), padding=1)
        hidden = torch.nn.functional.avg_pool2d(torch.relu(hidden), 2)
    hidden = hidden.permute(0, 2, 3, 1).flatten(1)
    return torch.relu(hidden @ dense) @ readout


@pytest.mark.parametrize(
    ("model", "forward", "changes"),
    [
        ("fully_connected", torch_fully_connected, {"depth": 3, "loss": "mean_squared_error"}),
        ("convolutional", torch_convolutional, {"loss": "cross_entropy"}),
    ],
)
def test_agreement_with_pytorch(model, forward, changes):
    shape, _ = MODELS[model]
    dataset = make_dataset(shape)
    optimiser = {"momentum": 0.8, "weight_decay": 0.05, "learning_rate": 0.05}
    run = make_run("run", model, parametrisation="standard", **optimiser, **changes)
    history = train([run], dataset).history
    with jax.enable_x64(True):
        network = build_network(run, shape, 3)
        start = network.init(jax.random.key(0))
    expected = torch_losses(run, dataset, forward, start)
    np.testing.assert_allclose(history["train_loss"], expected, rtol=1e-9)
    assert expected[-1] < 0.99 * expected[0]
