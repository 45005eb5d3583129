"""Train the runs of one shard.

Inputs: the dataset's manifest, the curvature shards that hold the runs' networks.
Outputs: runs.parquet and history.parquet, and the shard's note beside them.
"""

from pathlib import Path

from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    import pandas as pd

    from sgdphases.curvature import critical_learning_rates
    from sgdphases.datasets import load, verify
    from sgdphases.planning import write_note
    from sgdphases.storage import read_parquet, write_parquet
    from sgdphases.training import train_shard

    settings, runs = snakemake.params.settings, snakemake.params.runs
    precision = next(iter(runs.values()))["precision"]
    folder = Path(snakemake.input.dataset).parent
    verify(folder)
    dataset = load(folder, settings["dataset"]["num_train"], precision)
    curvature = [read_parquet(Path(path)) for path in snakemake.input.curvature]
    critical = critical_learning_rates(pd.concat(curvature)) if curvature else {}
    shard = train_shard(
        settings, list(runs.values()), snakemake.params.network_ids, dataset, critical
    )
    write_parquet(shard.history, Path(snakemake.output.history))
    write_parquet(shard.runs, Path(snakemake.output.runs))
    write_note(Path(snakemake.output.runs).parent, runs, snakemake.params.fingerprint)


run_script(main, snakemake.log)
