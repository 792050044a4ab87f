"""From a network to a network: the same function, from another library or computed another way."""

from robustjax.transforms._quicken import quicken
from robustjax.transforms._torch import from_torch_module

__all__ = ["from_torch_module", "quicken"]
