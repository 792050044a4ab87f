"""Convolution as networks and guards compute it."""

from robustjax.convolution.conv import conv2d

__all__ = ["conv2d"]
