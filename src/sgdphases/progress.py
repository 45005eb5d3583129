"""How far a training job is, and how many operations a step needs."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Self

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from tqdm import tqdm  # type: ignore[import-untyped]
from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)


class Progress:
    """Tells how far training is: a line in the log now and then, and a bar on a terminal.

    A line has the step, steps/s, runs alive, GFLOP/s of the products that the mathematics needs,
    and the time left if the pace stays. Pace and GFLOP/s are those since the line before; the last
    line, on leaving the block, has those of the whole::

        with Progress("l2/fc_mnist", 5000, 150, flop) as progress:
            progress.update(step, runs_alive)
    """

    def __init__(
        self,
        name: str,
        total_steps: int,
        num_runs: int,
        flop_per_step_per_run: float,
        first_step: int = 0,
        first_run_steps: int = 0,
        seconds_between_messages: float = 10.0,
        activity: str = "training",
        unit: str = "step",
    ) -> None:
        """Start the clock.

        Args:
            name: What is trained.
            total_steps: Steps of the longest run.
            num_runs: Number of runs; 0 where there is but one thing, which has no runs.
            flop_per_step_per_run: Operations of a step of one run, from `matrix_product_flop`.
            first_step: Step that training resumes from.
            first_run_steps: Steps that all runs together had taken then.
            seconds_between_messages: Least time from one line to the next.
            activity: What is done with what `name` says.
            unit: What is counted.
        """
        self._name = name
        self._activity = activity
        self._unit = unit
        self._total_steps = total_steps
        self._num_runs = num_runs
        self._flop = flop_per_step_per_run
        self._interval = seconds_between_messages
        self._alive = num_runs
        self._step = first_step
        self._run_steps = first_run_steps
        self._began = self._spoke = (time.monotonic(), first_step, first_run_steps)
        self._bar: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Show the bar, where standard error is a terminal."""
        if sys.stderr.isatty():
            # Lines of the log go above the bar instead of through it.
            self._open.enter_context(logging_redirect_tqdm([logging.getLogger()]))
            self._bar = self._open.enter_context(
                tqdm(
                    desc=self._name,
                    total=self._total_steps,
                    initial=self._step,
                    unit=self._unit,
                    dynamic_ncols=True,
                    leave=False,
                )
            )
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the bar, and log what came of the whole."""
        self._open.close()
        self._bar = None
        self._log(self._began, is_last=True)

    def update(self, step: int, runs_alive: int, run_steps: int | None = None) -> None:
        """Note the step that training has reached.

        Args:
            step: Steps so far, those before `first_step` included.
            runs_alive: Runs that still train.
            run_steps: Steps that all runs together have taken so far. Without it, each run that
                was alive at the last update counts as having taken all steps since.
        """
        if run_steps is None:
            run_steps = self._run_steps + (step - self._step) * self._alive
        self._step, self._alive, self._run_steps = step, runs_alive, run_steps
        if self._bar is not None:
            if self._num_runs:
                self._bar.set_postfix_str(f"{runs_alive} of {self._num_runs} runs", refresh=False)
            self._bar.update(step - self._bar.n)
        if time.monotonic() - self._spoke[0] >= self._interval:
            self._log(self._spoke, is_last=False)
            self._spoke = (time.monotonic(), self._step, self._run_steps)

    def _log(self, since: tuple[float, int, int], is_last: bool) -> None:
        began, first_step, first_run_steps = since
        seconds = max(time.monotonic() - began, 1e-9)
        pace = (self._step - first_step) / seconds
        gigaflops = (self._run_steps - first_run_steps) * self._flop / seconds / 1e9
        known = "unknown" if math.isnan(gigaflops) else f"{gigaflops:.4g}"
        if is_last:
            end = f"{_duration(seconds)} taken"
        elif pace > 0:
            end = f"at most {_duration((self._total_steps - self._step) / pace)} left"
        else:
            end = "time left unknown"
        alive = f"{self._alive} of {self._num_runs} runs alive, " if self._num_runs else ""
        logger.info(
            "%s %s: %s %d of %d, %.4g %ss/s, %s%s GFLOP/s, %s",
            self._activity,
            self._name,
            self._unit,
            self._step,
            self._total_steps,
            pace,
            self._unit,
            alive,
            known,
            end,
        )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def matrix_product_flop(function: Callable[..., Any], *shapes: Any) -> float:
    """Operations in the matrix products and convolutions of a function.

    A multiplication and an addition count as two. A product of (m, k) and (k, n) counts 2·m·k·n. A
    convolution counts each element of its window for each output, at the borders as everywhere, and
    none of the zeros that a strided convolution's gradient puts between the elements of its input.
    All else, and products whose result nothing depends on, count nothing.

    Args:
        function: A function that JAX can trace, e.g. the value and gradient of one run's loss.
        *shapes: Its arguments, as pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Number of operations. A loop counts as often as it is run, of the branches of a condition
        the dearest, and what `jax.checkpoint` computes again counts again. NaN where there is a
        product in a loop whose number of rounds is not known beforehand.
    """
    return _jaxpr_flop(jax.make_jaxpr(function)(*shapes).jaxpr)


def _jaxpr_flop(jaxpr: Jaxpr) -> float:
    total = 0.0
    needed = {variable for variable in jaxpr.outvars if isinstance(variable, Var)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed.update(x for x in equation.invars if isinstance(x, Var))
            total += _equation_flop(equation)
    return total


def _equation_flop(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    operands = [_shape(variable.aval) for variable in equation.invars]
    num_outputs = math.prod(_shape(equation.outvars[0].aval))
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * num_outputs * _size(operands[0], contracted)
    if name == "dense_product":
        return 2 * num_outputs * operands[0][1]
    if name == "dense_weight_gradient":
        return 2 * num_outputs * operands[0][0]
    if name == "conv_general_dilated":
        _, *summed = params["dimension_numbers"].rhs_spec
        zeros: int = math.prod(params["lhs_dilation"])
        return 2 * num_outputs * _size(operands[1], summed) / zeros
    inner = [_jaxpr_flop(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "while" and any(inner):
        return math.nan
    if name == "cond":
        return math.nan if any(map(math.isnan, inner)) else max(inner)
    if name == "scan":
        return sum(inner) * int(params["length"])
    if name == "shard_map":  # the shapes inside are those of one device
        return sum(inner) * int(params["mesh"].size)
    return sum(inner)


def _shape(value: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return shape


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """What a jit, a loop, a condition or a function with its own derivative is made of."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
