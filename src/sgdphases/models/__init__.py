"""Networks by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sgdphases.grid import VECTORISED_HYPERPARAMETERS
from sgdphases.model_table import is_user_model, model_entry
from sgdphases.models.convolutional import catapult_cnn, convolutional, l2_cnn
from sgdphases.models.fully_connected import fully_connected
from sgdphases.models.heads import zero_readout
from sgdphases.models.network import Layers, ModelFactory, Network, Parameters
from sgdphases.models.recurrent import gru
from sgdphases.models.residual_convnet import residual_convnet
from sgdphases.models.resnet import resnet
from sgdphases.models.user import load_user_model
from sgdphases.models.vision_transformer import vision_transformer
from sgdphases.models.wide_resnet import wide_resnet

__all__ = [
    "FACTORIES",
    "Layers",
    "Network",
    "Parameters",
    "build_network",
    "parameter_dtype",
    "single_run_convolution",
]

# By their names in the table of models.
FACTORIES: dict[str, ModelFactory] = {
    "catapult_cnn": catapult_cnn,
    "convolutional": convolutional,
    "fully_connected": fully_connected,
    "gru": gru,
    "l2_cnn": l2_cnn,
    "residual_convnet": residual_convnet,
    "resnet": resnet,
    "vision_transformer": vision_transformer,
    "wide_resnet": wide_resnet,
}


def parameter_dtype(precision: str) -> str:
    """Type of parameters, inputs and losses; reduced precisions concern matrix products only."""
    return "float64" if precision == "float64" else "float32"


def single_run_convolution() -> str:
    """The fastest method of convolution on the default device for one network at a time."""
    return "explicit" if jax.default_backend() == "cpu" else "native"


def build_network(
    hyperparameters: Mapping[str, Any],
    input_shape: Sequence[int],
    num_outputs: int,
    convolution_method: str = "patches",
) -> Network:
    """Build the network that a run's hyperparameters describe.

    Args:
        hyperparameters: `model`, a name of the table of models or a user's own
            `package.module:function`, `parametrisation`, `weight_scale`, `bias_scale`, `precision`,
            `zero_readout` (false where it is left out) and what the model reads.
        input_shape: Shape of one input.
        num_outputs: Number of outputs.
        convolution_method: How convolutions are computed, one of
            `models.convolution.CONVOLUTION_METHODS`.

    Returns:
        The network.

    Raises:
        InputError: The inputs do not suit the model, or a user's model cannot be used.
    """
    model = hyperparameters["model"]
    if is_user_model(model):
        # Not what runs of one program differ in: they share their network.
        own = {k: v for k, v in hyperparameters.items() if k not in VECTORISED_HYPERPARAMETERS}
        return load_user_model(model)(own, input_shape, num_outputs)
    layers = Layers(
        parametrisation=hyperparameters["parametrisation"],
        weight_scale=hyperparameters["weight_scale"],
        bias_scale=hyperparameters["bias_scale"],
        width=hyperparameters["width"],
        dtype=jnp.dtype(parameter_dtype(hyperparameters["precision"])),
        convolution_method=convolution_method,
    )
    factory = FACTORIES[model_entry(model)["function"]]
    network = factory(hyperparameters, input_shape, num_outputs, layers)
    return zero_readout(network) if hyperparameters.get("zero_readout") else network
