"""Train the runs of one shard.

Inputs: the dataset's manifest, the curvature shards that hold the runs' networks, the edges that
their learning rates are relative to, the time constants that their weight decays are relative to.
Outputs: runs.parquet and history.parquet, and the shard's note beside them.
Scratch: checkpoints, deleted once the outputs are there.
"""

import os
from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    use_accelerator(snakemake.params.accelerator, snakemake.resources.get("gpu", 1))
    from sgdphases.devices import check_accelerator, use_compilation_cache, use_cpu_devices

    use_cpu_devices(snakemake.threads)
    device = check_accelerator(snakemake.params.accelerator)
    import pandas as pd

    from sgdphases.checkpoints import delete_checkpoints
    from sgdphases.curvature import critical_learning_rates
    from sgdphases.datasets import load, verify
    from sgdphases.edge_search import edge_learning_rates
    from sgdphases.models import parameter_dtype
    from sgdphases.planning import write_note
    from sgdphases.prediction import read_time_constants
    from sgdphases.storage import read_parquet, write_parquet
    from sgdphases.training import Execution, train_shard

    settings, runs = snakemake.params.settings, snakemake.params.runs
    execution = snakemake.params.execution
    cache, checkpoints = Path(snakemake.params.cache), Path(snakemake.params.checkpoints)
    use_compilation_cache(cache / "programs")
    dtype = parameter_dtype(next(iter(runs.values()))["precision"])
    folder = Path(snakemake.input.dataset).parent
    verify(folder)
    dataset = load(folder, settings["dataset"], dtype)
    curvature = [read_parquet(Path(path)) for path in snakemake.input.curvature]
    critical = critical_learning_rates(pd.concat(curvature)) if curvature else {}
    edges = {}
    if snakemake.input.edges:
        table = pd.concat([read_parquet(Path(path)) for path in snakemake.input.edges])
        of_case = edge_learning_rates(table, snakemake.params.edge, settings["experiment"])
        cases = zip(runs, snakemake.params.case_ids, strict=True)
        edges = {run: of_case[case] for run, case in cases if case}
    shard = train_shard(
        settings,
        list(runs.values()),
        snakemake.params.network_ids,
        dataset,
        critical,
        Execution(
            lowering=execution["lowering"],
            checkpoint_folder=checkpoints,
            checkpoint_seconds=execution["checkpoint_seconds"],
            cache_folder=cache / "lowerings",
            jobs=max(1, (os.cpu_count() or 1) // snakemake.threads),
            version=snakemake.params.fingerprint,
        ),
        read_time_constants([Path(path) for path in snakemake.input.predictions]),
        edges,
    )
    write_parquet(shard.history, Path(snakemake.output.history))
    write_parquet(shard.runs, Path(snakemake.output.runs))
    write_note(Path(snakemake.output.runs).parent, runs, snakemake.params.fingerprint, device)
    delete_checkpoints(checkpoints)


run_script(main, snakemake.log)
