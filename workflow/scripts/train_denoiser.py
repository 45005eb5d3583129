"""Train the denoiser of a generated dataset.

Input: the manifest of the base dataset. Outputs: the model, and its losses as Parquet.
Scratch: checkpoints, deleted once the outputs are there.
"""

from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    use_accelerator(snakemake.params.accelerator, snakemake.resources.get("gpu", 1))
    from sgdphases.checkpoints import delete_checkpoints
    from sgdphases.datasets import load, verify
    from sgdphases.devices import check_accelerator, use_compilation_cache
    from sgdphases.diffusion.model_file import write_model
    from sgdphases.diffusion.training import train_denoiser
    from sgdphases.storage import write_parquet

    check_accelerator(snakemake.params.accelerator)
    use_compilation_cache(Path(snakemake.params.cache) / "programs")
    folder, scratch = Path(snakemake.input.base).parent, Path(snakemake.params.scratch)
    verify(folder)
    model, losses = train_denoiser(
        snakemake.wildcards.dataset,
        {**snakemake.params.definition, "num_images": snakemake.params.num_images},
        load(folder, most_normalised_bytes=0),
        scratch,
        version=snakemake.params.fingerprint,
    )
    write_parquet(losses, Path(snakemake.output.losses))
    write_model(model, Path(snakemake.output.model))
    delete_checkpoints(scratch)


run_script(main, snakemake.log)
