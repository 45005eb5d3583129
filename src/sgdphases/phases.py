"""The learning-rate phases of a run: lazy, catapult, divergent."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Thresholds are the catalogue's defaults; the paper states none.
PEAK_FACTOR = 1.05
CURVATURE_DROP = 0.98


def classify_phase(
    status: ArrayLike,
    initial_train_loss: ArrayLike,
    peak_train_loss: ArrayLike,
    final_train_loss: ArrayLike,
    initial_ntk_top_eigenvalue: ArrayLike,
    final_ntk_top_eigenvalue: ArrayLike,
) -> NDArray[np.object_]:
    """Classify runs as lazy, catapult or divergent.

    Divergent: the loss left the finite range. Catapult: the run trained (final below initial
    loss), its loss peaked above 1.05 of the initial loss, and the top NTK eigenvalue ended below
    0.98 of its initial value. Lazy: any other run that trained. A run that stayed finite without
    training, or whose curvature was not measured, has no phase.

    Args:
        status: (runs,) strings: finished, diverged or stopped.
        initial_train_loss: (runs,) loss at step 0.
        peak_train_loss: (runs,) largest loss seen.
        final_train_loss: (runs,) loss at the last step.
        initial_ntk_top_eigenvalue: (runs,) at step 0, NaN where not measured.
        final_ntk_top_eigenvalue: (runs,) at the last step, NaN where not measured.

    Returns:
        (runs,) array of "lazy", "catapult", "divergent" or None.

    Reference:
        Lewkowycz et al., The large learning rate phase of deep learning, section 1.3.
    """
    diverged = np.asarray(status, dtype=object) == "diverged"
    initial_loss = np.asarray(initial_train_loss, dtype=float)
    final_loss = np.asarray(final_train_loss, dtype=float)
    initial_curvature = np.asarray(initial_ntk_top_eigenvalue, dtype=float)
    final_curvature = np.asarray(final_ntk_top_eigenvalue, dtype=float)
    measured = np.isfinite(initial_curvature) & np.isfinite(final_curvature)
    trained = measured & (final_loss < initial_loss)
    peaked = np.asarray(peak_train_loss, dtype=float) > PEAK_FACTOR * initial_loss
    flattened = final_curvature < CURVATURE_DROP * initial_curvature
    phase = np.full(diverged.shape, None, dtype=object)
    phase[trained] = "lazy"
    phase[trained & peaked & flattened] = "catapult"
    phase[diverged] = "divergent"
    return phase
