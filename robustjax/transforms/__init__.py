"""From a network to a network: read, with other derivatives, from another library, or computed another way."""

from robustjax.transforms._inspect import Finding, Findings, inspect
from robustjax.transforms._quicken import quicken
from robustjax.transforms._relax import relax
from robustjax.transforms._torch import from_torch_module

__all__ = ["Finding", "Findings", "from_torch_module", "inspect", "quicken", "relax"]
