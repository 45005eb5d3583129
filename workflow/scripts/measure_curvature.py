"""Measure the top NTK eigenvalue of a shard's networks.

Inputs: the dataset's manifest. Output: curvature.parquet, and the shard's note beside it.
"""

from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    use_accelerator(snakemake.params.accelerator, snakemake.resources.get("gpu", 1))
    from sgdphases.curvature import measure_networks
    from sgdphases.datasets import load, verify
    from sgdphases.devices import check_accelerator, use_compilation_cache
    from sgdphases.models import parameter_dtype
    from sgdphases.planning import write_note
    from sgdphases.storage import write_parquet

    device = check_accelerator(snakemake.params.accelerator)
    use_compilation_cache(Path(snakemake.params.cache) / "programs")
    settings, networks = snakemake.params.settings, snakemake.params.networks
    folder = Path(snakemake.input.dataset).parent
    dtype = max(parameter_dtype(network["precision"]) for network in networks.values())
    verify(folder)
    dataset = load(folder, settings["dataset"], dtype)
    output = Path(snakemake.output[0])
    write_parquet(measure_networks(settings, list(networks.values()), dataset), output)
    write_note(output.parent, networks, snakemake.params.fingerprint, device)


run_script(main, snakemake.log)
