"""Time the top NTK eigenvalue against the products that it is made of.

Prints one table and writes benchmarks/results/curvature.json:
`python benchmarks/curvature.py [--width N] [--samples N] [--threads N]`. The network is the
catapult paper's, three hidden layers of width 2048, on 512 samples of MNIST's size. A product is a
vector-Jacobian product followed by a Jacobian-vector product, as JAX gives them at the network's
parameters; 15 of them are one compiled call each. They are also timed in one compiled loop around a
shared linearisation, which spares all passes forward but one. The three are measured in turn. The
samples are the digits that come with scikit-learn, enlarged to 28 x 28 pixels.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import (
    NUM_OUTPUTS,
    add_common_arguments,
    describe_machine,
    limit_threads,
    print_table,
    write_result,
)

NUM_PRODUCTS = 15
# Lanczos steps at most, as the experiments' default.
NUM_LANCZOS_STEPS = 40


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side, in turn")
    add_common_arguments(parser)
    return parser.parse_args()


def images(num_samples: int) -> Any:
    """Standardised images of 784 pixels: scikit-learn's digits, enlarged and repeated."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits().images[np.arange(num_samples) % 1797]
    enlarged = np.pad(np.kron(digits, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    flat = enlarged.reshape(num_samples, -1)
    return ((flat - flat.mean()) / flat.std()).astype(np.float32)


def main() -> None:
    arguments = parse_arguments()
    limit_threads(arguments.threads)
    width, num_samples = (16, 32) if arguments.smoke else (arguments.width, arguments.samples)
    import jax
    import jax.numpy as jnp

    from sgdphases.curvature import ntk_top_eigenvalue
    from sgdphases.hyperparameters import complete_run
    from sgdphases.models import build_network

    run = complete_run({"model": "cat_fc3_2048", "width": width, "learning_rate": 1.0})
    network = build_network(run, (784,), NUM_OUTPUTS)
    parameters = network.init(jax.random.key(0))
    inputs = jnp.asarray(images(num_samples))

    def product(parameters: Any, vector: Any) -> Any:
        def outputs(values: Any) -> Any:
            return network.apply(values, inputs)

        _, pull_back = jax.vjp(outputs, parameters)
        _, pushed = jax.jvp(outputs, (parameters,), pull_back(vector))
        return pushed

    def shared_products(parameters: Any, vector: Any) -> Any:
        _, push = jax.linearize(lambda values: network.apply(values, inputs), parameters)
        pull_back = jax.linear_transpose(push, parameters)

        def once(_: int, current: Any) -> Any:
            pushed = push(*pull_back(current))
            return pushed / jnp.linalg.norm(pushed)

        return jax.lax.fori_loop(0, NUM_PRODUCTS, once, vector)

    single = jax.jit(product)

    def products(parameters: Any, vector: Any) -> Any:
        for _ in range(NUM_PRODUCTS):
            vector = single(parameters, vector)
            vector = vector / jnp.linalg.norm(vector)
        return vector

    def eigenvalue(parameters: Any) -> Any:
        return ntk_top_eigenvalue(network.apply, parameters, inputs, NUM_LANCZOS_STEPS).value

    start = jax.random.normal(jax.random.key(1), (num_samples, NUM_OUTPUTS))
    compiled_eigenvalue, compiled_shared = jax.jit(eigenvalue), jax.jit(shared_products)
    sides: dict[str, Callable[[], Any]] = {
        "top eigenvalue": lambda: compiled_eigenvalue(parameters),
        f"{NUM_PRODUCTS} products": lambda: products(parameters, start),
        f"{NUM_PRODUCTS} products, shared linearisation": lambda: compiled_shared(
            parameters, start
        ),
    }
    value = float(compiled_eigenvalue(parameters))
    seconds = _timed_in_turn(sides, arguments.rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = medians["top eigenvalue"]
    print(f"FC 3 x {width}, {num_samples} samples, {arguments.threads} thread(s): {value:.4g}")
    rows = [[name, median, ours / median] for name, median in medians.items()]
    print_table(("", "seconds", "eigenvalue / this"), rows)
    write_result(
        arguments.results,
        "curvature",
        {
            "machine": describe_machine(arguments.threads),
            "arguments": vars(arguments),
            "ntk_top_eigenvalue": value,
            "seconds": seconds,
            "eigenvalue_over": {name: ours / median for name, median in medians.items()},
        },
    )


def _timed_in_turn(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    import jax

    times: dict[str, list[float]] = {name: [] for name in sides}
    for function in sides.values():  # compiles
        jax.block_until_ready(function())
    for _ in range(rounds):
        for name, function in sides.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
