"""Adversarial robustness of image classifiers in JAX: attacks, robust training, honest evaluation."""

import importlib

from robustjax.version import __version__

__all__ = ["__version__", "attacks", "data", "defenses", "evaluation", "models", "objectives", "runs"]


def __getattr__(name: str):
    """Imports a room when it is first asked for, so that a command can prepare its process before jax is loaded."""
    if name in __all__:
        return importlib.import_module(f"robustjax.{name}")
    raise AttributeError(f"module 'robustjax' has no attribute {name!r}")
