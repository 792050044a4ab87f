"""From a network to a network, by its program: the same function, computed or differentiated another way."""

from robustjax.transforms._quicken import quicken

__all__ = ["quicken"]
