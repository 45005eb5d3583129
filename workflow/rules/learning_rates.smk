# results/experiments/<paper>/<experiment>/learning_rates.json: the learning rates to expect of its networks,
# and learning_rate_sweep.json: what its runs say of them; each in words as .md. Made when asked for.


rule learning_rates:
    input:
        spec=f"{EXPERIMENT}/spec.yaml",
        curvature=f"{EXPERIMENT}/curvature.parquet",
    output:
        rates=f"{EXPERIMENT}/learning_rates.json",
        text=f"{EXPERIMENT}/learning_rates.md",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/learning_rates.log",
    conda:
        "../../environment.yml"
    params:
        momenta=momenta,
        fingerprint=stage_fingerprint("learning_rates"),
    script:
        "../scripts/predict_learning_rates.py"


rule learning_rate_sweep:
    input:
        rates=f"{EXPERIMENT}/learning_rates.json",
        spec=f"{EXPERIMENT}/spec.yaml",
        runs=f"{EXPERIMENT}/runs.parquet",
        history=f"{EXPERIMENT}/history.parquet",
        curvature=f"{EXPERIMENT}/curvature.parquet",
    output:
        rates=f"{EXPERIMENT}/learning_rate_sweep.json",
        text=f"{EXPERIMENT}/learning_rate_sweep.md",
    log:
        f"{LOGS}/{{paper}}/{{experiment}}/learning_rate_sweep.log",
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("learning_rates"),
    script:
        "../scripts/summarise_learning_rates.py"
