"""Compare the lowerings that the engine chooses among, each forced, in training jobs.

Prints one table and writes benchmarks/results/lowering.json:
`python benchmarks/lowering.py [--cases fc512 fc64 ...] [--threads N]`. GFLOP/s count the products
that the mathematics needs; the lowerings of a case are measured in turn. On an accelerator, give
`--threads 0`.
"""

import argparse
import math
from dataclasses import asdict
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=["fc512", "fc64", "cnn32"]
    )
    add_common_arguments(parser, seconds=1.0)
    return parser.parse_args()


def candidates(case: Case, threads: int) -> list[dict[str, Any]]:
    """The lowerings that a job of this case would try."""
    from sgdphases.lowering import candidate_lowerings

    platform, num_devices = "cpu", threads
    if not threads:
        import jax

        platform, num_devices = jax.default_backend(), jax.local_device_count()
    num_devices = min(num_devices, case.num_runs)
    runs_per_device = math.ceil(case.num_runs / num_devices)
    has_convolutions = case.model == "convolutional"
    found = candidate_lowerings(platform, runs_per_device, num_devices, has_convolutions)
    return [asdict(lowering) for lowering in found]


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        limit_threads(arguments.threads)
    results, rows, measured = [], [], {}
    for name in arguments.cases:
        case = tiny(CASES[name]) if arguments.smoke else CASES[name]
        sides = [
            Side(
                ", ".join(f"{key} {value}" for key, value in lowering.items()),
                "common:train_with_engine",
                {"case": case, "threads": arguments.threads, "lowering": lowering},
            )
            for lowering in candidates(case, arguments.threads)
        ]
        measure_in_turn(sides, arguments.rounds, arguments.seconds)
        fastest = max((side for side in sides if side.rates), key=median)
        for side in sides:
            row = [f"{name} x {case.num_runs} runs", side.name, median(side), ratio(side, fastest)]
            rows.append(row)
        results.append(
            {
                "case": name,
                "lowerings": [
                    {
                        **side.arguments["lowering"],
                        "gflops": median(side),
                        "rounds_gflops": side.rates,
                        "set_aside_gflops": side.set_aside,
                        "unavailable": side.failure,
                    }
                    for side in sides
                ],
            }
        )
        measured[name] = sides
    print(f"{arguments.threads} thread(s), median of {arguments.rounds} undisturbed rounds in turn")
    print_table(("case", "lowering", "GFLOP/s", "of the fastest"), rows)
    for name, sides in measured.items():
        print_complaints(name, sides)
    write_result(
        arguments.results,
        "lowering",
        {
            "machine": describe_machine(arguments.threads),
            "arguments": vars(arguments),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
