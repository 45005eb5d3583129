"""Write the resolved grid of an experiment: spec.yaml."""

from pathlib import Path

import yaml

from sgdphases.scripting import run_script
from sgdphases.storage import write_text


def main() -> None:
    text = yaml.safe_dump(snakemake.params.spec, sort_keys=False, allow_unicode=True)
    write_text(text, Path(snakemake.output[0]))


run_script(main, snakemake.log)
