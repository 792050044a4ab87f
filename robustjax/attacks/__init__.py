"""Attacks: ``attack(logits_fn, key, images, labels, *, epsilon, ...) -> images``, pure functions for any JAX network.

Besides the attacks there are :mod:`losses` and :mod:`geometry`, from which they are built; :mod:`eot`, averages over a
stochastic network's draws; :mod:`verify`, which decides whether an attack succeeded; and :func:`momentum`, an optimizer
for :func:`optimized_pgd`.
"""

from robustjax.attacks import eot, geometry, losses
from robustjax.attacks._apgd import apgd
from robustjax.attacks._autoattack import autoattack
from robustjax.attacks._autoattack_result import AutoAttackResult
from robustjax.attacks._cw import cw
from robustjax.attacks._deepfool import deepfool
from robustjax.attacks._fab import fab
from robustjax.attacks._fgsm import fgsm, n_fgsm
from robustjax.attacks._hopskipjump import hopskipjump
from robustjax.attacks._multi_targeted import multi_targeted
from robustjax.attacks._optimized_pgd import momentum as momentum  # an optimizer: `__all__` lists attacks
from robustjax.attacks._optimized_pgd import optimized_pgd
from robustjax.attacks._pgd import pgd
from robustjax.attacks._square import square
from robustjax.attacks.engine import verify

__all__ = [
    "AutoAttackResult",
    "apgd",
    "autoattack",
    "cw",
    "deepfool",
    "eot",
    "fab",
    "fgsm",
    "geometry",
    "hopskipjump",
    "losses",
    "multi_targeted",
    "n_fgsm",
    "optimized_pgd",
    "pgd",
    "square",
    "verify",
]
