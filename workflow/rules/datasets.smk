# results/datasets/<dataset>/: arrays and manifest, written once.


rule dataset:
    input:
        dataset_sources,
    output:
        train_inputs=f"{RESULTS}/datasets/{{dataset}}/train_inputs.npy",
        train_targets=f"{RESULTS}/datasets/{{dataset}}/train_targets.npy",
        test_inputs=f"{RESULTS}/datasets/{{dataset}}/test_inputs.npy",
        test_targets=f"{RESULTS}/datasets/{{dataset}}/test_targets.npy",
        manifest=f"{RESULTS}/datasets/{{dataset}}/manifest.json",
    log:
        f"{LOGS}/datasets/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/datasets/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=none_of(GENERATED, "[A-Za-z0-9_-]+"),
    conda:
        "../../environment.yml"
    threads: lambda wildcards: preparation_threads(dataset_definition(wildcards))
    params:
        # As a parameter: a comment in the definition's file changes nothing.
        definition=dataset_definition,
        fingerprint=stage_fingerprint("datasets.preparation"),
    script:
        "../scripts/prepare_dataset.py"
