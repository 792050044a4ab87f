"""Adversarial robustness of image classifiers in JAX: attacks, robust training, honest evaluation."""

from robustjax import attacks, defenses, objectives
from robustjax.version import __version__

__all__ = ["__version__", "attacks", "defenses", "objectives"]
