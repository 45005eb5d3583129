# results/experiments/<paper>/<experiment>/temperature_tuning.json: the inverse temperature to use, and
# temperature_sweep.parquet: the runs that tell.


# One job: each extension of the sweep depends on what the runs before it gave.
rule temperature_tuning:
    input:
        dataset=dataset_manifest,
        shards=lambda wildcards: [
            f"{plan_of(wildcards).folder}/training_shards/{shard}/{table}.parquet"
            for shard in plan_of(wildcards).training_shards
            for table in ("runs", "history")
        ],
    output:
        tuning=f"{EXPERIMENT}/temperature_tuning.json",
        sweep=f"{EXPERIMENT}/temperature_sweep.parquet",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/tuning.log",
    benchmark:
        f"{BENCHMARKS}/{{paper}}/{{experiment}}/tuning.tsv"
    conda:
        "../../environment.yml"
    resources:
        **DEVICES,
    params:
        settings=lambda wildcards: run_settings(plan_of(wildcards).spec),
        spec=lambda wildcards: plan_of(wildcards).described,
        options=lambda wildcards: plan_of(wildcards).spec["temperature_tuning"],
        runs=lambda wildcards: plan_of(wildcards).runs,
        # With `input` among its arguments, a change of them reruns nothing.
        execution=lambda wildcards, input: execution_settings(plan_of(wildcards).spec),
        checkpoints=lambda wildcards, input: f"{RESULTS}/scratch/{wildcards.paper}/{wildcards.experiment}/temperature_tuning",
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("temperature_tuning", "training"),
    script:
        "../scripts/tune_temperature.py"
