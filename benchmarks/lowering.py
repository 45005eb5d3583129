"""Compare the two lowerings of a training step: runs one after the other, or as one batched step.

Prints one table and writes benchmarks/results/lowering.json. Both sides are measured in one
process on the same device: `python benchmarks/lowering.py [--threads N]`.
"""

import argparse
import functools
import itertools
import json
import math
import os
import time
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of JAX's CPU backend")
    parser.add_argument("--runs", type=int, default=16, help="runs trained together")
    parser.add_argument("--batch", type=int, default=512, help="samples per batch")
    parser.add_argument("--repeats", type=int, default=3, help="timings, of which the best counts")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    os.environ["NPROC"] = str(arguments.threads)
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sgdphases.models import build_network
    from sgdphases.training import Rules, RunHyperparameters, advance, start_runs

    runs, batch = arguments.runs, arguments.batch
    rows = []
    for inputs_dim, width, depth in [(784, 64, 3), (64, 256, 4), (784, 256, 2), (784, 512, 4)]:
        shared = {
            "model": "fully_connected",
            "depth": depth,
            "width": width,
            "activation": "relu",
            "parametrisation": "ntk",
            "weight_scale": math.sqrt(2),
            "bias_scale": None,
            "precision": "float32",
        }
        network = build_network(shared, (inputs_dim,), 10)
        sizes = [inputs_dim, *[width] * (depth - 1), 10]
        # Forward, and backward for weights and activations (not for the inputs): what the
        # mathematics needs.
        products = [i * o for i, o in itertools.pairwise(sizes)]
        flop = 2 * batch * (3 * sum(products) - products[0]) * runs
        generator = np.random.default_rng(0)
        inputs = jnp.asarray(generator.normal(size=(batch, inputs_dim)), jnp.float32)
        targets = jnp.asarray(np.eye(10)[generator.integers(10, size=batch)], jnp.float32)
        hyper = RunHyperparameters(
            learning_rate=jnp.full(runs, 0.1, jnp.float32),
            momentum=jnp.zeros(runs, jnp.float32),
            weight_decay=jnp.zeros(runs, jnp.float32),
            num_steps=jnp.full(runs, 10**6, jnp.int32),
        )
        steps = max(5, int(3e10 * arguments.threads / flop))
        seconds = {}
        for lowering in ("map", "vmap"):
            rules = Rules("mean_squared_error", False, 1e6, None, lowering)
            states = start_runs(network, rules, hyper, jnp.arange(runs, dtype=jnp.uint32))

            count = jnp.asarray(steps, jnp.int32)
            run = functools.partial(advance, network, rules)
            rest = (hyper, inputs, targets, None, count)
            states = jax.block_until_ready(run(states, *rest))
            timings = []
            for _ in range(arguments.repeats):
                began = time.perf_counter()
                states = jax.block_until_ready(run(states, *rest))
                timings.append(time.perf_counter() - began)
            seconds[lowering] = min(timings) / steps
        rows.append(
            {
                "network": "-".join(map(str, sizes)),
                "map_gflops": flop / seconds["map"] / 1e9,
                "vmap_gflops": flop / seconds["vmap"] / 1e9,
                "map_over_vmap": seconds["vmap"] / seconds["map"],
            }
        )
    print(f"{runs} runs, batch {batch}, {arguments.threads} thread(s), {jax.default_backend()}")
    print(f"{'network':<22}{'map':>10}{'vmap':>10}{'ratio':>8}   (GFLOP/s)")
    for row in rows:
        print(
            f"{row['network']:<22}{row['map_gflops']:>10.0f}{row['vmap_gflops']:>10.0f}"
            f"{row['map_over_vmap']:>8.2f}"
        )
    output = Path(__file__).parent / "results" / "lowering.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps({"arguments": vars(arguments), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
