"""What the grid engine is compared with: the same networks, steps and batches by other means.

Each function returns a function that measures GFLOP/s for some seconds, and what else to tell. The
products counted are the same for all of them, `Case.flop_per_step`.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from common import CASES, NUM_OUTPUTS, NUM_SAMPLES, Case, Sampler, repeat_for, tiny

LEARNING_RATE = 1e-3


def _gigaflops(case: Case, steps: Callable[[int], None]) -> Sampler:
    """From a function that takes steps of all runs, to GFLOP/s."""
    measure = repeat_for(steps)
    flop = case.flop_per_step()
    return lambda seconds: measure(seconds) * flop / 1e9


# --- PyTorch ---


def torch_network(case: Case) -> Any:
    """The network of a case in PyTorch; images are (batch, channels, height, width)."""
    from torch import nn

    width = case.width
    if case.model == "fully_connected":
        return nn.Sequential(
            nn.Linear(case.input_shape[0], width, bias=False),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, NUM_OUTPUTS, bias=False),
        )
    rows, columns, channels = case.input_shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear((rows // 4) * (columns // 4) * width, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, NUM_OUTPUTS, bias=False),
    )


def _torch_data(case: Case) -> tuple[Any, Any, Any]:
    """Inputs and targets of all samples, and the samples of each batch."""
    import torch

    shape = case.input_shape
    if len(shape) == 3:
        shape = (shape[2], *shape[:2])
    inputs = torch.randn(NUM_SAMPLES, *shape)
    labels = torch.randint(NUM_OUTPUTS, (NUM_SAMPLES,))
    targets = torch.nn.functional.one_hot(labels, NUM_OUTPUTS).float()
    count = NUM_SAMPLES // case.batch_size
    order = torch.randperm(NUM_SAMPLES)[: count * case.batch_size]
    return inputs, targets, order.reshape(count, case.batch_size)


def _torch_networks(case: Case) -> list[Any]:
    networks = [torch_network(case) for _ in range(case.num_runs)]
    if case.centered:
        for network in networks[1:]:
            network.load_state_dict(networks[0].state_dict())
    return networks


def torch_eager(
    case: Case, threads: int, channels_last: bool = False
) -> tuple[Sampler, dict[str, Any]]:
    """PyTorch's usual training loop, run by run.

    Args:
        case: What is trained.
        threads: Threads of PyTorch.
        channels_last: Whether images and convolutions are stored channels last.
    """
    import copy

    import torch

    torch.set_num_threads(threads)
    inputs, targets, batches = _torch_data(case)
    networks = _torch_networks(case)
    if channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        networks = [network.to(memory_format=torch.channels_last) for network in networks]
    frozen = [copy.deepcopy(network) for network in networks]
    optimizers = [torch.optim.SGD(network.parameters(), LEARNING_RATE) for network in networks]

    def steps(count: int) -> None:
        for network, start, optimizer in zip(networks, frozen, optimizers, strict=True):
            for index in range(count):
                batch = batches[index % len(batches)]
                batch_inputs = inputs[batch]
                optimizer.zero_grad()
                outputs = network(batch_inputs)
                if case.centered:
                    with torch.no_grad():
                        offset = start(batch_inputs)
                    outputs = outputs - offset
                loss = 0.5 * (outputs - targets[batch]).square().mean()
                loss.backward()
                optimizer.step()

    return _gigaflops(case, steps), {}


def torch_vmap(case: Case, threads: int, compiled: bool) -> tuple[Sampler, dict[str, Any]]:
    """All runs at once with torch.func: vmap over stacked parameters, compiled or not.

    Args:
        case: What is trained.
        threads: Threads of PyTorch.
        compiled: Whether the step goes through torch.compile, which needs a C++ compiler.
    """
    import copy

    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    torch.set_num_threads(threads)
    inputs, targets, batches = _torch_data(case)
    networks = _torch_networks(case)
    stacked, _ = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")
    frozen = {name: value.detach().clone() for name, value in networks[0].named_parameters()}
    parameters = {name: value.detach() for name, value in stacked.items()}
    rates = torch.full((case.num_runs,), LEARNING_RATE)

    def loss(one: dict[str, Any], offset: Any, batch: Any, wanted: Any) -> Any:
        outputs = functional_call(skeleton, one, (batch,)) - offset
        return 0.5 * (outputs - wanted).square().mean()

    def step(
        one: dict[str, Any], rate: Any, offset: Any, batch: Any, wanted: Any
    ) -> dict[str, Any]:
        gradient = grad(loss)(one, offset, batch, wanted)
        return {name: value - rate * gradient[name] for name, value in one.items()}

    def step_all(many: dict[str, Any], batch: Any, wanted: Any) -> dict[str, Any]:
        offset = torch.zeros(())
        if case.centered:
            with torch.no_grad():
                offset = functional_call(skeleton, frozen, (batch,))
        return vmap(step, in_dims=(0, 0, None, None, None))(many, rates, offset, batch, wanted)

    if compiled:
        step_all = torch.compile(step_all)

    def steps(count: int) -> None:
        nonlocal parameters
        for index in range(count):
            batch = batches[index % len(batches)]
            parameters = step_all(parameters, inputs[batch], targets[batch])

    return _gigaflops(case, steps), {}


# --- the peak of the hardware at that moment ---


def jax_matrix_product(size: int) -> tuple[Sampler, dict[str, Any]]:
    """A large float32 product in JAX, with the threads that it takes by itself."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)

    def steps(count: int) -> None:
        for _ in range(count):
            product(matrix).block_until_ready()

    measure = repeat_for(steps)
    return lambda seconds: measure(seconds) * 2 * size**3 / 1e9, {}


def torch_matrix_product(size: int, threads: int) -> tuple[Sampler, dict[str, Any]]:
    """A large float32 product in PyTorch."""
    import torch

    torch.set_num_threads(threads)
    matrix, result = torch.ones(size, size), torch.empty(size, size)

    def steps(count: int) -> None:
        for _ in range(count):
            torch.matmul(matrix, matrix, out=result)

    measure = repeat_for(steps)
    return lambda seconds: measure(seconds) * 2 * size**3 / 1e9, {}


# --- one process per run ---


def one_run_in_jax(case: Case, num_steps: int) -> None:
    """Train a single run with JAX as a plain script would, and print what took how long."""
    began = time.perf_counter()
    import jax
    import jax.numpy as jnp

    imported = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), 8)
    width = case.width
    if case.model == "fully_connected":
        shapes = [(case.input_shape[0], width), (width, width), (width, NUM_OUTPUTS)]
    else:
        rows, columns, channels = case.input_shape
        flat = (rows // 4) * (columns // 4) * width
        shapes = [(3, 3, channels, width), (3, 3, width, width), (flat, width), (width, 10)]

    def draw(key: Any, shape: tuple[int, ...]) -> Any:
        fan_in = 1
        for size in shape[:-1]:
            fan_in *= size
        return jax.random.normal(key, shape) * (2 / fan_in) ** 0.5

    def apply(weights: list[Any], hidden: Any) -> Any:
        for index, weight in enumerate(weights):
            if weight.ndim == 4:
                labels = ("NHWC", "HWIO", "NHWC")
                hidden = jax.lax.conv_general_dilated(
                    hidden, weight, (1, 1), "SAME", dimension_numbers=labels
                )
                batch, rows, columns, channels = hidden.shape
                windows = (batch, rows // 2, 2, columns // 2, 2, channels)
                hidden = jax.nn.relu(hidden).reshape(windows).mean((2, 4))
                continue
            hidden = hidden.reshape(hidden.shape[0], -1) @ weight
            hidden = hidden if index == len(weights) - 1 else jax.nn.relu(hidden)
        return hidden

    # Steps are calls from Python: in a compiled loop XLA's convolutions are slow on CPU.
    @jax.jit
    def step(weights: list[Any], frozen: list[Any], batch: Any) -> list[Any]:
        batch_inputs, batch_targets = inputs[batch], targets[batch]
        offset = apply(frozen, batch_inputs) if case.centered else 0.0

        def loss(values: list[Any]) -> Any:
            outputs = apply(values, batch_inputs) - offset
            return 0.5 * jnp.square(outputs - batch_targets).mean()

        gradient = jax.grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, weights, gradient)

    frozen = [draw(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    inputs = jax.random.normal(keys[6], (NUM_SAMPLES, *case.input_shape))
    labels = jax.random.randint(keys[7], (NUM_SAMPLES,), 0, NUM_OUTPUTS)
    targets = jax.nn.one_hot(labels, NUM_OUTPUTS)
    count = NUM_SAMPLES // case.batch_size
    order = jax.random.permutation(keys[5], NUM_SAMPLES)[: count * case.batch_size]
    batches = list(order.reshape(count, case.batch_size))
    weights = jax.block_until_ready(step(frozen, frozen, batches[0]))
    compiled = time.perf_counter()
    for index in range(num_steps):
        weights = step(weights, frozen, batches[index % count])
    jax.block_until_ready(weights)
    print(imported - began, compiled - imported, (time.perf_counter() - compiled) / num_steps)


def jax_processes(case: Case, threads: int, is_tiny: bool, measured_steps: int) -> dict[str, float]:
    """One process per run: as many at once as threads, with a processor each.

    Args:
        case: What is trained.
        threads: Processes at once.
        is_tiny: Whether the case is its tiny version.
        measured_steps: Steps for which the speed of a step is measured.

    Returns:
        Means over the processes: `overhead_seconds`, from the start of a process to its end
        without its steps, and `step_seconds`.
    """
    processors = sorted(os.sched_getaffinity(0))
    options = [case.name, str(int(is_tiny)), str(measured_steps)]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "OMP_NUM_THREADS": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *options, str(processors[i % len(processors)])],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(threads)
    ]
    outputs, ends = [], []
    for process in processes:
        outputs.append([float(value) for value in process.communicate()[0].split()])
        ends.append(time.perf_counter() - began)
    step_seconds = statistics.mean(output[2] for output in outputs)
    overheads = [
        end - measured_steps * output[2] for end, output in zip(ends, outputs, strict=True)
    ]
    return {"overhead_seconds": statistics.mean(overheads), "step_seconds": step_seconds}


if __name__ == "__main__":
    name, is_tiny, num_steps, processor = sys.argv[1:]
    os.sched_setaffinity(0, {int(processor)})
    one_run_in_jax(tiny(CASES[name]) if is_tiny == "1" else CASES[name], int(num_steps))
