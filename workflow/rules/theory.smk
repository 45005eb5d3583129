# Closed systems of a few variables: one job computes the whole grid.


rule theory:
    input:
        spec=f"{EXPERIMENT}/spec.yaml",
    output:
        runs=f"{EXPERIMENT}/runs.parquet",
        history=f"{EXPERIMENT}/history.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/theory.log",
    benchmark:
        f"{BENCHMARKS}/{{paper}}/{{experiment}}/theory.tsv"
    wildcard_constraints:
        paper=one_of(name.split("/")[0] for name in THEORY),
        experiment=one_of(name.split("/")[1] for name in THEORY),
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("theory.programs"),
    script:
        "../scripts/run_theory.py"
