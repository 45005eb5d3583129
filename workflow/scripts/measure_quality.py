"""Measure how good generated images are: quality.json.

Inputs: the manifests of the generated dataset and of its base.
"""

import json
from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    use_accelerator(snakemake.params.accelerator, snakemake.resources.get("gpu", 1))
    from sgdphases.datasets import load, verify
    from sgdphases.devices import check_accelerator, use_compilation_cache
    from sgdphases.diffusion.quality import measure_quality
    from sgdphases.storage import write_text

    check_accelerator(snakemake.params.accelerator)
    use_compilation_cache(Path(snakemake.params.cache) / "programs")
    folders = [Path(path).parent for path in (snakemake.input.generated, snakemake.input.base)]
    for folder in folders:
        verify(folder)
    generated, real = (load(folder) for folder in folders)
    definition = snakemake.params.definition
    measured = measure_quality(generated, real, definition["quality"], definition["seed"])
    names = {"dataset": generated.name, "base": real.name, "scale": snakemake.config["scale"]}
    text = json.dumps({**names, **measured}, indent=2)
    write_text(f"{text}\n", Path(snakemake.output[0]))


run_script(main, snakemake.log)
