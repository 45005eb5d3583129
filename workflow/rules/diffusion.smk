# Datasets drawn from a diffusion model: train it, draw shards of images, put them together, and
# measure how good they are. Downstream stages read results/datasets/<dataset>/ alone.

DIFFUSION = f"{RESULTS}/diffusion/{{dataset}}"
# Figure 7 of the richness paper shows this dataset, and is fed by no experiment.
SHOWN, SAMPLE_SHEET = "mnist1m", "richness/fig7"


rule diffusion_model:
    input:
        base=diffusion_base,
    output:
        model=f"{DIFFUSION}/model.npz",
        losses=f"{DIFFUSION}/losses.parquet",
    log:
        f"{LOGS}/diffusion/{{dataset}}/model.log",
    benchmark:
        f"{BENCHMARKS}/diffusion/{{dataset}}/model.tsv"
    wildcard_constraints:
        dataset=one_of(GENERATED),
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        **DEVICES,
    params:
        definition=lambda wildcards: diffusion_definition(
            wildcards, ["seed", "process", "network", "training"]
        ),
        # With `input` among its arguments, a change of them reruns nothing.
        num_images=lambda wildcards, input: diffusion_definition(wildcards)[
            "num_images"
        ],
        scratch=lambda wildcards, input: f"{RESULTS}/scratch/diffusion/{wildcards.dataset}/model",
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("diffusion.training"),
    script:
        "../scripts/train_denoiser.py"


rule diffusion_shard:
    input:
        model=f"{DIFFUSION}/model.npz",
    output:
        f"{DIFFUSION}/shards/{{index}}.npy",
    log:
        f"{LOGS}/diffusion/{{dataset}}/shard_{{index}}.log",
    benchmark:
        f"{BENCHMARKS}/diffusion/{{dataset}}/shard_{{index}}.tsv"
    wildcard_constraints:
        dataset=one_of(GENERATED),
        index="[0-9]+",
    conda:
        "../../environment.yml"
    # All of a small machine's: shards that run beside each other would share one GPU.
    threads: 8
    resources:
        **DEVICES,
    params:
        definition=lambda wildcards: diffusion_definition(
            wildcards, ["seed", "process", "sampling"]
        ),
        # More shards of the same size leave those that are there as they are.
        size=lambda wildcards: shard_size(diffusion_definition(wildcards)),
        scratch=lambda wildcards, input: f"{RESULTS}/scratch/diffusion/{wildcards.dataset}/{wildcards.index}",
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("diffusion.sampling"),
    script:
        "../scripts/sample_shard.py"


rule diffusion_dataset:
    input:
        base=diffusion_base,
        shards=lambda wildcards: [
            f"{RESULTS}/diffusion/{wildcards.dataset}/shards/{index}.npy"
            for index in range(diffusion_definition(wildcards)["num_shards"])
        ],
    output:
        train_inputs=f"{RESULTS}/datasets/{{dataset}}/train_inputs.npy",
        train_targets=f"{RESULTS}/datasets/{{dataset}}/train_targets.npy",
        test_inputs=f"{RESULTS}/datasets/{{dataset}}/test_inputs.npy",
        test_targets=f"{RESULTS}/datasets/{{dataset}}/test_targets.npy",
        manifest=f"{RESULTS}/datasets/{{dataset}}/manifest.json",
    log:
        f"{LOGS}/datasets/{{dataset}}.log",
    wildcard_constraints:
        dataset=one_of(GENERATED),
    conda:
        "../../environment.yml"
    params:
        definition=lambda wildcards: diffusion_definition(
            wildcards,
            ["source", "base", "num_images", "num_shards", "seed"]
            + ["process", "network", "training", "sampling"],
        ),
        fingerprint=stage_fingerprint("diffusion.assembly"),
    script:
        "../scripts/assemble_generated.py"


rule diffusion_quality:
    input:
        base=diffusion_base,
        generated=f"{RESULTS}/datasets/{{dataset}}/manifest.json",
    output:
        f"{RESULTS}/datasets/{{dataset}}/quality.json",
    log:
        f"{LOGS}/diffusion/{{dataset}}/quality.log",
    benchmark:
        f"{BENCHMARKS}/diffusion/{{dataset}}/quality.tsv"
    wildcard_constraints:
        dataset=one_of(GENERATED),
    conda:
        "../../environment.yml"
    threads: 8
    resources:
        **DEVICES,
    params:
        definition=lambda wildcards: diffusion_definition(
            wildcards, ["seed", "quality"]
        ),
        cache=lambda wildcards, input: f"{RESULTS}/cache",
        accelerator=lambda wildcards, input: PLAN.config.accelerator,
        fingerprint=stage_fingerprint("diffusion.quality"),
    script:
        "../scripts/measure_quality.py"


rule sample_sheet:
    input:
        dataset=f"{RESULTS}/datasets/{SHOWN}/manifest.json",
        quality=f"{RESULTS}/datasets/{SHOWN}/quality.json",
    output:
        svg=report(
            f"{RESULTS}/figures/{SAMPLE_SHEET}.svg",
            caption="../report/samples.rst",
            category="Figures, richness",
            labels={"figure": "fig7"},
        ),
        png=f"{RESULTS}/figures/{SAMPLE_SHEET}.png",
        numbers=f"{RESULTS}/figures/{SAMPLE_SHEET}.parquet",
    log:
        f"{LOGS}/richness/figures/fig7.log",
    conda:
        "../../environment.yml"
    params:
        fingerprint=stage_fingerprint("figures.samples"),
    script:
        "../scripts/draw_samples.py"
