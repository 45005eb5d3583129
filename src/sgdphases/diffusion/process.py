"""The diffusion process: how noise is added, and how a step back is taken.

Steps count from 0, the data, to T, nearly noise. The functions are arithmetic on what they are
given, NumPy's arrays or JAX's; coefficients are NumPy's float64, because in float32 the first steps
would cancel.

Reference:
    Ho, Jain and Abbeel 2020 (DDPM); Song, Meng and Ermon 2021 (DDIM); Ho and Salimans 2022
    (classifier-free guidance).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = Any  # of NumPy or JAX


class Schedule(NamedTuple):
    r"""How much of the data and of noise there is at each step.

    .. math:: q(x_t \mid x_0) = N(\sqrt{\bar\alpha_t}\,x_0, (1 - \bar\alpha_t) I), \qquad
        \bar\alpha_t = \prod_{s \le t} (1 - \beta_s)

    Attributes:
        beta: (T + 1,) variance that each step adds; 0 for the data.
        signal: (T + 1,) √ᾱ.
        noise: (T + 1,) √(1 − ᾱ).
    """

    beta: npt.NDArray[np.floating]
    signal: npt.NDArray[np.floating]
    noise: npt.NDArray[np.floating]

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.beta) - 1


class StepBack(NamedTuple):
    """A step back: x_s ~ N(of_clean · x_0 + of_noisy · x_t, deviation²).

    Attributes:
        of_clean: Factor of x_0.
        of_noisy: Factor of x_t.
        deviation: Standard deviation of the noise that is added.
    """

    of_clean: float
    of_noisy: float
    deviation: float


def linear_schedule(num_steps: int, first_beta: float, last_beta: float) -> Schedule:
    """The schedule of Ho et al.: β grows linearly with the step.

    Args:
        num_steps: T.
        first_beta: β of step 1.
        last_beta: β of step T.

    Returns:
        The schedule, in float64.
    """
    beta = np.concatenate([[0.0], np.linspace(first_beta, last_beta, num_steps)])
    log_signal = np.cumsum(np.log1p(-beta))
    return Schedule(beta, np.exp(log_signal / 2), np.sqrt(-np.expm1(log_signal)))


def diffuse(clean: Array, noise: Array, signal: Array, spread: Array) -> Array:
    r"""Take data to a step: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

    Args:
        clean: x_0, (samples, ...).
        noise: ε, standard normal, of the same shape.
        signal: √ᾱ_t, one number for all or (samples,).
        spread: √(1 − ᾱ_t), likewise.

    Returns:
        x_t, of the same shape.
    """
    return _along(signal, clean) * clean + _along(spread, clean) * noise


def clean_estimate(noisy: Array, noise: Array, signal: Array, spread: Array) -> Array:
    """The x_0 that x_t and its noise ε stand for: the inverse of `diffuse`."""
    return (noisy - _along(spread, noisy) * noise) / _along(signal, noisy)


def ddpm_step(schedule: Schedule, step: int) -> StepBack:
    r"""The step back of a DDPM, q(x_{t−1} | x_t, x_0).

    .. math:: \tilde\mu = \frac{\sqrt{\bar\alpha_{t-1}} \beta_t}{1 - \bar\alpha_t} x_0
        + \frac{\sqrt{1 - \beta_t} (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} x_t, \qquad
        \tilde\beta = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \beta_t

    Args:
        schedule: The schedule.
        step: t, from 1 to T.

    Returns:
        The step back; at t = 1 it gives x_0.

    Reference:
        Ho et al. 2020, eqs. 6 and 7. Of the two variances that they find to work alike this is the
        lower one, with which the last step adds no noise.
    """
    beta, variance = schedule.beta[step], schedule.noise[step] ** 2
    variance_before = schedule.noise[step - 1] ** 2
    return StepBack(
        schedule.signal[step - 1] * beta / variance,
        np.sqrt(1 - beta) * variance_before / variance,
        np.sqrt(variance_before / variance * beta),
    )


def ddim_step(schedule: Schedule, step: int, next_step: int, eta: float) -> StepBack:
    r"""The step back of a DDIM, over any number of steps at once.

    .. math:: x_s = \sqrt{\bar\alpha_s}\,x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\,\epsilon
        + \sigma z, \qquad \sigma = \eta \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}}
        \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}

    with ε = (x_t − √ᾱ_t x_0)/√(1 − ᾱ_t). With η = 1 and s = t − 1 it is the step of a DDPM.

    Args:
        schedule: The schedule.
        step: t.
        next_step: s < t.
        eta: η, from 0 (no noise is added) to 1.

    Returns:
        The step back.

    Reference:
        Song et al. 2021, eqs. 12 and 16.
    """
    signal, spread = schedule.signal[step], schedule.noise[step]
    next_signal, next_spread = schedule.signal[next_step], schedule.noise[next_step]
    deviation = eta * next_spread / spread * np.sqrt(1 - (signal / next_signal) ** 2)
    of_noise = np.sqrt(next_spread**2 - deviation**2)
    return StepBack(next_signal - of_noise * signal / spread, of_noise / spread, deviation)


class Velocity(NamedTuple):
    r"""What a network reads and predicts: unit variance at every step, instead of x_t and ε.

    With data of mean m and standard deviation s, and y = (x_0 − m)/s,

    .. math:: u = \frac{x_t - \sqrt{\bar\alpha_t}\,m}{\text{size}}
        = \cos\phi\,y + \sin\phi\,\epsilon, \qquad v = \cos\phi\,\epsilon - \sin\phi\,y, \qquad
        \epsilon = \sin\phi\,u + \cos\phi\,v

    The network is given u and predicts v: near the data mostly the noise, near the end, where the
    noise is plain to see, mostly the data.

    Attributes:
        offset: (T + 1,) √ᾱ m.
        size: (T + 1,) √(ᾱ s² + 1 − ᾱ).
        cosine: (T + 1,) √ᾱ s/size.
        sine: (T + 1,) √(1 − ᾱ)/size.

    Reference:
        Salimans and Ho 2022, "Progressive distillation", section 4.
    """

    offset: Array
    size: Array
    cosine: Array
    sine: Array

    def read(self, noisy: Array, step: Array) -> Array:
        """The network's input u, of the shape of `noisy`."""
        return (noisy - _along(self.offset[step], noisy)) / _along(self.size[step], noisy)

    def noise(self, read: Array, velocity: Array, step: Array) -> Array:
        """ε from u and v."""
        sine, cosine = (_along(values[step], read) for values in (self.sine, self.cosine))
        return sine * read + cosine * velocity

    def target(self, read: Array, noise: Array, step: Array) -> Array:
        """V from u and ε: (ε − sin φ u)/cos φ."""
        sine, cosine = (_along(values[step], read) for values in (self.sine, self.cosine))
        return (noise - sine * read) / cosine


def velocity_of(schedule: Schedule, mean: float, deviation: float) -> Velocity:
    """The reading of a schedule for data of a mean and a standard deviation above 0."""
    size = np.hypot(schedule.signal * deviation, schedule.noise)
    return Velocity(
        schedule.signal * mean, size, schedule.signal * deviation / size, schedule.noise / size
    )


def guided(conditional: Array, unconditional: Array, guidance: float) -> Array:
    """Classifier-free guidance: (1 + w) ε(x, c) − w ε(x).

    Args:
        conditional: ε(x, c), the noise predicted given the class.
        unconditional: ε(x), predicted without.
        guidance: w ≥ 0; 0 leaves the conditional model as it is.

    Reference:
        Ho and Salimans 2022, eq. 6.
    """
    return (1 + guidance) * conditional - guidance * unconditional


def sampling_steps(num_steps: int, num_taken: int) -> npt.NDArray[np.int32]:
    """The steps that a sampler stops at, evenly spaced.

    Args:
        num_steps: T.
        num_taken: How many steps back are taken, at most T.

    Returns:
        (num_taken + 1,) from T down to 0.
    """
    return np.linspace(num_steps, 0, num_taken + 1).round().astype(np.int32)


def _along(values: Array, images: Array) -> Array:
    """One number for all samples, or one for each, such that they multiply images."""
    if np.ndim(values) == 0:
        return values
    return values.reshape(-1, *(1,) * (images.ndim - 1))
