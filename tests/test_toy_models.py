"""The toy models: losses, steps, planes and edges against direct computation."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from sgdphases.portraits import PortraitRules
from sgdphases.theory import toy_edges, toy_laws, toy_one_parameter, toy_two_parameter
from sgdphases.theory.programs import run_theory
from sgdphases.theory.toy_losses import TOY_LOSSES, output_when_trained, outputs_below

LOSSES = list(TOY_LOSSES)
SETTINGS = {
    "experiment": "richness/test",
    "stopping": {"num_steps": 50},
    "measurements": {"steps": [0]},
    "divergence_factor": 1e30,
}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def reference_loss(name):
    if name == "mean_squared_error":
        return lambda f: (f - 1) ** 2 / 2
    one = 1 / (1 + math.exp(-1))
    # As printed, with the two weights exchanged.
    return lambda f: one * np.logaddexp(0, -f) + (1 - one) * np.logaddexp(0, f)


def reference_slope(name):
    if name == "mean_squared_error":
        return lambda f: f - 1
    return lambda f: 1 / (1 + np.exp(-f)) - 1 / (1 + math.exp(-1))


# Losses.


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_its_derivatives(name):
    loss, outputs = TOY_LOSSES[name], np.linspace(-5, 7, 61)
    np.testing.assert_allclose(loss.value(outputs), reference_loss(name)(outputs), rtol=1e-12)
    np.testing.assert_allclose(loss.value(outputs, jnp), loss.value(outputs), rtol=1e-14)
    by_jax = jax.vmap(jax.value_and_grad(jax.grad(lambda f: loss.value(f, jnp))))
    slopes, curvatures = by_jax(jnp.asarray(outputs))
    for xp in (np, jnp):
        np.testing.assert_allclose(loss.slope(outputs, xp), slopes, atol=1e-12)
        np.testing.assert_allclose(loss.curvature(outputs, xp), curvatures, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "start", "minimum", "curvature"),
    [("mean_squared_error", 0.5, 0.0, 1.0), ("cross_entropy", math.log(2), 0.582203, 0.196612)],
)
def test_loss_is_smallest_at_one(name, start, minimum, curvature):
    loss = TOY_LOSSES[name]
    grid = np.linspace(-3, 3, 6001)
    values = loss.value(grid)
    assert grid[values.argmin()] == pytest.approx(1.0, abs=1e-9)
    assert loss.minimum == pytest.approx(values.min(), abs=1e-12)
    assert loss.minimum == pytest.approx(minimum, abs=1e-6)
    assert loss.minimal_curvature == pytest.approx(curvature, abs=1e-6)
    assert loss.at_start == pytest.approx(start)
    assert loss.at_start == pytest.approx(loss.value(0.0))
    assert loss.initial_residual == pytest.approx(-loss.slope(0.0))


def test_printed_weights_would_put_the_minimum_at_minus_one():
    one, grid = 1 / (1 + math.exp(-1)), np.linspace(-3, 3, 6001)
    printed = one * np.logaddexp(0, grid) + (1 - one) * np.logaddexp(0, -grid)
    assert grid[printed.argmin()] == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("level", [1.0, 1e6, 1e30])
def test_bounds_have_the_level(name, level):
    loss = TOY_LOSSES[name]
    low, high = outputs_below(loss, level)
    assert low < 1 < high
    np.testing.assert_allclose(loss.value(np.array([low, high])), level, rtol=1e-9)


def test_output_when_trained():
    assert output_when_trained(TOY_LOSSES["mean_squared_error"], 0.9) == pytest.approx(
        1 - math.sqrt(0.9)
    )


# Steps.


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("name", LOSSES)
def test_one_parameter_gradient_and_sharpness(depth, name):
    weight, richness = jnp.asarray(1.3), jnp.asarray(0.7)

    def loss(w):
        return TOY_LOSSES[name].value((w**depth - 1) / richness, jnp)

    arguments = (weight, depth, richness, TOY_LOSSES[name])
    np.testing.assert_allclose(
        toy_one_parameter.gradient(*arguments), jax.grad(loss)(weight), rtol=1e-12
    )
    np.testing.assert_allclose(
        toy_one_parameter.sharpness(*arguments), jax.grad(jax.grad(loss))(weight), rtol=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
def test_two_parameter_step_descends_the_gradient_of_four_weights(name):
    """u and v are two layers; v stays u with its elements exchanged."""
    u, rate, richness = jnp.array([1.2, -0.4]), 0.3, 0.6

    def loss(u, v):
        return TOY_LOSSES[name].value(u @ v / richness, jnp)

    by_u, by_v = jax.grad(loss, argnums=(0, 1))(u, u[::-1])
    moved_u, moved_v = u - rate * by_u, u[::-1] - rate * by_v
    np.testing.assert_allclose(moved_v, moved_u[::-1], rtol=1e-14)
    residual = -TOY_LOSSES[name].slope(u @ u[::-1] / richness, jnp)
    stepped = toy_two_parameter.weight_step(u[0], u[1], residual, rate, richness)
    np.testing.assert_allclose(stepped, moved_u, rtol=1e-14)


def test_function_step_is_exact_and_the_printed_one_is_not():
    first, second, rate, richness = 1.1, 0.3, 0.02, 0.1
    for _ in range(5):
        value = toy_two_parameter.output(first, second, richness)
        kernel = toy_two_parameter.tangent_kernel(first, second, richness)
        expected = toy_two_parameter.function_step(value, kernel, 1 - value, rate, richness)
        printed = (
            value + rate * (1 - value) * kernel + rate**2 / richness * (1 - value) ** 2 * value
        )
        first, second = toy_two_parameter.weight_step(first, second, 1 - value, rate, richness)
        moved = toy_two_parameter.output(first, second, richness)
        assert moved == pytest.approx(expected[0], rel=1e-12)
        assert abs(printed - moved) > 1e-6
        assert toy_two_parameter.tangent_kernel(first, second, richness) == pytest.approx(
            expected[1], rel=1e-12
        )


# Closed forms.


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_early_weight_solves_its_equation(depth):
    end = 0.9 * float(toy_laws.escape_time(1e4, max(depth, 3)))
    times = np.linspace(0, end, 7)
    solved = solve_ivp(
        lambda _, w: depth * w ** (depth - 1), (0, end), [1.0], t_eval=times, rtol=1e-11, atol=1e-11
    )
    weights = toy_laws.early_weight(times, depth)
    np.testing.assert_allclose(weights, solved.y[0], rtol=1e-8)
    np.testing.assert_allclose(toy_laws.early_time(weights, depth), times, atol=1e-12)


def test_escape_times():
    depths = [toy_laws.escape_time(1e6, depth) for depth in (2, 3, 4, 5)]
    np.testing.assert_allclose(depths, [math.log(1e6) / 4, 1 / 3, 1 / 8, 1 / 15])


@pytest.mark.parametrize("name", LOSSES)
def test_sharpness_at_the_minimum_and_its_limits(name):
    curvature = TOY_LOSSES[name].minimal_curvature
    for depth, richness in itertools.product((2, 3, 5), (1e-4, 0.5, 1e6)):
        weight = toy_laws.minimiser(richness, depth)
        direct = toy_one_parameter.sharpness(
            jnp.asarray(weight), depth, jnp.asarray(richness), TOY_LOSSES[name]
        )
        closed = toy_laws.minimal_sharpness(richness, depth, name)
        np.testing.assert_allclose(direct, closed, rtol=1e-6)
        rate = toy_laws.largest_stable_rate(richness, depth, name)
        limits = {1e-4: 2e-8 / depth**2, 1e6: 2 * 1e6 ** (2 / depth) / depth**2}
        if richness in limits:
            assert rate == pytest.approx(limits[richness] / curvature, rel=1e-3)


# Planes.


def make_runs(model, rates, **axes):
    names = list(axes)
    return [
        {
            "run_id": str(i),
            "model": model,
            "learning_rate": rate,
            "learning_rate_relative_to": "absolute",
            "seed": 0,
            **dict(zip(names, values, strict=True)),
        }
        for i, (rate, *values) in enumerate(itertools.product(rates, *axes.values()))
    ]


def step_alone(run, start=1.0):
    """One run in plain Python: the losses of all steps until it leaves the finite range."""
    slope, value = reference_slope(run["loss"]), reference_loss(run["loss"])
    rate, richness = run["learning_rate"], run["richness"]
    first, second = np.float64(start), np.float64(0.0)
    outputs = [0.0]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(SETTINGS["stopping"]["num_steps"]):
            if run["model"] == "toy_one_parameter":
                depth = run["depth"]
                output = (first**depth - 1) / richness
                gradient = slope(output) * depth * first ** (depth - 1) / richness
                first -= rate * (np.sign(gradient) if run["optimizer"] == "sign_sgd" else gradient)
                outputs.append((first**depth - 1) / richness)
            else:
                shift = -rate * slope(2 * first * second / richness) / richness
                first, second = first + shift * second, second + shift * first
                outputs.append(2 * first * second / richness)
            if not value(outputs[-1]) <= 1e30 * value(0.0):
                break
        return value(np.array(outputs))


PLANES = {
    "toy_one_parameter": {
        "richness": (1e-3, 0.3, 1e3),
        "depth": (2, 5),
        "loss": LOSSES,
        "optimizer": ("sgd", "sign_sgd"),
    },
    "toy_two_parameter": {"richness": (1e-2, 0.3, 1e3), "loss": LOSSES},
}


@pytest.mark.parametrize("model", PLANES)
def test_plane_is_its_runs_one_by_one(model):
    runs = make_runs(model, np.geomspace(1e-7, 1e3, 21), **PLANES[model])
    table, _ = run_theory(SETTINGS, runs)
    assert set(table["status"]) == {"finished", "diverged"}
    regular = 0
    for row, run in zip(table.itertuples(), runs, strict=True):
        losses, shifted = step_alone(run), step_alone(run, start=1 + 1e-15)
        tolerance = {"rel": 1e-5, "abs": 1e-7}
        if len(losses) != len(shifted) or losses[-1] != pytest.approx(shifted[-1], **tolerance):
            continue  # chaotic: rounding grows beyond all bounds
        regular += 1
        gone = not losses[-1] <= 1e30 * losses[0]
        assert (row.status == "diverged") == gone, run
        assert row.steps == len(losses) - 1, run
        assert row.final_train_loss == pytest.approx(losses[-1], **tolerance, nan_ok=True), run
        if not gone:
            assert row.peak_train_loss == pytest.approx(losses.max(), **tolerance), run
    assert regular > 0.8 * len(runs)


def test_a_diverged_run_stays_where_it_left_and_touches_no_other():
    rates = [1e-3, 1e3]
    both, _ = run_theory(
        SETTINGS, make_runs("toy_two_parameter", rates, richness=[1.0], loss=LOSSES)
    )
    alone, _ = run_theory(
        SETTINGS, make_runs("toy_two_parameter", rates[:1], richness=[1.0], loss=LOSSES)
    )
    assert (both["status"] == "diverged").tolist() == [False, False, True, True]
    assert (both["steps"][2:] < 50).all()
    columns = ["final_train_loss", "peak_train_loss", "final_output"]
    np.testing.assert_array_equal(both[columns][:2], alone[columns])


def test_history_is_measured_as_scheduled_and_at_each_last_step():
    settings = {**SETTINGS, "measurements": {"steps": [0, 3, 10]}}
    runs = make_runs("toy_two_parameter", [1e-2, 50.0], richness=[1.0], loss=LOSSES[:1])
    table, history = run_theory(settings, runs)
    steps = {name: part["step"].tolist() for name, part in history.groupby("run_id")}
    assert steps["0"] == [0, 3, 10, 50]
    last = int(table["steps"][1])
    assert steps["1"] == [step for step in (0, 3, 10) if step < last] + [last]
    rate = history["physical_time"] / history["step"].where(history["step"] > 0)
    assert rate.dropna().between(1e-2 - 1e-9, 50).all()


def test_a_run_stops_when_its_output_is_near_the_target():
    settings = {**SETTINGS, "stopping": {"num_steps": 10000, "converged_output": 0.01}}
    runs = make_runs("toy_two_parameter", [1e-2], richness=[1.0], loss=LOSSES[:1])
    table, history = run_theory(settings, runs)
    assert table["status"][0] == "stopped"
    assert table["convergence_step"][0] == table["steps"][0] < 10000
    assert abs(history["output"].iloc[-1] - 1) < 0.01


def test_peak_of_a_convex_loss_and_its_step():
    settings = {**SETTINGS, "measurements": {"dense_until": 50}}
    runs = make_runs("toy_two_parameter", [1.5e-4, 2e-5], richness=[1e-2], loss=LOSSES)
    table, history = run_theory(settings, runs)
    for row in table.itertuples():
        losses = history.loc[history["run_id"] == row.run_id, "train_loss"].to_numpy()
        assert row.peak_train_loss == losses.max()
        assert row.peak_step == losses.argmax()


def test_lazy_error_decays_exponentially():
    depth, richness = 3, 1e-5
    rate = 1e-3 * richness**2
    runs = make_runs(
        "toy_one_parameter",
        [rate],
        richness=[richness],
        depth=[depth],
        loss=LOSSES[:1],
        optimizer=["sgd"],
    )
    table, _ = run_theory(SETTINGS, runs)
    expected = (1 - depth**2 * rate / richness**2) ** 50
    assert 1 - table["final_output"][0] == pytest.approx(expected, rel=1e-3)


# Edges.


def edge_runs(model, edge, richness, num_steps, loss="mean_squared_error", factor=1e30, **extra):
    runs = make_runs(
        f"{model}_edge",
        [1e-14],
        richness=richness,
        loss=[loss],
        edge=[edge],
        num_steps=[num_steps],
        **{name: [value] for name, value in extra.items()},
    )
    settings = {**SETTINGS, "stopping": {"num_steps": 100000}, "divergence_factor": factor}
    return run_theory(settings, runs)[0]


@pytest.mark.parametrize(("edge", "expected"), [("catapult", 1.0), ("divergence", 2.0)])
def test_two_parameter_thresholds(edge, expected):
    table = edge_runs("toy_two_parameter", edge, [1e-4, 1e-3], 1000)
    ratio = table["learning_rate"] / table["richness"] ** 2
    np.testing.assert_allclose(ratio, expected, rtol=2e-3)
    np.testing.assert_allclose(table["rate_beyond"] / table["learning_rate"], 1, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_largest_rate_that_converges_is_that_of_the_minimum(loss):
    table = edge_runs(
        "toy_one_parameter", "convergence", [1e-4, 1e2, 1e3], 1000, loss, depth=3, optimizer="sgd"
    )
    expected = toy_laws.largest_stable_rate(table["richness"], 3, loss)
    np.testing.assert_allclose(table["learning_rate"], expected, rtol=0.02)
    assert (table["status"] == "finished").all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [2, 5])
def test_smallest_rate_that_trains_is_that_of_the_plateau(loss, depth):
    table = edge_runs(
        "toy_one_parameter",
        "training",
        [1e-4, 1e-2, 1.0],
        1000,
        loss,
        depth=depth,
        optimizer="sgd",
    )
    trained = PortraitRules().trained_loss
    expected = toy_laws.smallest_training_rate(table["richness"], depth, loss, 1000, trained)
    np.testing.assert_allclose(table["learning_rate"], expected, rtol=0.05)


def test_smallest_rate_of_two_parameters():
    table = edge_runs("toy_two_parameter", "training", [1e-4, 1.0, 1e4], 1000)
    expected = toy_laws.two_parameter_training_rate(
        table["richness"], LOSSES[0], 1000, PortraitRules().trained_loss
    )
    np.testing.assert_allclose(table["learning_rate"], expected, rtol=0.05)


def test_an_edge_that_the_range_lacks_is_null():
    """Steps of the gradient's sign are bounded: no rate diverges."""
    shape = {"depth": 5, "optimizer": "sign_sgd"}
    table = edge_runs("toy_one_parameter", "divergence", [1.0], 100, factor=1e200, **shape)
    assert table["rate_beyond"].isna().all()
    assert table["learning_rate"][0] == pytest.approx(1e-14 * 10**toy_edges.DECADES)
