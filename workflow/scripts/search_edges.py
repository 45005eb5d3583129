"""Search the edges of a shard's cases.

Inputs: the dataset's manifest. Output: edges.parquet, and the shard's note beside it.
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
    from sgdphases.datasets import load, verify
    from sgdphases.edge_search import EdgeSearch, first_learning_rate, search_edges
    from sgdphases.models import parameter_dtype
    from sgdphases.planning import write_note
    from sgdphases.storage import write_parquet
    from sgdphases.training import Execution

    settings, cases = snakemake.params.settings, snakemake.params.cases
    cache = Path(snakemake.params.cache)
    use_compilation_cache(cache / "programs")
    dtype = parameter_dtype(next(iter(cases.values()))["precision"])
    folder = Path(snakemake.input.dataset).parent
    verify(folder)
    starting = [
        {**case, "learning_rate": first_learning_rate(settings["edge_search"], case)}
        for case in cases.values()
    ]
    table = search_edges(
        settings,
        starting,
        load(folder, settings["dataset"], dtype),
        EdgeSearch.of(settings),
        Execution(
            lowering=snakemake.params.execution["lowering"],
            cache_folder=cache / "lowerings",
            jobs=max(1, (os.cpu_count() or 1) // snakemake.threads),
            version=snakemake.params.fingerprint,
        ),
    )
    output = Path(snakemake.output[0])
    write_parquet(table, output)
    write_note(output.parent, cases, snakemake.params.fingerprint, device)


run_script(main, snakemake.log)
