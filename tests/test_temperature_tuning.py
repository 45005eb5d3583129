"""The tuning of the inverse temperature: choosing, extending, and the gain with fresh seeds."""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sgdphases import command, workflow
from sgdphases.command import main
from sgdphases.config import load_experiment
from sgdphases.errors import InputError
from sgdphases.figures.draw import draw_figure
from sgdphases.tables import ExperimentTables
from sgdphases.temperature_tuning import (
    best_setting,
    describe_tuning,
    read_tuning,
    sweep_temperature,
    sweep_values,
)

PROJECT = Path(__file__).parents[1]
DATASETS = {path.stem: path for path in (PROJECT / "config/datasets").glob("*.yaml")}
OPTIONS = {
    "start": 0.01,
    "stop": 10.0,
    "points_per_decade": 2,
    "max_extensions": 2,
    "num_fresh_seeds": 4,
}
SPEC = {
    "experiment": "temperature/test",
    "scale": "quick",
    "dataset": {"name": "digits", "num_train": None},
}


def make_runs(rates=(0.01, 0.1, 1.0), seeds=(0, 1), **shared):
    return [
        {
            "run_id": f"r{rate:g}s{seed}m{shared.get('momentum', 0)}",
            "model": "fully_connected",
            "width": 8,
            "loss": "cross_entropy",
            "batch_size": 64,
            "momentum": 0.0,
            "inverse_temperature": 1.0,
            "learning_rate": rate,
            "seed": seed,
            **shared,
        }
        for rate in rates
        for seed in seeds
    ]


class Trainer:
    """A world in which the best rate is 0.1/β and accuracy peaks at some β."""

    def __init__(self, best):
        self.best, self.calls = best, []

    def accuracy(self, run):
        beta = run["inverse_temperature"]
        off = np.log10(run["learning_rate"] * beta / 0.1)
        peak = 0.9 - 0.02 * np.log10(beta / self.best) ** 2 - 0.1 * off**2
        return peak - 0.001 * run["seed"] + 0.05 * run["momentum"]

    def __call__(self, runs, name=""):
        self.calls.append((name, sorted({run["inverse_temperature"] for run in runs})))
        table = pd.DataFrame(runs)
        table["final_test_accuracy"] = [self.accuracy(run) for run in runs]
        table["status"], table["steps"] = "finished", 100
        history = table[["run_id"]].assign(step=0, test_accuracy=0.1)
        return ExperimentTables(SPEC, table, history, None)


def tune(best, runs=None, **options):
    runs = runs or make_runs()
    trainer = Trainer(best)
    tuned = trainer(runs)
    trainer.calls.clear()
    tuning, table = sweep_temperature(
        tuned, best_setting(tuned, runs), {**OPTIONS, **options}, trainer
    )
    return tuning, table, trainer


# --- the procedure --------------------------------------------------------------------------------


def test_the_papers_sweep():
    expected = [0.01, 0.0316227766017, 0.1, 0.316227766017, 1, 3.16227766017, 10]
    assert sweep_values(0.01, 10.0, 2).tolist() == expected
    assert sweep_values(0.05, 20.0, 1).tolist() == [0.1, 1.0, 10.0]


def test_the_best_temperature_is_found_at_the_rate_divided_by_it():
    tuning, table, trainer = tune(best=0.1)
    assert tuning["inverse_temperature"] == 0.1
    assert (tuning["learning_rate_at_1"], tuning["learning_rate"]) == (0.1, pytest.approx(1.0))
    assert (tuning["is_bracketed"], tuning["num_extensions"]) == (True, 0)
    # β = 1 is not trained again, and the gain is measured with seeds that were not swept.
    assert [name for name, _ in trainer.calls] == ["sweep0", "gain"]
    assert 1.0 not in trainer.calls[0][1]
    assert tuning["fresh_seeds"] == [2, 3, 4, 5]
    assert tuning["gain"] == pytest.approx(0.02)
    assert tuning["gain_low"] <= tuning["gain"] <= tuning["gain_high"]
    assert len(tuning["sweep"]) == 7
    assert table["stage"].value_counts().to_dict() == {"sweep": 14, "gain": 8}
    assert json.loads(json.dumps(tuning)) == tuning


@pytest.mark.parametrize(
    ("best", "extended", "extensions"),
    [
        (1e-3, [1e-3, 3.16227766017e-3], 1),
        (100.0, [31.6227766017, 100.0], 1),
    ],
)
def test_a_best_at_an_end_is_followed_beyond_it(best, extended, extensions):
    # One decade ends at the best, which is then an end again: a second one brackets it.
    tuning, _, trainer = tune(best=best)
    assert trainer.calls[extensions] == ("sweep1", extended)
    assert tuning["num_extensions"] == 2
    assert tuning["inverse_temperature"] == pytest.approx(best)
    assert tuning["is_bracketed"]


def test_a_best_that_is_never_passed_is_said_to_be_at_an_end():
    tuning, _, trainer = tune(best=1e-9, max_extensions=1)
    assert not tuning["is_bracketed"]
    assert tuning["inverse_temperature"] == pytest.approx(1e-3)
    assert [name for name, _ in trainer.calls] == ["sweep0", "sweep1", "gain"]
    assert "the best is at an end of the sweep, after 1 extensions" in describe_tuning(tuning)


def test_where_1_is_best_the_next_best_is_shown_to_lose():
    tuning, table, _ = tune(best=1.1)
    assert tuning["inverse_temperature"] == 1.0
    assert tuning["compared_inverse_temperature"] == 3.16227766017
    assert tuning["gain"] < 0
    assert (table["stage"] == "gain").sum() == 8
    text = describe_tuning(tuning)
    assert "use inverse_temperature 1," in text
    assert "gain of 3.16, the best other than 1, over 1: -0.00" in text


def test_one_fresh_seed_has_no_interval():
    tuning, _, _ = tune(best=0.1, num_fresh_seeds=1)
    assert tuning["gain_low"] is None
    assert "interval" not in describe_tuning(tuning)


def test_whatever_else_the_grid_tunes_is_kept():
    runs = make_runs() + make_runs(momentum=0.9)
    tuning, table, _ = tune(best=0.1, runs=runs)
    assert tuning["momentum"] == 0.9
    assert (table["momentum"] == 0.9).all()


def test_a_tuning_in_words():
    text = describe_tuning(tune(best=0.1)[0])
    for fragment in (
        "temperature/test (scale quick): fully_connected, width 8 on digits, batches of 64",
        "best learning rate at inverse temperature 1: 0.1",
        "0.8995",
        "<- best",
        "use inverse_temperature 0.1, learning_rate 1",
        "gain of 0.1 over 1: +0.0200 (95 % interval",
        "mean of 4 fresh seeds (each: +0.0200",
    ):
        assert fragment in text


@pytest.mark.parametrize(
    ("rates", "fragment"),
    [
        ((0.1, 1.0, 10.0), "the smallest that was tried, 0.1; allowed: a grid of learning_rate w"),
        ((0.001, 0.01, 0.1), "the largest that was tried, 0.1"),
    ],
)
def test_a_best_rate_at_an_end_of_the_grid_is_refused(rates, fragment):
    runs = make_runs(rates)
    with pytest.raises(InputError, match=fragment):
        best_setting(Trainer(1.0)(runs), runs)


def test_a_damaged_tuning_is_named(tmp_path):
    file = tmp_path / "temperature_tuning.json"
    for text in ("{", "{}", '{"inverse_temperature": 0}'):
        file.write_text(text)
        with pytest.raises(InputError, match="missing or damaged"):
            read_tuning(file)
    file.write_text(json.dumps(tune(best=0.1)[0]))
    assert read_tuning(file)["inverse_temperature"] == 0.1


def test_the_figure(tmp_path):
    runs = make_runs()
    tuned = Trainer(0.1)(runs)
    _, sweep, _ = tune(best=0.1)
    tables = ExperimentTables(SPEC, tuned.runs, tuned.history, None, sweep)
    name = "temperature/section3_4"
    draw_figure(name, "temperature", tables, [tmp_path / "f.png"], tmp_path / "f.parquet")
    assert set(pd.read_parquet(tmp_path / "f.parquet")["panel"]) == {"a", "b", "b, fresh seeds"}
    without = ExperimentTables(SPEC, tuned.runs, tuned.history, None)
    with pytest.raises(ValueError, match="no inverse temperature was tuned"):
        draw_figure(name, "temperature", without, [tmp_path / "f.png"], tmp_path / "f.parquet")


# --- experiments ----------------------------------------------------------------------------------

DOCUMENT = {
    "description": "Tuning",
    "dataset": "digits",
    "hyperparameters": {"model": "fully_connected", "loss": "cross_entropy"},
    "grid": {"learning_rate": [0.01, 0.1, 1.0], "seed": [0]},
    "stopping": {"num_steps": 5},
    "temperature_tuning": {},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "config/experiments/temperature").mkdir(parents=True)
    (tmp_path / "config/datasets").mkdir()
    (tmp_path / "config/datasets/digits.yaml").write_text("source: digits\n")
    (tmp_path / "config/config.yaml").write_text("scale: quick\n")
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        path = tmp_path / "config/experiments/temperature/test.yaml"
        path.write_text(yaml.safe_dump({**DOCUMENT, **changes}))
        return path

    write()
    return write


def test_an_experiment_with_a_tuning_is_planned(project):
    del project
    plan = workflow.make_plan({"scale": "quick"}).experiments["temperature/test"]
    assert plan.has_tuning
    assert plan.spec["temperature_tuning"] == {**OPTIONS, "num_fresh_seeds": 5}


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"temperature_tuning": {"start": 0}}, ["temperature_tuning.start: 0", "above 0"]),
        ({"temperature_tuning": {"start": 2.0}}, ["start: 2.0", "at most 1"]),
        ({"temperature_tuning": {"stop": 0.5}}, ["stop: 0.5", "at least 1"]),
        ({"temperature_tuning": {"start": 1.0, "stop": 1.0}}, ["a sweep of nothing"]),
        ({"temperature_tuning": {"max_extensions": -1}}, ["max_extensions: -1"]),
        ({"temperature_tuning": {"seeds": 3}}, ["unknown key 'seeds'"]),
        (
            {"grid": {"learning_rate": [0.1, 1.0], "seed": [0]}},
            ["grid.learning_rate: [0.1, 1.0]", "3 or more"],
        ),
        (
            {"grid": {**DOCUMENT["grid"], "inverse_temperature": [0.1, 1.0]}},
            ["inverse_temperature 0.1", "allowed: 1.0"],
        ),
        (
            {
                "grid": {
                    **DOCUMENT["grid"],
                    "weight_decay": {"from": "l2/estimate", "budget": [100]},
                }
            },
            ["weight_decay from 'l2/estimate'", "allowed: absolute"],
        ),
        (
            {"hyperparameters": {"model": "fully_connected"}},
            ["loss 'mean_squared_error'", "allowed: cross_entropy"],
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused(project, changes, fragments):
    path = project(**changes)
    with pytest.raises(InputError) as caught:
        load_experiment(path, "quick", "embedded", {"digits": path})
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_asks_for_the_file_and_prints_it(project, monkeypatch, capsys):
    del project
    asked = []

    def run(words, **_):
        asked.append(words)
        file = Path("out/experiments/temperature/test/temperature_tuning.json")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(tune(best=0.1)[0]))
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = ["tune-temperature", "--experiment", "temperature/test", "--config"]
    assert main([*arguments, "results_dir=out", "data=embedded"]) == 0
    assert asked[0][3] == "out/experiments/temperature/test/temperature_tuning.json"
    assert asked[0][-2:] == ["results_dir=out", "data=embedded"]
    assert "use inverse_temperature 0.1" in capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=7))
    assert main([*arguments, "results_dir=out"]) == 7


def test_the_command_refuses_what_tunes_nothing(project, capsys):
    del project
    path = Path("config/experiments/temperature/test.yaml")
    document = {key: DOCUMENT[key] for key in DOCUMENT if key != "temperature_tuning"}
    path.write_text(yaml.safe_dump(document))
    code = main(["tune-temperature", "--experiment", "temperature/test"])
    assert code == command.EXIT_BAD_INPUT
    assert "has no section temperature_tuning" in capsys.readouterr().err
    assert main(["tune-temperature", "--experiment", "temperature/tests"]) == code
    assert "temperature/test" in capsys.readouterr().err


# --- the paper's grids ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        # 7 temperatures × 9 rates; 7 × 7 cells × the paper's 4 rates; (3 scales + batch norm) × 7
        # temperatures × 3 rates × the paper's 10 seeds; 2 scales × 7 × 4 × 10.
        ("optimal_rate", 63),
        ("plane", 196),
        ("weight_scales", 840),
        ("gru", 560),
        ("imagenet", 8),
        ("tuning", 21),
    ],
)
def test_the_papers_grids(name, runs):
    path = PROJECT / f"config/experiments/temperature/{name}.yaml"
    spec = load_experiment(path, "paper", "published", DATASETS)
    assert spec["num_runs"] == runs
    if name in ("optimal_rate", "plane", "weight_scales", "tuning"):
        shared = spec["hyperparameters"]
        # Table 3.
        assert (shared["model"], shared["batch_size"]) == ("tmp_wrn_big", 4096)
        assert shared["weight_decay"] == 5e-4
