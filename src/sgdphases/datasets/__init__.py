"""Datasets: YAML definitions, the arrays prepared from them, and loading those arrays.

A dataset is one file `config/datasets/<name>.yaml`. `load_definition` reads it, `prepare` turns it
into a folder of memory-mappable arrays with a manifest, and `load` gives normalised arrays.
Importing this package imports neither JAX nor TensorFlow.
"""

from sgdphases.datasets.definition import load_definition, validate_definition
from sgdphases.datasets.loading import Dataset, load, verify
from sgdphases.datasets.preparation import prepare

__all__ = ["Dataset", "load", "load_definition", "prepare", "validate_definition", "verify"]
