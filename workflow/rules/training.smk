# training_shards/<shard>/: runs that one program trains together.


rule training_shard:
    input:
        dataset=dataset_manifest,
        curvature=lambda wildcards: [
            f"{plan_of(wildcards).folder}/curvature_shards/{shard}/curvature.parquet"
            for shard in plan_of(wildcards).curvature_shards_of(wildcards.shard)
        ],
        edges=lambda wildcards: [
            f"{plan_of(wildcards).folder}/edge_search_shards/{shard}/edges.parquet"
            for shard in plan_of(wildcards).edge_shards_of(wildcards.shard)
        ],
        predictions=lambda wildcards: [
            f"{RESULTS}/experiments/{name}/time_constant.json"
            for name in plan_of(wildcards).predictions_of(wildcards.shard)
        ],
    output:
        runs=f"{EXPERIMENT}/training_shards/{{shard}}/runs.parquet",
        history=f"{EXPERIMENT}/training_shards/{{shard}}/history.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/training_{{shard}}.log",
    benchmark:
        f"{BENCHMARKS}/{{paper}}/{{experiment}}/training_{{shard}}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **DEVICES,
    params:
        settings=lambda wildcards: run_settings(plan_of(wildcards).spec),
        runs=lambda wildcards: dict(
            plan_of(wildcards).training_shards[wildcards.shard].items
        ),
        network_ids=lambda wildcards: plan_of(wildcards).network_ids(wildcards.shard),
        case_ids=lambda wildcards: plan_of(wildcards).case_ids(wildcards.shard),
        edge=lambda wildcards: plan_of(wildcards).reference_edge,
        # With `input` among its arguments, a change of them reruns nothing.
        execution=lambda wildcards, input: execution_settings(plan_of(wildcards).spec),
        checkpoints=lambda wildcards, input: f"{RESULTS}/scratch/{wildcards.paper}/{wildcards.experiment}/{wildcards.shard}",
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("training"),
    script:
        "../scripts/train_shard.py"
