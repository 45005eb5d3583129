# results/claims: every claim of the papers and whether it came out.


rule claims:
    input:
        [experiment_tables(name) for name in PLAN.experiments],
    output:
        table=f"{RESULTS}/claims.parquet",
        markdown=f"{RESULTS}/claims.md",
        page=report(
            f"{RESULTS}/claims.html",
            caption="../report/claims.rst",
            category="Claims",
            labels={"table": "scorecard"},
        ),
    log:
        f"{LOGS}/claims.log",
    params:
        fingerprint=stage_fingerprint("claims.evaluate"),
    conda:
        "../../environment.yml"
    script:
        "../scripts/evaluate_claims.py"
