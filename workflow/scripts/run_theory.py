"""Compute a theory experiment.

Input: spec.yaml. Outputs: runs.parquet, history.parquet.
"""

from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script


def main() -> None:
    # A few variables in double precision: nothing for an accelerator, which others wait for.
    use_accelerator("cpu")
    from sgdphases.config import expand_runs
    from sgdphases.storage import write_parquet
    from sgdphases.tables import read_spec
    from sgdphases.theory.programs import run_theory

    spec = read_spec(Path(snakemake.input.spec))
    runs, history = run_theory(spec, expand_runs(spec))
    write_parquet(runs, Path(snakemake.output.runs))
    write_parquet(history, Path(snakemake.output.history))


run_script(main, snakemake.log)
