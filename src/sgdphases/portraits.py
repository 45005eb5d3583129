"""What a cell of a phase portrait over richness and learning rate is.

The papers give no definition. Losses count from the smallest loss that there is, which is 0 for
squared errors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdphases.phases import PEAK_FACTOR

# training: the first rate that trains. catapult: the last before the loss peaks. convergence: the
# last of the first stretch that converges. divergence: the last that stays finite.
EDGES = ("training", "catapult", "convergence", "divergence")
# Rates that are small enough neither train nor peak nor diverge, but they do not converge either.
EDGES_FROM_ZERO = ("training", "catapult", "divergence")
REGIONS = ("untrained", "convergent", "catapult", "unsettled", "divergent")


@dataclass(frozen=True)
class PortraitRules:
    """The thresholds that separate the regions.

    Attributes:
        trained_loss: A run has trained if its final loss is below this multiple of its initial one.
        converged_loss: It has converged if its final loss is below this multiple.
        peak_factor: Its loss has peaked if it exceeded this multiple of the initial one, both
            counted from 0.
    """

    trained_loss: float = 0.9
    converged_loss: float = 0.01
    peak_factor: float = PEAK_FACTOR

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Self:
        """The rules of an experiment, whose section `portrait` may change some."""
        return cls(**spec.get("portrait") or {})

    def has_trained(self, initial: ArrayLike, final: ArrayLike) -> NDArray[np.bool_]:
        """Whether losses above the smallest one have fallen enough to count as trained."""
        return np.asarray(np.asarray(final) < self.trained_loss * np.asarray(initial))

    def has_converged(self, initial: ArrayLike, final: ArrayLike) -> NDArray[np.bool_]:
        """Whether losses above the smallest one have fallen enough to count as converged."""
        return np.asarray(np.asarray(final) < self.converged_loss * np.asarray(initial))


def weight_matrices(run: Mapping[Any, Any]) -> int | None:
    """L of a network: its depth, or its convolutions and dense layers.

    Args:
        run: Hyperparameters of a run.

    Returns:
        The number, or None where the model has no such hyperparameters.
    """
    if "num_convolutions" in run:
        return int(run["num_convolutions"] + run["num_dense"])
    return int(run["depth"]) if "depth" in run else None


def richness_law(richness: float, depth: int, optimizer: str = "sgd") -> float:
    r"""How the largest stable learning rate scales with the richness.

    .. math:: \eta_\mathrm{max} \sim \gamma^2 \; (\gamma \le 1), \quad \gamma^{2/L} \; (\gamma > 1)

    Optimisers that step by signs follow its square root.

    Args:
        richness: γ.
        depth: L, the number of weight matrices.
        optimizer: sgd, sign_sgd or adam.

    Returns:
        The rate, with a prefactor of 1.

    Reference:
        Richness paper, table 1, figures 11 and 12; catalogue item 1.10.
    """
    exponent = 2.0 if richness <= 1 else 2.0 / depth
    return float(richness ** (exponent if optimizer == "sgd" else exponent / 2))


def classify_cells(
    rules: PortraitRules,
    status: ArrayLike,
    initial_loss: ArrayLike,
    peak_loss: ArrayLike,
    final_loss: ArrayLike,
    smallest_loss: ArrayLike = 0.0,
) -> NDArray[np.object_]:
    """Say which region of the portrait each run lies in.

    Divergent: the loss left the finite range. Catapult: the run has trained after its loss peaked.
    Convergent: any other run that has trained. Unsettled: it stayed finite and has not trained, but
    its loss peaked. Untrained: the rest of those that took a step.

    Args:
        rules: The thresholds.
        status: (runs,) strings: finished, stopped, diverged or unreachable.
        initial_loss: (runs,) loss at step 0.
        peak_loss: (runs,) largest loss seen.
        final_loss: (runs,) loss at the last step.
        smallest_loss: The smallest loss that there is, for all runs or for each.

    Returns:
        (runs,) array of the names in `REGIONS`; None where unreachable.
    """
    initial, peak, final, smallest = (
        np.asarray(values, dtype=float)
        for values in (initial_loss, peak_loss, final_loss, smallest_loss)
    )
    ends = np.asarray(status, dtype=object)
    diverged = ends == "diverged"
    trained = rules.has_trained(initial - smallest, final - smallest)
    peaked = peak > rules.peak_factor * initial
    regions = np.select(
        [diverged, trained & peaked, trained, peaked],
        ["divergent", "catapult", "convergent", "unsettled"],
        "untrained",
    )
    named = regions.astype(object)
    named[ends == "unreachable"] = None
    return named


def is_below_edge(
    rules: PortraitRules,
    edges: ArrayLike,
    status: ArrayLike,
    initial_loss: ArrayLike,
    peak_loss: ArrayLike,
    final_loss: ArrayLike,
    smallest_loss: ArrayLike = 0.0,
) -> NDArray[np.bool_]:
    """Say of each run whether it behaves as runs do at learning rates below an edge.

    Args:
        rules: The thresholds.
        edges: (runs,) names in `EDGES`.
        status: (runs,) strings: finished, stopped or diverged.
        initial_loss: (runs,) loss at step 0.
        peak_loss: (runs,) largest loss seen.
        final_loss: (runs,) loss at the last step.
        smallest_loss: The smallest loss that there is, for all runs or for each.

    Returns:
        (runs,) truth values.
    """
    initial, peak, final, smallest = (
        np.asarray(values, dtype=float)
        for values in (initial_loss, peak_loss, final_loss, smallest_loss)
    )
    finite = (np.asarray(status, dtype=object) != "diverged") & np.isfinite(final)
    gain = (initial - smallest, final - smallest)
    behaviour = {
        "training": ~(finite & rules.has_trained(*gain)),
        "catapult": finite & (peak <= rules.peak_factor * initial),
        "convergence": finite & rules.has_converged(*gain),
        "divergence": finite,
    }
    names = np.asarray(edges, dtype=object)
    return np.asarray(
        np.select([names == name for name in EDGES], [behaviour[name] for name in EDGES], False)
    )
