# results/datasets/<dataset>/: arrays and manifest, written once.


rule dataset:
    input:
        definition="config/datasets/{dataset}.yaml",
        files=lambda wildcards: PLAN.dataset_files[wildcards.dataset],
    output:
        train_inputs=f"{RESULTS}/datasets/{{dataset}}/train_inputs.npy",
        train_targets=f"{RESULTS}/datasets/{{dataset}}/train_targets.npy",
        test_inputs=f"{RESULTS}/datasets/{{dataset}}/test_inputs.npy",
        test_targets=f"{RESULTS}/datasets/{{dataset}}/test_targets.npy",
        manifest=f"{RESULTS}/datasets/{{dataset}}/manifest.json",
    log:
        f"{LOGS}/datasets/{{dataset}}.log",
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("datasets.preparation"),
    script:
        "../scripts/prepare_dataset.py"
