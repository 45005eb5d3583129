# The way of the data: datasets -> curvature -> training -> aggregation -> figures, claims.
# Rules are in workflow/rules, one file per stage; what they run is in src/sgdphases.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/curvature.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/theory.smk"
include: "workflow/rules/aggregation.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/claims.smk"


localrules:
    all,
    spec,


rule all:
    default_target: True
    input:
        tables=[experiment_tables(name) for name in PLAN.experiments],
        figures=[figure_files(name) for name in PLAN.figures],
        claims=[f"{RESULTS}/claims.parquet", f"{RESULTS}/claims.md"],
