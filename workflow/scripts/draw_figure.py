"""Draw one figure: SVG, PNG, and the plotted numbers as Parquet.

Inputs: the tables of the experiment that feeds the figure.
"""

from pathlib import Path

from sgdphases.figures.draw import draw_figure
from sgdphases.scripting import run_script
from sgdphases.tables import load_experiment


def main() -> None:
    wildcards, output = snakemake.wildcards, snakemake.output
    draw_figure(
        f"{wildcards.paper}/{wildcards.figure}",
        snakemake.params.module,
        load_experiment(Path(snakemake.input[0]).parent),
        [Path(output.svg), Path(output.png)],
        Path(output.numbers),
    )


run_script(main, snakemake.log)
