"""Time to peak, the time constant c, predicted weight decays, and how runs take them."""

import copy
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from snakemake.cli import get_argument_parser

from sgdphases import workflow
from sgdphases.command import main
from sgdphases.config import expand_runs, load_experiment
from sgdphases.errors import InputError
from sgdphases.prediction import (
    Peak,
    describe_prediction,
    find_peak,
    measure_time_constant,
    predicted_weight_decay,
    read_time_constants,
    time_constants,
    with_budgets,
)
from sgdphases.rate_schedules import RateSchedule
from sgdphases.schedule import BUDGETS, planned_steps, stopping_of_run
from sgdphases.tables import ExperimentTables
from sgdphases.training import resolve_weight_decays

PAPER_BUDGETS = [50, 100, 250, 500, 1000, 1500, 2000]
PAPER_PREDICTIONS = [1.31e-4, 6.56e-5, 2.63e-5, 1.31e-5, 6.56e-6, 4.38e-6, 3.28e-6]


def curve(accuracy, steps=None):
    steps = range(len(accuracy)) if steps is None else steps
    return pd.DataFrame({"step": list(steps), "test_accuracy": accuracy})


# --- time to peak ---------------------------------------------------------------------------------


def test_a_peak_lies_between_two_measurements():
    peak = find_peak(curve([0.1, 0.5, 0.896, 0.9, 0.8], steps=[0, 2, 5, 9, 20]))
    assert peak == Peak(step=5, step_before=2, accuracy=0.9)


def test_the_margin_is_absolute_and_rounding_does_not_decide():
    # 0.895 and 0.9 differ by the margin, but not in binary.
    assert find_peak(curve([0.1, 0.895, 0.9, 0.7])).step == 1
    assert find_peak(curve([0.1, 0.8949, 0.9, 0.7])).step == 2


def test_measurements_may_come_in_any_order_and_be_null():
    table = curve([0.9, 0.1, np.nan, 0.7], steps=[5, 0, 3, 9])
    assert find_peak(table) == Peak(5, 0, 0.9)


def test_of_several_equal_maxima_the_first_tells_that_the_run_has_peaked():
    assert find_peak(curve([0.1, 0.9, 0.8, 0.9])).step == 1


@pytest.mark.parametrize(
    ("accuracy", "fragments"),
    [
        ([0.1, 0.5, 0.9], ["highest at the last measurement (step 2)", "more steps"]),
        ([0.1, 0.1, 0.104, 0.1], ["never rises", "0.1000 at the start"]),
        ([0.5, 0.4, 0.3], ["never rises"]),
        ([0.5], ["never rises"]),
        ([np.nan, np.nan], ["no test accuracy"]),
    ],
)
def test_what_shows_no_peak_is_refused(accuracy, fragments):
    with pytest.raises(InputError) as caught:
        find_peak(curve(accuracy))
    for fragment in fragments:
        assert fragment in str(caught.value)


# --- c and c/T ------------------------------------------------------------------------------------


def test_the_papers_numbers():
    # 21 of 32 steps of an epoch at 0.01, and the list that the paper prints.
    (constant,) = time_constants([Peak(21, 20, 0.9)], 0.01, 32)
    assert constant == pytest.approx(0.0065625)
    predicted = [predicted_weight_decay(constant, budget) for budget in PAPER_BUDGETS]
    np.testing.assert_allclose(predicted, PAPER_PREDICTIONS, rtol=4e-3)
    assert predicted_weight_decay(constant, 200, 0.3) == pytest.approx(1.09375e-4)


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf")])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(InputError, match="budget_epochs"):
        predicted_weight_decay(0.01, budget)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.3, 1.5])
def test_a_first_decay_outside_the_budget_is_refused(fraction):
    with pytest.raises(InputError, match="first_decay"):
        predicted_weight_decay(0.01, 100, fraction)


def predict(tables, budgets=(10.0, 100.0), first_decay=0.5):
    return with_budgets(measure_time_constant(tables), budgets, first_decay)


def make_tables(peaks=(20, 30), status="finished", steps_per_epoch=10):
    history, runs = [], []
    for seed, peak in enumerate(peaks):
        table = curve([0.1, 0.4, 0.9, 0.7], steps=[0, peak - 5, peak, 100])
        history.append(table.assign(run_id=f"run{seed}"))
        runs.append(
            {
                "run_id": f"run{seed}",
                "seed": seed,
                "model": "fully_connected",
                "width": 8,
                "loss": "cross_entropy",
                "learning_rate": 0.5,
                "momentum": 0.9,
                "batch_size": 64,
                "weight_decay": 0.02,
                "status": status,
                "steps": 100,
                "steps_per_epoch": steps_per_epoch,
            }
        )
    spec = {
        "experiment": "l2/estimate",
        "scale": "quick",
        "dataset": {"name": "digits", "num_train": 640},
    }
    return ExperimentTables(spec, pd.DataFrame(runs), pd.concat(history), None)


def test_a_prediction_says_what_it_is_based_on():
    prediction = predict(make_tables())
    assert prediction["time_to_peak_steps"] == [20, 30]
    assert prediction["step_before_peak"] == [15, 25]
    assert prediction["time_to_peak_epochs"] == pytest.approx(2.5)
    assert prediction["l2_time_constant"] == pytest.approx(0.05)
    assert prediction["l2_time_constant_low"] == pytest.approx(0.04)
    assert prediction["l2_time_constant_high"] == pytest.approx(0.06)
    assert prediction["l2_time_constant_standard_error"] == pytest.approx(0.01)
    rows = pd.DataFrame(prediction["predictions"])
    assert rows["schedule"].tolist() == ["constant"] * 2 + ["piecewise"] * 2
    np.testing.assert_allclose(rows["weight_decay"], [5e-3, 5e-4, 1e-2, 1e-3])
    np.testing.assert_allclose(rows["first_decay_epoch"][2:], [5, 50])
    text = describe_prediction(prediction)
    for fragment in ("momentum 0.9", "640 samples of digits", "c = 0.05", "budget 100 epochs"):
        assert fragment in text
    assert json.loads(json.dumps(prediction)) == prediction


def test_one_seed_has_no_spread():
    prediction = predict(make_tables(peaks=(20,)))
    assert prediction["l2_time_constant_low"] is None
    assert "one seed" in describe_prediction(prediction)


def test_a_run_without_a_peak_is_named():
    tables = make_tables()
    tables.history.loc[tables.history["step"] == 100, "test_accuracy"] = 0.95
    with pytest.raises(InputError, match=r"run0 \(seed 0\): no peak to predict from"):
        predict(tables)
    with pytest.raises(InputError, match="diverged"):
        predict(make_tables(status="diverged"))


def test_other_budgets_keep_the_constant():
    changed = with_budgets(predict(make_tables()), [1000.0], None)
    (row,) = changed["predictions"]
    assert row["weight_decay"] == pytest.approx(5e-5)


def test_a_damaged_prediction_is_named(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(predict(make_tables())))
    assert read_time_constants([good]) == {"l2/estimate": pytest.approx(0.05)}
    for text in ("{", "[]", '{"experiment": "a/b"}', '{"l2_time_constant": 0}'):
        bad.write_text(text)
        with pytest.raises(InputError, match=r"bad\.json: missing or damaged"):
            read_time_constants([bad])


# --- runs that take their weight decay from a prediction ------------------------------------------


def test_weight_decays_resolve_from_the_constant():
    absolute = {"weight_decay": 0.3, "weight_decay_from": None, "budget_epochs": None}
    relative = {"weight_decay": 2.0, "weight_decay_from": "l2/estimate", "budget_epochs": 40.0}
    constants = {"l2/estimate": 0.02}
    decays = resolve_weight_decays([absolute, relative], constants, RateSchedule())
    np.testing.assert_allclose(decays, [0.3, 1e-3])
    schedule = RateSchedule("piecewise", (0.25, 0.5), (0.2, 0.2))
    decays = resolve_weight_decays([absolute, relative], constants, schedule)
    np.testing.assert_allclose(decays, [0.3, 4e-3])


def test_a_runs_own_budget_ends_it_first():
    stopping = {"epochs": 100.0, "num_steps": 10**6}

    def steps(stopping, **budgets):
        run = dict.fromkeys(BUDGETS) | budgets
        return planned_steps(stopping_of_run(stopping, run), 0.1, 0.0, steps_per_epoch=5)

    assert steps(stopping) == 500
    assert steps(stopping, budget_epochs=20.0) == 100
    assert steps(stopping, budget_epochs=200.0) == 500
    assert steps(stopping, budget_steps=70) == 70
    assert steps(stopping, budget_physical_time=3.0) == 30
    assert steps(stopping, budget_physical_time=3.0, budget_steps=20) == 20
    assert steps({"decay_time": 1.0}, budget_epochs=20.0) == 100
    assert steps({"decay_time": 1.0}, budget_physical_time=2.0) == 20


SOURCE = {
    "description": "A cheap run at a large weight decay",
    "dataset": "digits",
    "hyperparameters": {"model": "fully_connected", "width": 8, "learning_rate": 0.5},
    "grid": {"weight_decay": [0.01], "seed": [0, 1]},
    "stopping": {"epochs": 10},
    "prediction": {"budget_epochs": [10, 100], "first_decay": 0.3},
}
USER = {
    "description": "Runs at the predicted weight decay",
    "dataset": "digits",
    "hyperparameters": {"model": "fully_connected", "width": 8, "learning_rate": 0.5},
    "grid": {
        "weight_decay": {"from": "l2/source", "budget": [10, 100], "values": [1.0, 10.0]},
        "seed": [0],
    },
    "stopping": {"epochs": 100},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with one dataset and what `write` puts under config/experiments/l2."""
    (tmp_path / "config/datasets").mkdir(parents=True)
    (tmp_path / "config/experiments/l2").mkdir(parents=True)
    (tmp_path / "config/datasets/digits.yaml").write_text("source: digits\n")
    (tmp_path / "config/config.yaml").write_text("scale: quick\n")
    monkeypatch.chdir(tmp_path)

    def write(name, document, **changes):
        path = tmp_path / f"config/experiments/l2/{name}.yaml"
        path.write_text(yaml.safe_dump({**copy.deepcopy(document), **changes}))
        return path

    write("source", SOURCE)
    write("user", USER)
    return write


def plan(experiments="all"):
    return workflow.make_plan({"scale": "quick", "experiments": experiments})


def test_an_axis_lists_factors_and_budgets(project):
    path = project("user", USER)
    datasets = {"digits": path}
    runs = expand_runs(load_experiment(path, "quick", "embedded", datasets))
    found = [(r["weight_decay_from"], r["budget_epochs"], r["weight_decay"]) for r in runs]
    assert found == [
        ("l2/source", 10.0, 1.0),
        ("l2/source", 10.0, 10.0),
        ("l2/source", 100.0, 1.0),
        ("l2/source", 100.0, 10.0),
    ]


def test_a_shard_asks_for_the_predictions_it_needs(project):
    del project
    user = plan().experiments["l2/user"]
    assert [user.predictions_of(shard) for shard in user.training_shards] == [["l2/source"]]
    source = plan().experiments["l2/source"]
    assert [source.predictions_of(shard) for shard in source.training_shards] == [[]]


def test_the_experiment_that_predicts_is_planned_along(project):
    del project
    assert sorted(plan(["l2/user"]).experiments) == ["l2/source", "l2/user"]
    assert sorted(plan(["l2/source"]).experiments) == ["l2/source"]


def test_other_budgets_of_the_prediction_retrain_nothing(project):
    before = plan().experiments["l2/source"].training_shards
    project("source", SOURCE, prediction={"budget_epochs": [7]})
    assert list(plan().experiments["l2/source"].training_shards) == list(before)


def with_axis(**axis):
    grid = {"weight_decay": {"from": "l2/source", "budget": 10, **axis}, "seed": [0]}
    return {"grid": grid}


@pytest.mark.parametrize(
    ("name", "changes", "fragments"),
    [
        ("user", with_axis(budget=0), ["grid.weight_decay.budget: 0", "above 0"]),
        ("user", with_axis(budget=[10, -1]), ["grid.weight_decay.budget: -1"]),
        ("user", with_axis(budget=[]), ["budget: []"]),
        ("user", with_axis(budget=None), ["key 'budget' is missing"]),
        ("user", with_axis(values=[0.0, 1.0]), ["weight_decay: 0.0", "factor above 0"]),
        ("user", with_axis(values=[-1.0]), ["weight_decay.values[0]: -1.0"]),
        ("user", with_axis(**{"from": "l2/nothing"}), ["l2/nothing", "no known experiment"]),
        ("user", with_axis(**{"from": "l2/user"}), ["'l2/user' has no section prediction"]),
        ("user", {"grid": {"weight_decay": {"budget": 10}}}, ["key 'from' is missing"]),
        ("user", {"grid": {"weight_decay_from": ["l2/source"]}}, ["weight_decay"]),
        (
            "user",
            {"grid": {"weight_decay_from": ["l2/source"], "weight_decay": [1.0]}},
            ["with budget_epochs"],
        ),
        (
            "user",
            {"hyperparameters": {**USER["hyperparameters"], "learning_rate": 0.1}},
            ["learning_rate: 0.1 differs from that of l2/source"],
        ),
        (
            "user",
            {"hyperparameters": {**USER["hyperparameters"], "loss_normalisation": "per_sample"}},
            ["loss_normalisation: 'per_sample' differs from that of l2/source", "'per_class'"],
        ),
        (
            "user",
            {"hyperparameters": {**USER["hyperparameters"], "batch_size": 64}},
            ["batch_size: 64 differs from that of l2/source"],
        ),
        (
            "user",
            {"schedule": {"kind": "piecewise", "boundaries": [1.2], "factors": [0.2]}},
            ["schedule.boundaries[0]: 1.2", "below 1"],
        ),
        ("source", {"prediction": {"budget_epochs": [0]}}, ["budget_epochs[0]: 0", "above 0"]),
        ("source", {"prediction": {"budget_epochs": []}}, ["budget_epochs: []"]),
        (
            "source",
            {"prediction": {"budget_epochs": [1], "first_decay": 1.0}},
            ["first_decay: 1.0", "below 1"],
        ),
        ("source", {"grid": {"weight_decay": [0.0]}}, ["prediction: 0.0 as weight_decay"]),
        ("source", {"grid": {"weight_decay": [0.1, 0.2]}}, ["weight_decay: [0.1, 0.2]", "seed"]),
        (
            "source",
            {"schedule": {"kind": "warmup_cosine", "warmup": 0.1}},
            ["schedule.kind: 'warmup_cosine'", "constant"],
        ),
    ],
)
def test_what_predicts_nothing_is_refused_before_any_job(project, name, changes, fragments):
    project(name, {"source": SOURCE, "user": USER}[name], **changes)
    with pytest.raises(InputError) as caught:
        plan()
    for fragment in [f"{name}.yaml", *fragments]:
        assert fragment in str(caught.value)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--experiment", "l2/source", "--budget-epochs", "0"], "budget_epochs: 0.0"),
        (["--experiment", "l2/sauce", "--budget-epochs", "5"], "did you mean 'l2/source'"),
        (["--experiment", "l2/user", "--budget-epochs", "5"], "has no section prediction"),
        (
            ["--experiment", "l2/source", "--budget-epochs", "5", "--first-decay", "2"],
            "first_decay: 2.0",
        ),
        (
            ["--experiment", "l2/source", "--budget-epochs", "5", "--config", "scale"],
            "--config: 'scale'",
        ),
        (
            ["--experiment", "l2/source", "--budget-epochs", "5", "--config", "experiments=[l2"],
            "--config: 'experiments=[l2'",
        ),
    ],
)
def test_the_command_refuses_with_one_line(project, capsys, arguments, fragment):
    del project
    assert main(["predict-l2", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert fragment in line


def test_the_command_prints_what_the_workflow_measured(project, capsys, monkeypatch):
    project("source", SOURCE)
    asked = []

    def run(command, **options):
        asked.append(get_argument_parser().parse_args(command[3:]))
        file = Path(*asked[0].targets)
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(predict(make_tables())))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    words = ["--experiment", "l2/source", "--budget-epochs", "50", "--first-decay", "0.5"]
    assert main(["predict-l2", *words, "--cores", "1", "--config", "scale=smoke"]) == 0
    (options,) = asked
    assert options.targets == ["results/experiments/l2/source/prediction.json"]
    assert (options.cores, options.config) == (1, ["scale=smoke"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "budget 50 epochs: weight decay 0.001",
        "budget 50 epochs, learning rate lowered first at 25: weight decay 0.002",
    ]
