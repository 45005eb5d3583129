"""Measure the top NTK eigenvalue of a shard's networks.

Inputs: the dataset's manifest. Output: curvature.parquet, and the shard's note beside it.
"""

from pathlib import Path

from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    from sgdphases.curvature import measure_networks
    from sgdphases.datasets import load, verify
    from sgdphases.models import parameter_dtype
    from sgdphases.planning import write_note
    from sgdphases.storage import write_parquet

    settings, networks = snakemake.params.settings, snakemake.params.networks
    folder = Path(snakemake.input.dataset).parent
    dtype = max(parameter_dtype(network["precision"]) for network in networks.values())
    verify(folder)
    dataset = load(folder, settings["dataset"], dtype)
    output = Path(snakemake.output[0])
    write_parquet(measure_networks(settings, list(networks.values()), dataset), output)
    write_note(output.parent, networks, snakemake.params.fingerprint)


run_script(main, snakemake.log)
