"""Layers that models and defenses are both built from."""

from robustjax.layers.batch_norm import BatchNorm
from robustjax.layers.convolution import conv2d

__all__ = ["BatchNorm", "conv2d"]
