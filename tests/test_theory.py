"""The small closed systems against direct computation."""

import itertools

import numpy as np
import pandas as pd
import pytest

from sgdphases import config
from sgdphases.errors import InputError
from sgdphases.theory import heavy_ball, linear_model, warmup
from sgdphases.theory.programs import PROGRAMS, run_theory

SETTINGS = {
    "experiment": "catapult/test",
    "stopping": {"num_steps": 60},
    "measurements": {"dense_until": 10},
    "divergence_factor": 1e8,
}


def make_runs(model="warmup", rates=(0.5, 1.5, 2.2), seeds=(0,), unit="critical", **shared):
    shared = {"width": 200, **shared}
    return [
        {
            "run_id": f"{rate}-{seed}",
            "model": model,
            "learning_rate": rate,
            "learning_rate_relative_to": unit,
            "seed": seed,
            **shared,
        }
        for rate, seed in itertools.product(rates, seeds)
    ]


def numerical_gradient(function, point, step=1e-6):
    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        shift = np.zeros_like(point)
        shift[index] = step
        gradient[index] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient


# The warm-up model.


def test_weight_step_descends_the_gradient():
    first, second = warmup.draw_weights(0, 7)

    def loss(weights):
        return float(warmup.network_output(weights[0], weights[1])) ** 2 / 2

    gradient = numerical_gradient(loss, np.stack([first, second]))
    moved = warmup.weight_step(first[None], second[None], np.array([0.3]))
    np.testing.assert_allclose(moved[0][0], first - 0.3 * gradient[0], atol=1e-8)
    np.testing.assert_allclose(moved[1][0], second - 0.3 * gradient[1], atol=1e-8)


@pytest.mark.parametrize("width", [3, 100, 1000])
@pytest.mark.parametrize("relative_rate", [0.4, 1.5, 2.3])
def test_recursion_is_exact(width, relative_rate):
    first, second = (w[None] for w in warmup.draw_weights(1, width))
    output = warmup.network_output(first, second)
    kernel = warmup.network_ntk(first, second)
    rate = relative_rate * 2 / kernel
    for _ in range(4):
        output, kernel = warmup.recursion_step(output, kernel, rate, np.array([float(width)]))
        first, second = warmup.weight_step(first, second, rate)
        np.testing.assert_allclose(output, warmup.network_output(first, second), rtol=1e-9)
        np.testing.assert_allclose(kernel, warmup.network_ntk(first, second), rtol=1e-9)


def test_initial_values_are_those_of_the_weights_and_depend_on_seed_and_width():
    seeds, widths = np.array([0, 1, 0]), np.array([50, 50, 60])
    outputs, kernels = warmup.initial_functions(seeds, widths)
    for i in range(3):
        first, second = warmup.draw_weights(int(seeds[i]), int(widths[i]))
        assert outputs[i] == warmup.network_output(first, second)
        assert kernels[i] == warmup.network_ntk(first, second)
    assert len(set(outputs)) == 3


def test_wide_lazy_run_decays_geometrically():
    runs, history = run_theory(SETTINGS, make_runs(rates=(0.3,), width=1_000_000))
    expected = history["output"].iloc[0] * (1 - 0.6) ** history["step"]
    np.testing.assert_allclose(history["output"][:11], expected[:11], rtol=1e-4)
    assert runs["phase"].tolist() == ["lazy"]


def test_kernel_stays_positive_below_four_over_its_start():
    runs = make_runs(rates=np.linspace(0.1, 1.99, 40), seeds=(0, 1, 2), width=50)
    settings = {**SETTINGS, "measurements": {"dense_until": 60}}
    _, history = run_theory(settings, runs)
    assert (history["ntk_top_eigenvalue"] > 0).all()


def test_plane_contains_the_descent_and_its_basis_is_orthonormal():
    along, across, dim1, dim2 = warmup.plane_basis(3, 50)
    np.testing.assert_allclose(
        [along @ along, across @ across, along @ across], [1, 1, 0], atol=1e-12
    )
    first = (dim1 * along + dim2 * across)[None]
    second = (dim1 * along - dim2 * across)[None]
    rate = np.array([1.4])
    expected = warmup.weight_step(first, second, rate)
    dim1, dim2 = warmup.plane_step(np.array([dim1]), np.array([dim2]), rate, np.array([50.0]))
    np.testing.assert_allclose(dim1 * along + dim2 * across, expected[0][0], atol=1e-12)
    np.testing.assert_allclose(dim1 * along - dim2 * across, expected[1][0], atol=1e-12)


def test_plane_history_agrees_with_its_coordinates():
    _, history = run_theory(SETTINGS, make_runs("warmup_plane", rates=(1.5,)))
    squares = history["dim1"] ** 2, history["dim2"] ** 2
    np.testing.assert_allclose(
        history["output"], (squares[0] - squares[1]) / np.sqrt(200), atol=1e-10
    )
    np.testing.assert_allclose(
        history["ntk_top_eigenvalue"], 2 * (squares[0] + squares[1]) / 200, rtol=1e-10
    )
    np.testing.assert_allclose(
        history["weight_correlation"],
        (squares[0] - squares[1]) / (squares[0] + squares[1]),
        atol=1e-10,
    )


def test_catapult_shrinks_the_orthogonal_parts_of_the_weights():
    runs, history = run_theory(SETTINGS, make_runs("warmup_descent", rates=(0.5, 1.5), width=1000))
    first = history[history["step"] == 0].reset_index(drop=True)
    for name in ("first_orthogonal_norm", "second_orthogonal_norm"):
        lazy, catapult = runs[f"final_{name}"] / first[name]
        assert lazy == pytest.approx(1, abs=0.01)
        assert catapult < 0.5
    # With y = 0 the weights end up orthogonal; only on the way are they aligned.
    correlation = history[history["run_id"] == "1.5-0"]["weight_correlation"].abs()
    assert correlation.max() > 0.8
    assert correlation.iloc[-1] < 0.01


def test_orthogonal_part_of_known_vectors():
    weights, other = np.array([[3.0, 4.0]]), np.array([[2.0, 0.0]])
    assert warmup.orthogonal_part(weights, other)[0] == pytest.approx(4.0)
    assert warmup.weight_correlation(weights, other)[0] == pytest.approx(0.6)


# The full linear model.


@pytest.fixture
def problem():
    values = linear_model.draw_problem(0, 6, 4, 3)
    return tuple(value[None] for value in values)


def test_linear_model_step_descends_the_gradient(problem):
    first, second, inputs, labels = problem

    def loss(u, v):
        return float(np.mean((linear_model.outputs(u, v, inputs) - labels) ** 2) / 2)

    rate = np.array([0.2])
    error = linear_model.outputs(first, second, inputs) - labels
    moved = linear_model.weight_step(first, second, inputs, error, rate)
    gradients = (
        numerical_gradient(lambda u: loss(u, second), first),
        numerical_gradient(lambda v: loss(first, v), second),
    )
    np.testing.assert_allclose(moved[0], first - 0.2 * gradients[0], atol=1e-8)
    np.testing.assert_allclose(moved[1], second - 0.2 * gradients[1], atol=1e-8)
    # The printed prefactor, 1/sqrt(nm) instead of 1/(sqrt(n) m), is another step.
    printed = linear_model.weight_step(first, second, inputs, error, rate * np.sqrt(4))
    assert np.abs(printed[0] - moved[0]).max() > 1e-3


def test_kernel_is_the_gram_matrix_of_the_jacobian(problem):
    first, second, inputs, _ = problem
    rows = []
    for sample in range(4):
        by_first = numerical_gradient(
            lambda u, s=sample: float(linear_model.outputs(u, second, inputs)[0, s]), first
        )
        by_second = numerical_gradient(
            lambda v, s=sample: float(linear_model.outputs(first, v, inputs)[0, s]), second
        )
        rows.append(np.concatenate([by_first.ravel(), by_second.ravel()]))
    jacobian = np.array(rows)
    expected = jacobian @ jacobian.T / 4
    np.testing.assert_allclose(linear_model.kernel(first, second, inputs)[0], expected, atol=1e-8)
    fisher = linear_model.fisher_matrix(first, second, inputs)[0]
    np.testing.assert_allclose(fisher, jacobian.T @ jacobian / 4, atol=1e-8)


def test_closed_updates_match_one_step_of_descent(problem):
    first, second, inputs, labels = problem
    rate = np.array([0.4])
    error = linear_model.outputs(first, second, inputs) - labels
    kernel = linear_model.kernel(first, second, inputs)
    moved = linear_model.weight_step(first, second, inputs, error, rate)
    error_after = linear_model.outputs(*moved, inputs) - labels
    kernel_after = linear_model.kernel(*moved, inputs)
    np.testing.assert_allclose(
        linear_model.error_update(error, labels, kernel, inputs, rate, 6), error_after, atol=1e-13
    )
    np.testing.assert_allclose(
        linear_model.kernel_update(kernel, error, labels, inputs, rate, first, second),
        kernel_after,
        atol=1e-13,
    )
    np.testing.assert_allclose(
        linear_model.projected_kernel_update(kernel, error, labels, inputs, rate, 6),
        linear_model.project(kernel_after, error),
        atol=1e-12,
    )


def test_linear_model_with_one_sample_is_the_warm_up_model_with_scaled_input():
    # One input x and label 0: f and lambda scale with x and x^2.
    first, second = warmup.draw_weights(0, 30)
    inputs = np.array([[[1.0]]])
    output = linear_model.outputs(first[None, :, None], second[None], inputs)
    assert output[0, 0] == pytest.approx(float(warmup.network_output(first, second)), rel=1e-12)
    kernel = linear_model.kernel(first[None, :, None], second[None], inputs)
    assert kernel[0, 0, 0] == pytest.approx(float(warmup.network_ntk(first, second)), rel=1e-12)


def test_top_eigenvalue_is_the_largest_and_nan_where_not_finite():
    matrices = np.stack([np.diag([1.0, 5.0, -7.0]), np.full((3, 3), np.inf)])
    found = linear_model.top_eigenvalue(matrices)
    assert found[0] == pytest.approx(5.0)
    assert np.isnan(found[1])


def test_linear_model_converges_to_least_squares():
    settings = {**SETTINGS, "stopping": {"num_steps": 5000, "converged_output": 1e-9}}
    shape = {"width": 100, "num_samples": 6, "input_dim": 2}
    runs, _ = run_theory(settings, make_runs("linear_model", rates=(0.5,), **shape))
    _, _, inputs, labels = linear_model.draw_problem(0, 100, 6, 2)
    residual = np.linalg.lstsq(inputs, labels)[1][0]
    assert runs["status"].tolist() == ["stopped"]
    assert runs["final_train_loss"][0] == pytest.approx(residual / 12, rel=1e-9)


# Heavy ball.


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("excess", [-0.01, 0.01])
def test_heavy_ball_is_stable_exactly_below_its_edge(momentum, excess):
    scaled_rate = 2 * (1 + momentum) * (1 + excess)
    # (f, velocity) advance by a matrix; read it off and take its spectral radius.
    columns = []
    for start in ((1.0, 0.0), (0.0, 1.0)):
        output, velocity = (np.array([value]) for value in start)
        step = heavy_ball.heavy_ball_step(
            output, velocity, np.array([1.0]), np.array([scaled_rate]), np.array([momentum])
        )
        columns.append([step[0][0], step[1][0]])
    radius = np.abs(np.linalg.eigvals(np.array(columns).T)).max()
    assert (radius < 1) == (excess < 0)
    settings = {**SETTINGS, "stopping": {"num_steps": 5000, "converged_output": 1e-8}}
    runs, _ = run_theory(
        settings, make_runs("heavy_ball", rates=(scaled_rate / 2,), momentum=momentum)
    )
    assert runs["status"].tolist() == ["stopped" if excess < 0 else "diverged"]


# Running a grid.


def test_phases_and_their_statuses():
    settings = {**SETTINGS, "stopping": {"num_steps": 5000, "converged_output": 1e-8}}
    runs, _ = run_theory(settings, make_runs(rates=(0.5, 1.5, 2.2)))
    assert runs["phase"].tolist() == ["lazy", "catapult", "divergent"]
    assert runs["status"].tolist() == ["stopped", "stopped", "diverged"]
    assert runs["convergence_step"].isna().tolist() == [False, False, True]
    catapult = runs.iloc[1]
    assert catapult["peak_train_loss"] > 10 * catapult["initial_train_loss"]
    assert catapult["final_ntk_top_eigenvalue"] * catapult["learning_rate"] < 2
    assert 0 < catapult["peak_step"] < catapult["steps"]


# Flows in closed form, and softmax on a fixed kernel, whose forces are bounded: none diverges.
ALWAYS_FINITE = ("wide_mode", "wide_spectrum", "softmax_kernel")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "model", [name for name in PROGRAMS if not name.endswith("_edge") and name not in ALWAYS_FINITE]
)
def test_divergence_is_data_and_leaves_neighbours_alone(model):
    shared = {"num_samples": 4, "input_dim": 2, "momentum": 0.3}
    shared |= {"richness": 0.01, "depth": 2, "loss": "mean_squared_error", "optimizer": "sgd"}
    shared["weight_decay"] = 0.01
    settings = {**SETTINGS, "stopping": {"num_steps": 200}, "divergence_factor": 1e200}
    alone, alone_history = run_theory(settings, make_runs(model, rates=(0.4,), **shared))
    beside, history = run_theory(settings, make_runs(model, rates=(3.5, 0.4, 50.0), **shared))
    assert beside["status"].tolist() == ["diverged", "finished", "diverged"]
    assert beside["steps"][0] < 200
    pd.testing.assert_frame_equal(alone, beside.iloc[1:2].reset_index(drop=True), check_exact=True)
    own = history[history["run_id"] == "0.4-0"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone_history, own, check_exact=True)


def test_budget_is_the_first_of_steps_and_physical_time():
    settings = {**SETTINGS, "stopping": {"num_steps": 40, "physical_time": 2.0}}
    runs, history = run_theory(settings, make_runs(rates=(0.01, 0.1), unit="absolute"))
    assert runs["steps"].tolist() == [40, 20]
    last = history.groupby("run_id")["physical_time"].max()
    assert last.to_dict() == pytest.approx({"0.01-0": 0.4, "0.1-0": 2.0})


def test_history_holds_the_schedule_and_every_last_step():
    settings = {**SETTINGS, "stopping": {"num_steps": 47}, "measurements": {"dense_until": 3}}
    _, history = run_theory(settings, make_runs(rates=(0.5,)))
    assert history["step"].tolist() == [0, 1, 2, 3, 47]
    np.testing.assert_allclose(history["train_loss"], history["output"] ** 2 / 2)


def test_relative_rates_are_in_units_of_two_over_the_initial_eigenvalue():
    runs, _ = run_theory(SETTINGS, make_runs(rates=(0.5,), seeds=(0, 1)))
    expected = 0.5 * 2 / runs["initial_ntk_top_eigenvalue"]
    np.testing.assert_allclose(runs["learning_rate"], expected, rtol=1e-12)
    assert runs["learning_rate"].nunique() == 2
    absolute, _ = run_theory(SETTINGS, make_runs(rates=(0.7,), unit="absolute"))
    np.testing.assert_allclose(
        absolute["relative_learning_rate"], 0.7 * absolute["initial_ntk_top_eigenvalue"] / 2
    )


def test_rows_follow_the_order_of_the_runs_across_models_and_widths():
    runs = (
        make_runs("warmup_descent", rates=(0.5,), width=30)
        + make_runs("warmup", rates=(0.6,), width=20)
        + make_runs("warmup_descent", rates=(0.7,), width=20)
        + make_runs("heavy_ball", rates=(0.8,), width=20, momentum=0.5)
    )
    table, history = run_theory(SETTINGS, runs)
    assert table["run_id"].tolist() == [run["run_id"] for run in runs]
    assert table["model"].tolist() == [run["model"] for run in runs]
    assert table["momentum"].tolist()[:3] != [0.5] * 3
    assert history["run_id"].drop_duplicates().tolist() == table["run_id"].tolist()


def test_tables_have_the_promised_columns_and_survive_parquet(tmp_path):
    runs, history = run_theory(SETTINGS, make_runs())
    for name, table, promised in (
        (
            "runs",
            runs,
            "experiment run_id seed model width learning_rate relative_learning_rate status steps "
            "phase initial_train_loss peak_train_loss final_train_loss final_train_accuracy "
            "final_test_accuracy max_test_accuracy time_to_peak initial_ntk_top_eigenvalue "
            "final_ntk_top_eigenvalue",
        ),
        (
            "history",
            history,
            "experiment run_id step physical_time train_loss train_accuracy test_loss "
            "test_accuracy ntk_top_eigenvalue",
        ),
    ):
        assert set(promised.split()) <= set(table.columns)
        table.to_parquet(tmp_path / f"{name}.parquet")
        back = pd.read_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(table, back, check_dtype=False)
    assert (runs["experiment"] == "catapult/test").all()
    assert runs["time_to_peak"].isna().all()
    for name in ("final_train_accuracy", "final_test_accuracy", "max_test_accuracy"):
        assert runs[name].dtype == np.float64
        assert runs[name].isna().all()
    assert runs["width"].dtype == "Int64"
    assert runs["learning_rate"].dtype == np.float64


def test_same_runs_give_the_same_tables():
    first, second = (run_theory(SETTINGS, make_runs(seeds=(0, 1))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "warm"}, "model 'warm' is unknown; allowed: warmup, "),
        ({"width": None}, "lacks width"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 is not allowed"),
        ({"learning_rate_relative_to": "edge"}, "allowed: absolute, critical"),
    ],
)
def test_bad_runs_are_refused(change, message):
    (run,) = make_runs(rates=(0.5,))
    with pytest.raises(InputError, match=message):
        run_theory(SETTINGS, [{**run, **change}])


def test_no_runs_are_refused():
    with pytest.raises(InputError, match="no run"):
        run_theory(SETTINGS, [])


def test_the_workflow_knows_every_program():
    assert set(config.THEORY_MODELS) == set(PROGRAMS)
