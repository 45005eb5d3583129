# edge_search_shards/<shard>/: the learning rates at which some runs change their behaviour.


rule edge_shard:
    input:
        dataset=dataset_manifest,
    output:
        f"{EXPERIMENT}/edge_search_shards/{{shard}}/edges.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/edge_search_{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/{{paper}}/{{experiment}}/edge_search_{{shard}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **DEVICES,
    params:
        settings=lambda wildcards: edge_settings(plan_of(wildcards).spec),
        cases=lambda wildcards: dict(
            plan_of(wildcards).edge_shards[wildcards.shard].items
        ),
        # With `input` among its arguments, a change of them reruns nothing.
        execution=lambda wildcards, input: execution_settings(plan_of(wildcards).spec),
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("edge_search"),
    script:
        "../scripts/search_edges.py"


rule edges:
    input:
        spec=f"{EXPERIMENT}/spec.yaml",
        shards=lambda wildcards: [
            f"{plan_of(wildcards).folder}/edge_search_shards/{shard}/edges.parquet"
            for shard in plan_of(wildcards).edge_shards
        ],
    output:
        f"{EXPERIMENT}/edges.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/edges.log",
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("aggregation"),
    script:
        "../scripts/aggregate_edges.py"
