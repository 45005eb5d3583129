"""Prepare one dataset: the arrays and manifest.json.

Inputs: the files that the definition names. Where official files were found does not
change what they hold, so `manual_dir` comes from the configuration and is no parameter of the rule.
"""

from pathlib import Path

from sgdphases.datasets import prepare
from sgdphases.scripting import run_script


def main() -> None:
    manual_dir = snakemake.config.get("manual_dir")
    prepare(
        snakemake.wildcards.dataset,
        dict(snakemake.params.definition),
        Path(snakemake.output.manifest).parent,
        Path(manual_dir).expanduser() if manual_dir else None,
        snakemake.threads,
    )


run_script(main, snakemake.log)
