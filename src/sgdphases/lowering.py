"""Choose how the runs of a program are computed, by a short measured trial.

What is fastest depends on the platform, the network and the number of runs: runs one after the
other keep their parameters in a CPU's cache, all at once fill a GPU. The choice changes speed and
rounding only. It is kept in a file, so that jobs of the same shape on the same kind of device
choose alike.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sgdphases.devices import is_out_of_memory
from sgdphases.grid import content_hash
from sgdphases.runs import Lowering
from sgdphases.storage import write_text

logger = logging.getLogger(__name__)

# Trials of each lowering, all of them in turn: a moment of other work must not decide.
_TRIALS = 3
# Lowerings so much slower than the fastest are not tried again.
_HOPELESS = 1.5
# Below so many floating-point operations a job is over before a trial has paid for itself.
_WORTH_A_TRIAL = {"cpu": 1e13}
_WORTH_A_TRIAL_ELSEWHERE = 1e15


def candidate_lowerings(
    platform: str,
    runs_per_device: int,
    num_devices: int,
    has_convolutions: bool,
    is_own_model: bool = False,
) -> list[Lowering]:
    """The lowerings worth trying; the first one is used where no trial is worth its time.

    On CPU one run follows the other, which keeps its parameters in the cache; networks with small
    layers gain from a few runs at once. Elsewhere all runs take each step together.

    Args:
        platform: JAX's name of the platform: cpu, gpu, tpu.
        runs_per_device: Runs on each device.
        num_devices: Number of devices; with one, steps can be calls from the host.
        has_convolutions: Whether the network has convolutions.
        is_own_model: Whether the network is a user's own: its convolutions are XLA's, however they
            are asked for, and slow within a loop on CPU.

    Returns:
        Distinct lowerings.
    """
    everything = runs_per_device
    if platform != "cpu":
        found = [Lowering(everything), Lowering(1)]
        if has_convolutions:
            # A batched kernel would turn XLA's convolution into a grouped one, which is slow.
            found.append(Lowering(1, "native"))
        return list(dict.fromkeys(found))
    if has_convolutions and is_own_model:
        found = [Lowering(1, "native"), Lowering(everything, "native")]
        stepwise = [Lowering(1, "native", "stepwise")] if num_devices == 1 else []
        return list(dict.fromkeys([*stepwise, *found]))
    if has_convolutions:
        found = [Lowering(1, "explicit"), Lowering(1), Lowering(everything)]
        found += [Lowering(1, "native", "stepwise")] if num_devices == 1 else []
        return list(dict.fromkeys(found))
    divisors = [d for d in range(4, 17) if everything % d == 0]
    few = sorted(divisors, key=lambda divisor: abs(divisor - 8))[:1]
    found = [Lowering(1), Lowering(1, unroll=2), *(Lowering(size) for size in [*few, everything])]
    return list(dict.fromkeys(found))


def is_worth_a_trial(platform: str, flop: float) -> bool:
    """Whether so much work, in floating-point operations, is worth comparing lowerings for."""
    return flop > _WORTH_A_TRIAL.get(platform, _WORTH_A_TRIAL_ELSEWHERE)


def choose_lowering(
    candidates: Sequence[Lowering],
    seconds_per_step: Callable[[Lowering], float],
    cache: Path | None,
    description: Mapping[str, Any],
) -> Lowering:
    """The fastest of some lowerings: as an earlier job found, or by trying each.

    Args:
        candidates: The lowerings; the first one is kept where none can be timed.
        seconds_per_step: Measures one; may raise where the device cannot hold it. Called more than
            once, of which the least counts.
        cache: Folder of earlier choices, or None.
        description: What the choice depends on, as JSON-like content.

    Returns:
        The chosen lowering.
    """
    file = None if cache is None else cache / f"{content_hash(dict(description))}.json"
    known = None if file is None else _read_choice(file)
    if known is not None and known in candidates:
        return known
    seconds: dict[Lowering, float] = {}
    remaining = list(candidates)
    for _ in range(_TRIALS if len(candidates) > 1 else 1):
        for candidate in remaining:
            try:
                latest = seconds_per_step(candidate)
            except (RuntimeError, ValueError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                logger.info("lowering %s: too large for the device's memory", candidate)
                continue
            seconds[candidate] = min(latest, seconds.get(candidate, latest))
        # None again where no time says anything.
        limit = _HOPELESS * min(seconds.values(), default=math.inf)
        remaining = [c for c in seconds if seconds[c] <= limit < math.inf]
    if not seconds:
        return candidates[0]
    chosen = min(seconds, key=lambda candidate: seconds[candidate])
    for candidate, value in seconds.items():
        mark = "chosen" if candidate == chosen else f"{value / seconds[chosen]:.2f} x slower"
        logger.info("lowering %s: %.3g s per step, %s", candidate, value, mark)
    if file is not None:
        note = {
            "chosen": asdict(chosen),
            "seconds_per_step": [[asdict(c), value] for c, value in seconds.items()],
            "description": dict(description),
        }
        try:
            write_text(json.dumps(note, indent=1), file)
        except OSError as error:
            logger.warning("the choice of lowering could not be kept: %s", error)
    return chosen


def _read_choice(file: Path) -> Lowering | None:
    try:
        return Lowering(**json.loads(file.read_text(encoding="utf-8"))["chosen"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
