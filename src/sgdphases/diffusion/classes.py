"""Which image of a generated dataset has which class."""

import numpy as np
import numpy.typing as npt


def shard_classes(shard: int, size: int, num_classes: int) -> npt.NDArray[np.int32]:
    """Classes of a shard's images, in turn over the whole dataset: image i has class i mod k.

    Args:
        shard: Number of the shard, from 0.
        size: Images per shard.
        num_classes: k.

    Returns:
        (size,).
    """
    return (np.arange(shard * size, (shard + 1) * size) % num_classes).astype(np.int32)
