"""Draw one shard of a generated dataset's images.

Input: the trained model. Output: the images, 8-bit.
Scratch: what is drawn so far, deleted once the output is there.
"""

from pathlib import Path

from sgdphases.accelerators import use_accelerator
from sgdphases.scripting import run_script, use_threads


def main() -> None:
    use_threads(snakemake.threads)
    use_accelerator(snakemake.params.accelerator, snakemake.resources.get("gpu", 1))
    from sgdphases.checkpoints import delete_checkpoints
    from sgdphases.devices import check_accelerator, use_compilation_cache
    from sgdphases.diffusion.assembly import write_shard
    from sgdphases.diffusion.model_file import read_model
    from sgdphases.diffusion.sampling import sample_shard

    check_accelerator(snakemake.params.accelerator)
    use_compilation_cache(Path(snakemake.params.cache) / "programs")
    scratch = Path(snakemake.params.scratch)
    images = sample_shard(
        snakemake.wildcards.dataset,
        snakemake.params.definition,
        read_model(Path(snakemake.input.model)),
        int(snakemake.wildcards.index),
        snakemake.params.size,
        scratch,
        version=snakemake.params.fingerprint,
    )
    write_shard(images, Path(snakemake.output[0]))
    delete_checkpoints(scratch)


run_script(main, snakemake.log)
