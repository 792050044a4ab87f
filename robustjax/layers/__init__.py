"""Layers that models and defenses are both built from."""

from robustjax.layers import pooling as pooling  # these two register primitives, like convolution
from robustjax.layers import random_bits as random_bits
from robustjax.layers.batch_norm import BatchNorm
from robustjax.layers.convolution import conv2d

__all__ = ["BatchNorm", "conv2d"]
