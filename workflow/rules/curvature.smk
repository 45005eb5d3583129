# curvature_shards/<shard>/: the top NTK eigenvalue of some networks at initialisation.


rule curvature_shard:
    input:
        dataset=dataset_manifest,
    output:
        f"{EXPERIMENT}/curvature_shards/{{shard}}/curvature.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/curvature_{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/{{paper}}/{{experiment}}/curvature_{{shard}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **DEVICES,
    params:
        settings=lambda wildcards: run_settings(plan_of(wildcards).spec),
        networks=lambda wildcards: dict(
            plan_of(wildcards).curvature_shards[wildcards.shard].items
        ),
        # With `input` among its arguments, a change of them reruns nothing.
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("curvature"),
    script:
        "../scripts/measure_curvature.py"


rule curvature:
    input:
        spec=f"{EXPERIMENT}/spec.yaml",
        shards=lambda wildcards: [
            f"{plan_of(wildcards).folder}/curvature_shards/{shard}/curvature.parquet"
            for shard in plan_of(wildcards).curvature_shards
        ],
    output:
        f"{EXPERIMENT}/curvature.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/curvature.log",
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("aggregation"),
    script:
        "../scripts/aggregate_curvature.py"
