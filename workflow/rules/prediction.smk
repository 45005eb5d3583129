# results/experiments/<paper>/<experiment>/time_constant.json: c = time to peak x weight decay, and
# prediction.json: weight decays from it.


# From the shards, and not from the tables: an edit of the budgets or of another setting that no run
# depends on writes the tables anew, and must not train anew what takes its weight decays from c.
rule time_constant:
    input:
        lambda wildcards: [
            f"{plan_of(wildcards).folder}/training_shards/{shard}/{table}.parquet"
            for shard in plan_of(wildcards).training_shards
            for table in ("runs", "history")
        ],
    output:
        f"{EXPERIMENT}/time_constant.json",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/time_constant.log",
    conda:
        "../../environment.yml"
    params:
        spec=lambda wildcards: plan_of(wildcards).described,
        run_ids=lambda wildcards: list(plan_of(wildcards).runs),
        fingerprint=stage_fingerprint("prediction"),
    script:
        "../scripts/measure_time_constant.py"


rule prediction:
    input:
        spec=f"{EXPERIMENT}/spec.yaml",
        time_constant=f"{EXPERIMENT}/time_constant.json",
    output:
        f"{EXPERIMENT}/prediction.json",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/prediction.log",
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("prediction"),
    script:
        "../scripts/predict_weight_decay.py"
