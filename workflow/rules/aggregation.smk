# results/experiments/<paper>/<experiment>/: the resolved grid and its tables.


rule spec:
    output:
        f"{EXPERIMENT}/spec.yaml",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/spec.log",
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: published_spec(plan_of(wildcards).spec),
    script:
        "../scripts/write_spec.py"


rule aggregate:
    input:
        spec=f"{EXPERIMENT}/spec.yaml",
        shards=lambda wildcards: [
            f"{plan_of(wildcards).folder}/training_shards/{shard}/{table}.parquet"
            for shard in plan_of(wildcards).training_shards
            for table in ("runs", "history")
        ],
    output:
        runs=f"{EXPERIMENT}/runs.parquet",
        history=f"{EXPERIMENT}/history.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/aggregate.log",
    wildcard_constraints:
        paper=one_of(name.split("/")[0] for name in TRAINING),
        experiment=one_of(name.split("/")[1] for name in TRAINING),
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("aggregation"),
    script:
        "../scripts/aggregate_runs.py"
