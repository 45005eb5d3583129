"""What a dataset's definition says of it before anything is prepared."""

from collections.abc import Mapping
from typing import Any

from sgdphases.datasets.definition import mixture_shape
from sgdphases.datasets.views import Facts


def facts_of_definition(definition: Mapping[str, Any]) -> Facts:
    """What is known of a dataset from its definition.

    Args:
        definition: The definition, validated.

    Returns:
        The facts; of sources that read files, little.
    """
    num_train, num_test = definition.get("num_train"), definition.get("num_test")
    match definition["source"]:
        case "digits":
            return Facts("classification", 10, 1437, 360, (8, 8, 1))
        case "cifar5m":
            return Facts("classification", 10, input_shape=(32, 32, 3))
        case "tiny_imagenet":
            return Facts("classification", 200, 100_000, 10_000, (64, 64, 3))
        case "tfds":
            # Of texts, the number of tokens; the sizes of images the builder knows.
            shape = (definition["length"],) if "length" in definition else None
            return Facts("classification", input_shape=shape)
        case "folder":
            return Facts("classification")
        case "points":
            count = len(definition["inputs"])
            num_inputs, num_targets = (len(definition[k][0]) for k in ("inputs", "targets"))
            return Facts("regression", num_targets, count, count, (num_inputs,))
        case "gaussian":
            shape = (definition["input_dim"],)
            return Facts("regression", definition["output_dim"], num_train, num_test, shape)
        case "gaussian_mixture":
            num_classes, shape_of_input = definition["num_classes"], mixture_shape(definition)
            return Facts("classification", num_classes, num_train, num_test, shape_of_input)
        case "single_index":
            shape = (definition["input_dim"],)
            return Facts("regression", 1, num_train, num_test, shape, is_stream=True)
    # Of other sources, what their data say shows when they are loaded.
    return Facts(num_outputs=definition.get("num_classes"))
