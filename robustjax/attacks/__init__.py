"""Attacks: `attack(logits_fn, key, images, labels, *, epsilon, ...) -> images`, pure functions for any JAX network."""

from robustjax.attacks import geometry, losses
from robustjax.attacks._apgd import apgd
from robustjax.attacks._autoattack import AutoAttackResult, autoattack
from robustjax.attacks._cw import cw
from robustjax.attacks._deepfool import deepfool
from robustjax.attacks._fab import fab
from robustjax.attacks._multi_targeted import multi_targeted
from robustjax.attacks._optimized_pgd import optimized_pgd
from robustjax.attacks._pgd import fgsm, n_fgsm, pgd
from robustjax.attacks._square import square

__all__ = [
    "AutoAttackResult",
    "apgd",
    "autoattack",
    "cw",
    "deepfool",
    "fab",
    "fgsm",
    "geometry",
    "losses",
    "multi_targeted",
    "n_fgsm",
    "optimized_pgd",
    "pgd",
    "square",
]
