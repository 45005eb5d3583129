# The way of the data: datasets -> curvature, edges -> training -> aggregation -> figures, claims,
# usage; training -> prediction -> training of the experiments that take their weight decays from it;
# training -> tuning of the inverse temperature.
# Rules are in workflow/rules, one file per stage; what they run is in src/sgdphases.
import sys
from pathlib import Path

from snakemake.utils import min_version

# The workflow and its jobs, in whatever environment, run the code of this checkout.
sys.path.insert(0, f"{workflow.basedir}/src")

from sgdphases.fingerprint import keep_sources
from sgdphases.scheduler import mend_scheduler
from sgdphases.scripting import ending_on_bad_input, run_jobs_from
from sgdphases.slurm import mend_plugin
from sgdphases.validation import read_yaml

min_version("9.0")
run_jobs_from(f"{workflow.basedir}/src")
mend_plugin()
mend_scheduler()

# Snakemake accepts a key given twice, and does not name a file that it cannot read.
with ending_on_bad_input():
    if Path("config/config.yaml").exists():
        read_yaml(Path("config/config.yaml"))


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/diffusion.smk"
include: "workflow/rules/curvature.smk"
include: "workflow/rules/edges.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/theory.smk"
include: "workflow/rules/aggregation.smk"
include: "workflow/rules/prediction.smk"
include: "workflow/rules/tuning.smk"
include: "workflow/rules/learning_rates.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/usage.smk"


keep_sources()


# Seconds each: on a cluster, not worth a job.
localrules:
    all,
    spec,
    curvature,
    edges,
    time_constant,
    prediction,
    learning_rates,
    learning_rate_sweep,
    figure,
    sample_sheet,
    claims,
    usage,


rule all:
    default_target: True
    input:
        tables=[experiment_tables(name) for name in PLAN.experiments],
        figures=[figure_files(name) for name in PLAN.figures],
        claims=[f"{RESULTS}/claims.parquet", f"{RESULTS}/claims.md"],
        usage=f"{RESULTS}/usage.parquet",
