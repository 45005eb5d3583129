# results/claims: every claim of the papers and whether it came out.


rule claims:
    input:
        [experiment_tables(name) for name in PLAN.experiments],
        # Named here because the fingerprint sees code alone.
        claims=f"{workflow.basedir}/src/sgdphases/claims/table.csv",
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
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("claims.evaluate"),
    script:
        "../scripts/evaluate_claims.py"
