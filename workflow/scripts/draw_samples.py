"""Draw the sample sheet of a generated dataset: SVG, PNG, and the pixels as Parquet.

Input: the dataset's manifest.
"""

from pathlib import Path

from sgdphases.datasets import load
from sgdphases.figures.samples import draw_samples
from sgdphases.scripting import run_script


def main() -> None:
    output = snakemake.output
    draw_samples(
        load(Path(snakemake.input.dataset).parent, most_normalised_bytes=0),
        [Path(output.svg), Path(output.png)],
        Path(output.numbers),
    )


run_script(main, snakemake.log)
