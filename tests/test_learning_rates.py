"""The learning rates to expect of a network, and the sweep that confirms them."""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sgdphases import command
from sgdphases.command import main
from sgdphases.errors import InputError
from sgdphases.learning_rates import (
    describe_rates,
    predict_rates,
    read_rates,
    summarise_sweep,
    write_rates,
)
from sgdphases.sections import momenta_of
from sgdphases.tables import ExperimentTables

RATES = [0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0]
EIGENVALUE = 0.4


def make_spec(**changes):
    return {
        "experiment": "mine/rates",
        "scale": "quick",
        "dataset": {"name": "digits", "num_train": None},
        "curvature": {"batch_size": 512},
        "hyperparameters": {"model": "fully_connected"},
        "grid": {"seed": [0, 1]},
        **changes,
    }


def make_curvature(spread=0.1, **changes):
    """Two seeds, two batches; λ₀ differs by `spread` between batches, a tenth of it by seeds."""
    network = {
        "model": "fully_connected",
        "depth": 3,
        "width": 64,
        "activation": "relu",
        "parametrisation": "ntk",
        "loss": "mean_squared_error",
        **changes,
    }
    rows = [
        {
            "experiment": "mine/rates",
            "network_id": f"n{seed}",
            **network,
            "seed": seed,
            "batch": batch,
            "ntk_top_eigenvalue": EIGENVALUE
            * (1 + (-1) ** batch * spread + (-1) ** seed * spread / 10),
            "ntk_residual": 1e-5,
        }
        for seed in (0, 1)
        for batch in (0, 1)
    ]
    table = pd.DataFrame(rows)
    return table.assign(critical_learning_rate=2 / table["ntk_top_eigenvalue"])


def make_tables(rises_from=2.0, fails_from=8.0, momentum=0.0, **changes):
    curvature = make_curvature(**changes)
    shared = curvature.iloc[0].drop(
        ["network_id", "batch", "seed", "ntk_top_eigenvalue", "ntk_residual"]
    )
    runs, history = [], []
    for seed in (0, 1):
        critical = 2 / curvature[curvature["seed"] == seed]["ntk_top_eigenvalue"].mean()
        for rate in RATES:
            run_id = f"{seed}-{rate}"
            diverged = rate >= fails_from
            runs.append(
                {
                    **shared,
                    "run_id": run_id,
                    "seed": seed,
                    "momentum": momentum,
                    "learning_rate": rate * critical,
                    "relative_learning_rate": rate * critical / critical,
                    "status": "diverged" if diverged else "finished",
                    "initial_train_loss": 1.0,
                    "final_train_loss": np.nan if diverged else 0.1,
                    "final_test_accuracy": np.nan if diverged else 0.8,
                }
            )
            peak = 3.0 if rate >= rises_from else 1.0
            losses = (1.0, peak, np.nan if diverged else 0.1)
            history += [
                {"run_id": run_id, "step": step, "train_loss": loss}
                for step, loss in enumerate(losses)
            ]
    return ExperimentTables(make_spec(), pd.DataFrame(runs), pd.DataFrame(history), curvature)


def predict(spec=None, momenta=(0.0,), **changes):
    return predict_rates(spec or make_spec(), make_curvature(**changes), momenta)


def test_critical_rate_and_its_spread():
    (network,) = predict()["networks"]
    assert network["ntk_top_eigenvalue"] == pytest.approx(EIGENVALUE)
    assert network["critical_learning_rate"] == pytest.approx(5.0)
    assert network["critical_learning_rate_low"] == pytest.approx(5 / 1.11)
    assert network["critical_learning_rate_high"] == pytest.approx(5 / 0.89)
    batches = np.std([0.9, 1.1], ddof=1) * EIGENVALUE
    assert network["deviation_over_batches"] == pytest.approx(batches)
    assert network["deviation_over_seeds"] == pytest.approx(batches / 10)
    assert network["seeds"] == [0, 1]


def test_one_seed_and_batch_have_no_spread():
    prediction = predict_rates(make_spec(), make_curvature().iloc[:1], [0.0])
    (network,) = prediction["networks"]
    assert network["deviation_over_batches"] is None
    assert network["deviation_over_seeds"] is None
    text = describe_rates(prediction)
    assert "1 seed and 1 batch of up to 512 samples)" in text
    assert "deviation" not in text


@pytest.mark.parametrize(
    ("activation", "constant"), [("relu", 12), ("tanh", 4), ("identity", 4), ("gelu", None)]
)
def test_largest_rate_depends_on_the_activation(activation, constant):
    prediction = predict(activation=activation)
    (network,) = prediction["networks"]
    assert network["activation_constant"] == constant
    text = describe_rates(prediction)
    if constant is None:
        assert network["max_learning_rate"] is None
        assert "not predicted: not known for activation gelu; known: relu 12, tanh 4" in text
    else:
        assert network["max_learning_rate"] == pytest.approx(constant / EIGENVALUE)
        assert f"largest learning rate {constant}/λ₀ = {constant / EIGENVALUE:.4g}" in text


def test_constants_are_of_squared_errors():
    prediction = predict(loss="cross_entropy")
    assert prediction["networks"][0]["activation_constant"] is None
    text = describe_rates(prediction)
    assert "not known for cross_entropy" in text
    assert "2/λ₀ is the limit of squared errors" in text


OWN = {"model": "my_models:mixer"}


@pytest.mark.parametrize(
    ("changes", "constant"),
    [
        ({"hyperparameters": OWN}, None),
        ({"hyperparameters": {**OWN, "activation": "relu"}}, 12),
        ({"hyperparameters": OWN, "grid": {"activation": ["relu"], "seed": [0, 1]}}, 12),
        ({"hyperparameters": OWN, "grid": [{"seed": [0, 1]}]}, None),
        ({"hyperparameters": OWN, "grid": [{"points": [{"activation": "relu"}]}]}, 12),
    ],
)
def test_activation_of_a_users_own_model_is_what_the_file_says(changes, constant):
    """Every model has a default activation, whether it reads it or not."""
    prediction = predict(make_spec(**changes), **OWN)
    (network,) = prediction["networks"]
    assert network["activation_constant"] == constant
    text = describe_rates(prediction)
    assert ("does not say which activation my_models:mixer has" in text) == (constant is None)
    assert "width" not in text


def test_several_networks_are_told_apart():
    curvature = pd.concat([make_curvature(), make_curvature(weight_scale=2.0)])
    prediction = predict_rates(make_spec(), curvature, [0.0])
    assert len(prediction["networks"]) == 2
    assert "weight_scale 2.0" in describe_rates(prediction)
    assert "weight_scale" not in describe_rates(predict(weight_scale=2.0))


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_a_network_without_curvature_is_refused(broken):
    curvature = make_curvature()
    curvature.loc[2, "ntk_top_eigenvalue"] = broken
    with pytest.raises(InputError, match="the curvature of fully_connected is"):
        predict_rates(make_spec(), curvature, [0.0])


def test_an_eigenvalue_that_has_not_converged_is_said_to_be_so():
    curvature = make_curvature().assign(ntk_residual=0.05)
    text = describe_rates(predict_rates(make_spec(), curvature, [0.0]))
    assert "λ₀ has not converged: relative residual 0.05" in text


def test_momentum_is_told():
    assert "momentum 0.9: linear models are stable up to" in describe_rates(predict(momenta=[0.9]))
    assert "momentum" not in describe_rates(predict())


def test_a_sweep_brackets_what_was_predicted():
    summary = summarise_sweep(make_tables(), predict())
    (sweep,) = summary["sweeps"]
    # Of each seed in units of its own 2/λ₀: seven rates, two runs each.
    assert [row["num_runs"] for row in sweep["rates"]] == [2] * 7
    assert [row["relative_learning_rate"] for row in sweep["rates"]] == pytest.approx(RATES)
    assert sweep["largest_monotone"] == pytest.approx(5.0, rel=1e-2)
    assert sweep["first_rising"] == pytest.approx(10.0, rel=1e-2)
    assert sweep["largest_trained"] == pytest.approx(30.0, rel=1e-2)
    assert sweep["first_untrained"] == sweep["first_diverging"]
    assert sweep["measured_constant"] == pytest.approx(12)
    assert sweep["measured_constant_beyond"] == pytest.approx(16)
    text = describe_rates(summary)
    assert "the loss first rises between 5.001 and 10" in text
    assert "training fails between 30 and 40" in text
    assert ": c_act 12 to 16" in text
    assert json.loads(json.dumps(summary)) == summary


def test_a_sweep_without_an_edge_says_so():
    summary = summarise_sweep(make_tables(rises_from=99, fails_from=99), predict())
    text = describe_rates(summary)
    assert "the loss first rises at no rate of the sweep, up to 40" in text
    assert "training fails at no rate of the sweep, up to 40" in text
    assert "c_act above 16" in text
    assert "no run diverges" in text
    everywhere = describe_rates(summarise_sweep(make_tables(rises_from=0), predict()))
    assert "the loss first rises at the smallest rate already, 1.2" in everywhere


def test_a_sweep_in_which_nothing_trains_is_refused():
    with pytest.raises(InputError) as caught:
        summarise_sweep(make_tables(fails_from=0), predict())
    message = str(caught.value)
    assert "smallest rate of the sweep already, 1.25, 2 of 2 runs diverge and 0 end" in message
    assert "smaller ones" in message
    assert "\n" not in message


def test_sweeps_with_momentum_stand_by_themselves():
    plain, heavy = make_tables(), make_tables(momentum=0.9, fails_from=4.0)
    heavy.runs["run_id"] += "m"
    heavy.history["run_id"] += "m"
    both = ExperimentTables(
        make_spec(),
        pd.concat([plain.runs, heavy.runs], ignore_index=True),
        pd.concat([plain.history, heavy.history], ignore_index=True),
        plain.curvature,
    )
    sweeps = summarise_sweep(both, predict(momenta=[0.0, 0.9]))["sweeps"]
    assert [sweep["momentum"] for sweep in sweeps] == [0.0, 0.9]
    assert sweeps[0]["largest_trained"] == pytest.approx(30, rel=1e-2)
    assert sweeps[1]["largest_trained"] == pytest.approx(10, rel=1e-2)


def test_a_network_without_a_hyperparameter_is_not_one_that_has_it():
    plain, biased = make_tables(bias_scale=np.nan), make_tables(bias_scale=0.05, fails_from=4.0)
    biased.runs["run_id"] += "b"
    biased.history["run_id"] += "b"
    both = ExperimentTables(
        make_spec(),
        *(
            pd.concat([getattr(plain, name), getattr(biased, name)], ignore_index=True)
            for name in ("runs", "history", "curvature")
        ),
    )
    prediction = predict_rates(make_spec(), both.curvature, [0.0])
    sweeps = summarise_sweep(both, prediction)["sweeps"]
    assert [sweep["rates"][0]["num_runs"] for sweep in sweeps] == [2, 2]
    found = {sweep["network"].get("bias_scale"): sweep["measured_constant"] for sweep in sweeps}
    assert found == {None: pytest.approx(12), 0.05: pytest.approx(4)}


def test_what_was_written_is_read(tmp_path):
    file, text = tmp_path / "learning_rates.json", tmp_path / "learning_rates.md"
    write_rates(predict(), file, text)
    assert read_rates(file) == predict()
    assert "critical learning rate" in text.read_text()
    for damage in ("{", "[]", '{"networks": [{"critical_learning_rate": 0}]}'):
        file.write_text(damage)
        with pytest.raises(InputError, match="missing or damaged"):
            read_rates(file)


def test_rates_of_other_optimisers_are_refused():
    runs = [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd", "momentum": 0}]
    assert momenta_of(make_spec(), runs) == [0.0, 0.9]
    with pytest.raises(InputError, match=r"optimizer 'adam'.*allowed: sgd"):
        momenta_of(make_spec(), [{"optimizer": "adam", "momentum": 0.0}])
    with pytest.raises(InputError, match="has no section curvature"):
        momenta_of(make_spec(curvature=None), runs)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "config/experiments/mine"
    folder.mkdir(parents=True)
    Path("config/config.yaml").write_text("scale: quick\n")
    document = {"dataset": "digits", "curvature": {"batch_size": 64}}
    (folder / "rates.yaml").write_text(yaml.safe_dump(document))
    (folder / "flat.yaml").write_text(yaml.safe_dump({"dataset": "digits"}))


@pytest.mark.parametrize("sweep", [False, True])
def test_the_command_asks_for_the_file_and_prints_it(project, sweep, monkeypatch, capsys):
    asked = []
    name = "learning_rate_sweep.json" if sweep else "learning_rates.json"
    file = Path("out/experiments/mine/rates") / name

    def run(words, **_):
        asked.append(words)
        file.parent.mkdir(parents=True)
        prediction = summarise_sweep(make_tables(), predict()) if sweep else predict()
        write_rates(prediction, file, file.with_suffix(".md"))
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    options = ["--sweep"] if sweep else []
    arguments = ["predict-rates", "--experiment", "mine/rates", *options, "--config"]
    assert main([*arguments, "results_dir=out"]) == 0
    assert asked[0][3] == str(file)
    printed = capsys.readouterr().out
    assert "critical learning rate 2/λ₀ = 5" in printed
    assert ("c_act 12 to 16" in printed) == sweep
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=7))
    assert main([*arguments, "results_dir=out"]) == 7


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("mine/flat", "has no section curvature"), ("mine/rate", "mine/rates")],
)
def test_the_command_refuses_with_one_line(project, name, fragment, capsys):
    assert main(["predict-rates", "--experiment", name]) == command.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1
