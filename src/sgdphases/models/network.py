"""What every network is to the rest of the package, and the layers that networks are built from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sgdphases.models.convolution import convolve
from sgdphases.models.products import dense_product

Parameters = Any  # a pytree of arrays

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "gelu": jax.nn.gelu,
    "identity": lambda x: x,
}


class Network(NamedTuple):
    """A network as pure functions.

    The parameters of the package's own networks are a mapping with the keys `input`, `hidden` and
    `readout`: layers between the inputs and the first hidden representation, between hidden ones,
    and the last layer.

    Attributes:
        init: From a random key to parameters.
        apply: From parameters and inputs (batch, ...) to outputs (batch, outputs).
        features: From parameters and inputs to what the last layer reads, (batch, features); None
            where a network does not tell.
    """

    init: Callable[[jax.Array], Parameters]
    apply: Callable[[Parameters, jax.Array], jax.Array]
    features: Callable[[Parameters, jax.Array], jax.Array] | None = None


class Layer(NamedTuple):
    """A layer as pure functions.

    Attributes:
        init: From a random key to the layer's parameters.
        apply: From the layer's parameters and its input to its output.
    """

    init: Callable[[jax.Array], Parameters]
    apply: Callable[[Parameters, jax.Array], jax.Array]


@dataclass(frozen=True)
class Layers:
    r"""Makes layers in one parametrisation.

    A layer computes s·(W x) + s_b·b with W drawn from N(0, σ²):

    ==============  ====================  ======================  ===========================
    parametrisation  σ                     s                       s of the readout
    ==============  ====================  ======================  ===========================
    standard         weight_scale/√fan_in  1                       1
    ntk              1                     weight_scale/√fan_in    weight_scale/√fan_in
    mup, depth_mup   1                     weight_scale/√fan_in    weight_scale/√(fan_in·width)
    ==============  ====================  ======================  ===========================

    Biases are N(0, bias_scale²), as b itself (standard, mup) or as s_b = bias_scale times N(0, 1)
    (ntk). Without a bias_scale there are none. A readout that reads one value per channel has
    fan_in = width, hence 1/width in µP.

    Attributes:
        parametrisation: standard, ntk, mup or depth_mup.
        weight_scale: σ_w.
        bias_scale: σ_b, or None for no biases.
        width: The width N of the network; in µP the readout and the learning rates depend on it.
        dtype: Type of the parameters.
        convolution_method: One of `convolution.CONVOLUTION_METHODS`.

    Reference:
        Catapult paper, SM A (standard, NTK); richness paper, eqs. 11–14 (µP and Depth-µP).
    """

    parametrisation: str
    weight_scale: float
    bias_scale: float | None
    width: int
    dtype: Any
    convolution_method: str

    @property
    def is_mup(self) -> bool:
        """Whether the parametrisation is µP or Depth-µP."""
        return self.parametrisation in ("mup", "depth_mup")

    def skip_multiplier(self) -> float:
        """Factor s of the skip connection h + ... of plain networks: 1 in Depth-µP, else 0."""
        return 1.0 if self.parametrisation == "depth_mup" else 0.0

    def branch_multiplier(self, num_branches: int) -> float:
        """Factor of each residual branch: 1/√num_branches in Depth-µP, else 1."""
        return 1 / math.sqrt(num_branches) if self.parametrisation == "depth_mup" else 1.0

    def dense(self, fan_in: int, fan_out: int, is_readout: bool = False) -> Layer:
        """A fully connected layer from (..., fan_in) to (..., fan_out).

        Its parameters are {"weight": (fan_in, fan_out), "bias": (fan_out,)}.
        """
        return self._affine((fan_in, fan_out), fan_in, is_readout, dense_product)

    def convolution(
        self,
        window: int,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        padding: str = "SAME",
    ) -> Layer:
        """A square convolution from (batch, height, width, in) to (batch, height', width', out).

        Its parameters are {"weight": (window, window, in, out), "bias": (out,)}.
        """
        shape = (window, window, in_channels, out_channels)

        def product(inputs: jax.Array, weight: jax.Array) -> jax.Array:
            return convolve(inputs, weight, stride, padding, self.convolution_method)

        return self._affine(shape, window * window * in_channels, False, product)

    def _affine(
        self,
        shape: tuple[int, ...],
        fan_in: int,
        is_readout: bool,
        product: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> Layer:
        spread, multiplier = 1.0, self.weight_scale / math.sqrt(fan_in)
        if self.parametrisation == "standard":
            spread, multiplier = multiplier, 1.0
        elif self.is_mup and is_readout:
            multiplier /= math.sqrt(self.width)
        has_bias = self.bias_scale is not None
        bias_spread, bias_multiplier = self.bias_scale or 0.0, 1.0
        if self.parametrisation == "ntk":
            bias_spread, bias_multiplier = 1.0, bias_spread

        def init(key: jax.Array) -> Parameters:
            weight_key, bias_key = jax.random.split(key)
            layer = {"weight": spread * standard_normal(weight_key, shape, self.dtype)}
            if has_bias:
                draw = standard_normal(bias_key, shape[-1:], self.dtype)
                layer["bias"] = bias_spread * draw
            return layer

        def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
            output = product(inputs, layer["weight"])
            if multiplier != 1.0:
                output = output * multiplier
            if has_bias:
                output = output + layer["bias"] * bias_multiplier
            return output

        return Layer(init, apply)


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draws from N(0, 1).

    They are cut from a draw whose length is a power of two: each length is a program of its own,
    which takes as long to compile as a small network. They are drawn in float32, so that a seed
    gives the same network in every precision.
    """
    size = math.prod(shape)
    length = 1 << max(6, (size - 1).bit_length())
    draw = jax.random.normal(key, (length,), jnp.float32)
    return draw[:size].reshape(shape).astype(dtype)


def max_pool(inputs: jax.Array, window: int, stride: int) -> jax.Array:
    """Largest value in each square window, without padding.

    Written with elementwise maxima over shifted images: the gradient of XLA's windowed reduction is
    slow inside compiled loops.

    Args:
        inputs: (batch, height, width, channels).
        window: Side of the window.
        stride: Step of the window.

    Returns:
        (batch, height', width', channels).
    """
    for axis in (1, 2):
        count = (inputs.shape[axis] - window) // stride + 1
        shifted = [
            jax.lax.slice_in_dim(inputs, i, i + stride * (count - 1) + 1, stride, axis)
            for i in range(window)
        ]
        inputs = shifted[0]
        for image in shifted[1:]:
            inputs = jnp.maximum(inputs, image)
    return inputs


def batch_norm(num_channels: int, dtype: Any) -> Layer:
    """Batch normalisation with the statistics of the current batch, at test time too.

    Its parameters are {"scale": ones, "offset": zeros}.

    Args:
        num_channels: Size of the last axis; statistics are taken over all others.
        dtype: Type of the parameters.

    Reference:
        The catapult and L2 papers' networks (JAX Stax), catalogue Part 2.
    """

    def init(key: jax.Array) -> Parameters:
        del key  # nothing is random
        return {
            "scale": jnp.ones(num_channels, dtype),
            "offset": jnp.zeros(num_channels, dtype),
        }

    def apply(layer: Parameters, inputs: jax.Array) -> jax.Array:
        axes = tuple(range(inputs.ndim - 1))
        centred = inputs - inputs.mean(axes)
        variance = jnp.square(centred).mean(axes)
        normalised: jax.Array = centred * jax.lax.rsqrt(variance + 1e-5)
        scaled: jax.Array = layer["scale"] * normalised + layer["offset"]
        return scaled

    return Layer(init, apply)


def assemble(
    layers: Mapping[str, Any],
    features: Callable[[Parameters, jax.Array], jax.Array],
    readout: Layer,
) -> Network:
    """A network from its layers.

    Args:
        layers: The layers under `input` and `hidden`: a layer, or a list or mapping of such.
        features: From all parameters and inputs to what the readout reads, (batch, features).
        readout: The last layer.

    Returns:
        The network, whose parameters have the structure of `layers`, and `readout` beside it.
    """
    everything = {**layers, "readout": readout}

    def init(key: jax.Array) -> Parameters:
        flat, structure = jax.tree.flatten(everything, is_leaf=lambda x: isinstance(x, Layer))
        keys = jax.random.split(key, len(flat))
        drawn = [layer.init(k) for layer, k in zip(flat, keys, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    def apply(parameters: Parameters, inputs: jax.Array) -> jax.Array:
        return readout.apply(parameters["readout"], features(parameters, inputs))

    return Network(init, apply, features)


ModelFactory = Callable[[Mapping[str, Any], Sequence[int], int, Layers], Network]
