"""The benchmarks run, at tiny sizes, and count operations as the engine does."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sgdphases.hyperparameters import complete_run
from sgdphases.models import build_network
from sgdphases.progress import matrix_product_flop

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def common():
    return import_benchmark("common")


def import_benchmark(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return __import__(name)


def network_of(case, common):
    run = complete_run({**case.hyperparameters, "learning_rate": 1.0})
    return build_network(run, case.input_shape, common.NUM_OUTPUTS)


def run_script(folder, name, *options):
    """The JSON that a script leaves, and what it prints."""
    process = subprocess.run(
        [
            *(sys.executable, str(FOLDER / f"{name}.py")),
            *("--smoke", "--threads", "1", "--results", str(folder), *options),
        ],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(FOLDER.parent / "src")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    (file,) = folder.glob("*.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert {"machine", "arguments"} < set(result)
    return result, process.stdout


def test_the_grid_is_compared_with_its_peers(tmp_path):
    options = ("--cases", "fc64-centred", "--without", "torch", "processes")
    result, printed = run_script(
        tmp_path, "grid_training", *options, "--rounds", "2", "--seconds", "0.02"
    )
    (case,) = result["results"]
    engine, peak = case["sides"]
    assert (engine["side"], engine["engine_over_side"]) == ("engine", 1.0)
    assert len(engine["rounds_gflops"] + engine["set_aside_gflops"]) >= 2
    assert peak["engine_over_side"] == pytest.approx(engine["gflops"] / peak["gflops"])
    assert "GFLOP/s" in printed


@pytest.mark.slow
def test_lowerings_are_compared(tmp_path):
    options = ("--cases", "fc64", "--rounds", "1", "--seconds", "0.02")
    result, _ = run_script(tmp_path, "lowering", *options)
    (case,) = result["results"]
    assert len(case["lowerings"]) > 1
    assert all(lowering["gflops"] > 0 for lowering in case["lowerings"])


def test_curvature_is_compared_with_its_products(tmp_path):
    result, _ = run_script(tmp_path, "curvature", "--rounds", "2")
    assert result["ntk_top_eigenvalue"] > 0
    assert {len(times) for times in result["seconds"].values()} == {2}


def test_a_portrait_is_trained_without_snakemake(tmp_path):
    result, printed = run_script(tmp_path, "portrait", "--device", "gpu")
    assert sum(program["runs"] for program in result["programs"]) == 147
    assert [program["precision"] for program in result["programs"]] == ["float32", "float64"]
    assert result["share_of_peak"] == pytest.approx(result["gflops"] / result["peak_gflops"])
    assert "share of it" in printed


@pytest.mark.slow
def test_all_ways_of_reading_are_measured(tmp_path):
    result, printed = run_script(tmp_path, "reading", "--folder", str(tmp_path))
    assert {row["way"] for row in result["rows"]} > {"sequence", "numpy", "read", "streamed"}
    assert all(row["gigabytes_per_second"] > 0 for row in result["rows"])
    assert "GB/CPU s" in printed


@pytest.mark.slow
def test_a_portrait_is_trained_by_snakemake(tmp_path):
    result, _ = run_script(tmp_path, "portrait")
    assert result["jobs"] == 2
    assert 0 < result["training_seconds"] < result["job_seconds"]


@pytest.mark.parametrize("name", ["fc512", "cnn32", "cnn32-colour"])
def test_operations_are_those_that_the_engine_counts(common, name):
    case = common.tiny(common.CASES[name])
    network = network_of(case, common)
    parameters = jax.eval_shape(network.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((case.batch_size, *case.input_shape), jnp.float32)

    def loss(values, samples):
        return jnp.square(network.apply(values, samples)).mean()

    of_one_run = matrix_product_flop(jax.grad(loss), parameters, inputs)
    assert case.flop_per_step() == case.num_runs * of_one_run


def test_centred_networks_need_one_more_pass_for_all_runs(common):
    centred, plain = (common.tiny(common.CASES[name]) for name in ("fc64-centred", "fc64"))
    network = network_of(plain, common)
    parameters = network.init(jax.random.key(0))
    inputs = jnp.ones((plain.batch_size, *plain.input_shape))
    forward = matrix_product_flop(partial(network.apply, parameters), inputs)
    assert centred.flop_per_step() - plain.flop_per_step() == forward


@pytest.mark.parametrize("name", ["fc512", "cnn32", "cnn32-colour"])
def test_pytorch_has_the_same_network(common, name):
    pytest.importorskip("torch")
    case = common.CASES[name]
    network = network_of(case, common)
    shapes = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    layers = list(import_benchmark("peers").torch_network(case).parameters())
    assert sorted(math.prod(s.shape) for s in shapes) == sorted(p.numel() for p in layers)


def test_all_ways_of_pytorch_are_measured(common):
    pytest.importorskip("torch")
    peers = import_benchmark("peers")
    case = common.tiny(common.CASES["cnn32"])
    for maker in (
        partial(peers.torch_eager, channels_last=True),
        partial(peers.torch_vmap, compiled=False),
    ):
        sample, _ = maker(case, 1)
        assert sample(0.01) > 0


def test_tables_and_results_leave_out_what_is_no_number(common, capsys, tmp_path):
    common.print_table(("side", "GFLOP/s"), [["engine", 123.4], ["missing", math.nan]])
    assert capsys.readouterr().out.splitlines() == [
        "side     GFLOP/s",
        "engine       123",
        "missing        -",
    ]
    common.write_result(tmp_path, "name", {"value": math.nan, "list": (1.0, math.inf)})
    written = json.loads((tmp_path / "name.json").read_text(encoding="utf-8"))
    assert written == {"value": None, "list": [1.0, None]}
