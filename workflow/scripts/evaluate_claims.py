"""Score every claim of the papers: claims.parquet, claims.md, claims.html.

Inputs: the tables of all experiments.
"""

from pathlib import Path

from sgdphases.claims.evaluate import evaluate_claims, write_scorecard
from sgdphases.scripting import run_script
from sgdphases.storage import write_parquet
from sgdphases.tables import load_experiment


def main() -> None:
    folders = [Path(path).parent for path in snakemake.input if Path(path).name == "spec.yaml"]
    tables = {f"{folder.parent.name}/{folder.name}": load_experiment(folder) for folder in folders}
    claims = evaluate_claims(tables)
    write_parquet(claims, Path(snakemake.output.table))
    write_scorecard(claims, Path(snakemake.output.markdown), Path(snakemake.output.page))


run_script(main, snakemake.log)
