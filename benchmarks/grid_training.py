"""Train many runs of one network together, against other ways to train them.

Prints one table and writes benchmarks/results/grid_training.json:
`python benchmarks/grid_training.py [--cases fc512 fc64 ...] [--threads N] [--rounds N]`.

All sides have the same processors and threads, and are measured in turn within one run of the
script; a speed is the median of the rounds that no other process disturbed. GFLOP/s count the
products that the mathematics needs, the same for all sides: forward, for the gradient of the
weights and for that of the activations, but not of the inputs; with centred networks, whose outputs
at initialisation are subtracted, one more pass forward for all runs together.

The sides: "engine", a training job of this package, with its own choice of lowering; PyTorch eager,
run by run (for networks of convolutions also with channels last); torch.func's vmap over stacked
parameters, plain and compiled; JAX with one process per run, where start-up and compilation are
shared out over runs of `--steps-per-run` steps; and the peak, a large square product in JAX and in
PyTorch. PyTorch is no dependency of this project: `pip install torch`; torch.compile needs a C++
compiler. What is missing is shown as a dash, with the reason below the table.

The case "scaling" trains the narrow network as 16 to 256 runs: time per run and step.
"""

import argparse
import math
from typing import Any

from common import (
    CASES,
    Case,
    Side,
    add_common_arguments,
    describe_machine,
    limit_threads,
    measure_in_turn,
    median,
    print_complaints,
    print_table,
    ratio,
    tiny,
    write_result,
)
from peers import jax_processes

RUN_COUNTS = (16, 32, 64, 128, 256)
MATRIX_SIZE = 2048


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=[*CASES, "scaling"],
        default=["fc512", "fc512-centred", "fc64", "fc64-centred", "cnn32", "cnn64", "scaling"],
    )
    parser.add_argument(
        "--steps-per-run", type=int, default=2000, help="over which start-up is shared out"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], choices=["torch", "processes"], help="sides left out"
    )
    # In shorter ones the start and the end of the engine's job would weigh.
    add_common_arguments(parser, seconds=3.0)
    return parser.parse_args()


def sides_of(case: Case, threads: int, with_torch: bool, matrix_size: int) -> dict[str, Side]:
    """The sides of a comparison by short names; the engine is the first."""
    shared = {"case": case, "threads": threads}
    sides = {
        "engine": Side("engine", "common:train_with_engine", shared),
        "peak (JAX)": Side("peak (JAX)", "peers:jax_matrix_product", {"size": matrix_size}),
    }
    if not with_torch:
        return sides
    torch_sides: list[tuple[str, str, dict[str, Any]]] = [
        ("peak (PyTorch)", "torch_matrix_product", {"size": matrix_size, "threads": threads}),
        ("PyTorch eager", "torch_eager", shared),
        ("PyTorch vmap", "torch_vmap", {**shared, "compiled": False}),
        ("PyTorch compiled vmap", "torch_vmap", {**shared, "compiled": True}),
    ]
    if case.model == "convolutional":
        options = {**shared, "channels_last": True}
        torch_sides.append(("PyTorch eager, channels last", "torch_eager", options))
    for name, maker, options in torch_sides:
        sides[name] = Side(name, f"peers:{maker}", options)
    return sides


def compare(case: Case, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Side]]:
    """Measure one case: what the JSON holds of it, and the sides."""
    with_torch = "torch" not in arguments.without
    size = 64 if arguments.smoke else MATRIX_SIZE
    sides = sides_of(case, arguments.threads, with_torch, size)
    measure_in_turn(list(sides.values()), arguments.rounds, arguments.seconds)
    engine = sides["engine"]
    if engine.failure:
        raise SystemExit(f"{case.name}: the engine failed: {engine.failure}")
    rows = [
        {
            "side": side.name,
            "gflops": median(side),
            "best_gflops": max(side.rates, default=math.nan),
            "engine_over_side": ratio(engine, side),
            "rounds_gflops": side.rates,
            "set_aside_gflops": side.set_aside,
            "unavailable": side.failure,
        }
        for side in sides.values()
    ]
    result = {
        "case": case.name,
        "runs": case.num_runs,
        "batch_size": case.batch_size,
        "flop_per_step": case.flop_per_step(),
        "lowering": engine.told["lowering"],
        "sides": rows,
    }
    if "processes" not in arguments.without:
        result["sides"].append(_one_process_per_run(case, arguments, engine, result))
    return result, list(sides.values())


def _one_process_per_run(
    case: Case, arguments: argparse.Namespace, engine: Side, result: dict[str, Any]
) -> dict[str, Any]:
    """Extrapolate from a few processes to all runs, start-up and compilation included.

    The engine's job is charged with its own start-up and compilation, its trial of lowerings
    included.
    """
    steps, speed = arguments.steps_per_run, median(engine)
    measured = max(2, min(steps, round(5e10 * case.num_runs / case.flop_per_step())))
    times = jax_processes(case, arguments.threads, arguments.smoke, measured)
    waves = math.ceil(case.num_runs / arguments.threads)
    seconds = waves * (times["overhead_seconds"] + steps * times["step_seconds"])
    flop = steps * case.flop_per_step()
    ours = engine.told["seconds_to_ready"] + flop / (speed * 1e9)
    result["one_process_per_run"] = {
        **times,
        "steps_per_run": steps,
        "seconds_of_all_runs": seconds,
        "engine_seconds_to_ready": engine.told["seconds_to_ready"],
        "engine_seconds_of_all_runs": ours,
    }
    return {
        "side": "JAX, one process per run",
        "gflops": flop / seconds / 1e9,
        "best_gflops": math.nan,
        "engine_over_side": seconds / ours,
        "rounds_gflops": [],
        "set_aside_gflops": [],
        "unavailable": None,
    }


def compare_run_counts(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Side]]:
    """Time per run and step for more and more runs of the narrow network."""
    narrow = tiny(CASES["fc64"]) if arguments.smoke else CASES["fc64"]
    counts = (2, 4) if arguments.smoke else RUN_COUNTS
    cases = [Case("scaling", narrow.model, narrow.width, narrow.input_shape, n) for n in counts]
    options = [{"case": case, "threads": arguments.threads} for case in cases]
    sides = [Side(str(o["case"].num_runs), "common:train_with_engine", o) for o in options]
    measure_in_turn(sides, arguments.rounds, arguments.seconds)
    failed = [side for side in sides if side.failure]
    if failed:
        raise SystemExit(f"scaling: the engine failed: {failed[0].failure}")
    result = {
        "case": "scaling",
        "rows": [
            {
                "runs": case.num_runs,
                "microseconds_per_run_and_step": _cost(case, side),
                "cost_over_fewest_runs": _cost(case, side) / _cost(cases[0], sides[0]),
                "lowering": side.told["lowering"],
            }
            for case, side in zip(cases, sides, strict=True)
        ],
    }
    return result, sides


def _cost(case: Case, side: Side) -> float:
    """Microseconds per run and step."""
    return case.flop_per_step() / case.num_runs / median(side) / 1e3


def table_rows(result: dict[str, Any]) -> list[list[Any]]:
    if result["case"] == "scaling":
        return [
            [
                f"fc64 as {row['runs']} runs",
                "engine",
                f"{row['microseconds_per_run_and_step']:.3g} us/run/step",
                f"cost x {row['cost_over_fewest_runs']:.2f}",
            ]
            for row in result["rows"]
        ]
    name = f"{result['case']} x {result['runs']} runs"
    return [
        [name, row["side"], float(row["gflops"]), float(row["engine_over_side"])]
        for row in result["sides"]
    ]


def main() -> None:
    arguments = parse_arguments()
    limit_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    measured = {}
    for name in arguments.cases:
        if name == "scaling":
            result, sides = compare_run_counts(arguments)
        else:
            case = tiny(CASES[name]) if arguments.smoke else CASES[name]
            result, sides = compare(case, arguments)
        results.append(result)
        measured[name] = sides
        # After each case: all of them take a while.
        write_result(
            arguments.results,
            "grid_training",
            {
                "machine": describe_machine(arguments.threads),
                "arguments": vars(arguments),
                "results": results,
            },
        )
    print(
        f"{arguments.threads} thread(s), median of {arguments.rounds} undisturbed rounds of "
        f"{arguments.seconds:g} s in turn"
    )
    rows = [row for result in results for row in table_rows(result)]
    print_table(("case", "side", "GFLOP/s", "engine / side"), rows)
    for name, sides in measured.items():
        print_complaints(name, sides)


if __name__ == "__main__":
    main()
