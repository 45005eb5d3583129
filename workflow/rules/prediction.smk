# results/experiments/<paper>/<experiment>/prediction.json: time to peak, and weight decays from it.


rule prediction:
    input:
        lambda wildcards: measured_tables(f"{wildcards.paper}/{wildcards.experiment}"),
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
