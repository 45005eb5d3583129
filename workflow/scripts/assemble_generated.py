"""Put the shards of a generated dataset together: the arrays and manifest.json.

Inputs: the shards, and the manifest of the base dataset, whose test images it gets.
"""

from pathlib import Path

from sgdphases.diffusion.assembly import assemble
from sgdphases.scripting import run_script


def main() -> None:
    assemble(
        snakemake.wildcards.dataset,
        dict(snakemake.params.definition),
        [Path(path) for path in snakemake.input.shards],
        Path(snakemake.input.base).parent,
        Path(snakemake.output.manifest).parent,
    )


run_script(main, snakemake.log)
