# results/usage: hours and GPU-hours of the jobs.


# The benchmark files are no inputs: a result whose file is lost is not computed again.
rule usage:
    input:
        [experiment_tables(name) for name in PLAN.experiments],
    output:
        table=f"{RESULTS}/usage.parquet",
        page=report(
            f"{RESULTS}/usage.html",
            caption="../report/usage.rst",
            category="Computing time",
            labels={"table": "hours of jobs and devices"},
        ),
    log:
        f"{LOGS}/usage.log",
    conda:
        "../../environment.yml"
    params:
        results=lambda wildcards, input: RESULTS,
        fingerprint=stage_fingerprint("usage"),
    script:
        "../scripts/collect_usage.py"
