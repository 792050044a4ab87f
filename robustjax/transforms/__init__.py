"""Functions of networks: read a program, relax its derivatives, convert it from PyTorch, or compute it faster."""

from robustjax.transforms._inspect import Finding, Findings, inspect
from robustjax.transforms._quicken import quicken
from robustjax.transforms._relax import relax
from robustjax.transforms._torch import from_torch_module

__all__ = ["Finding", "Findings", "from_torch_module", "inspect", "quicken", "relax"]
