"""Map how SGD training behaves over grids of hyperparameters."""

__version__ = "0.1.0"
