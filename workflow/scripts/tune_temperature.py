"""Tune the inverse temperature: temperature_tuning.json, temperature_sweep.parquet.

Inputs: the experiment's training shards, which tuned the rest at inverse temperature 1, and the
dataset's manifest.
Scratch: checkpoints, deleted once the outputs are there.
"""

import json
import os
from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    use_accelerator(snakemake.params.accelerator, snakemake.resources.get("gpu", 1))
    from sgdphases.devices import check_accelerator, use_compilation_cache, use_cpu_devices

    use_cpu_devices(snakemake.threads)
    check_accelerator(snakemake.params.accelerator)
    from sgdphases.aggregation import aggregate
    from sgdphases.checkpoints import delete_checkpoints
    from sgdphases.datasets import load, verify
    from sgdphases.models import parameter_dtype
    from sgdphases.storage import write_parquet, write_text
    from sgdphases.tables import ExperimentTables
    from sgdphases.temperature_tuning import best_setting, describe_tuning, sweep_temperature
    from sgdphases.training import Execution, train_shard

    settings, spec = snakemake.params.settings, snakemake.params.spec
    runs, execution = snakemake.params.runs, snakemake.params.execution
    cache, checkpoints = Path(snakemake.params.cache), Path(snakemake.params.checkpoints)
    use_compilation_cache(cache / "programs")
    folder = Path(snakemake.input.dataset).parent
    verify(folder)
    dtype = parameter_dtype(next(iter(runs.values()))["precision"])
    dataset = load(folder, settings["dataset"], dtype)
    shards = sorted({Path(path).parent for path in snakemake.input.shards})
    tables = [aggregate(spec, shards, name, "run_id", list(runs)) for name in ("runs", "history")]
    tuned = ExperimentTables(spec, *tables, None)

    def train(chosen, name):
        shard = train_shard(
            settings,
            chosen,
            [""] * len(chosen),
            dataset,
            {},
            Execution(
                lowering=execution["lowering"],
                checkpoint_folder=checkpoints / name,
                checkpoint_seconds=execution["checkpoint_seconds"],
                cache_folder=cache / "lowerings",
                jobs=max(1, (os.cpu_count() or 1) // snakemake.threads),
                version=snakemake.params.fingerprint,
            ),
        )
        return ExperimentTables(spec, shard.runs, shard.history, None)

    best = best_setting(tuned, list(runs.values()))
    tuning, sweep = sweep_temperature(tuned, best, snakemake.params.options, train)
    write_parquet(sweep, Path(snakemake.output.sweep))
    write_text(json.dumps(tuning, indent=1) + "\n", Path(snakemake.output.tuning))
    delete_checkpoints(checkpoints)
    print(describe_tuning(tuning))


run_script(main, snakemake.log)
