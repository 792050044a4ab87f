"""Attacks: `attack(logits_fn, key, images, labels, *, epsilon, ...) -> images`, pure functions for any JAX network."""

from robustjax.attacks import geometry, losses
from robustjax.attacks.apgd import apgd
from robustjax.attacks.autoattack import AutoAttackResult, autoattack
from robustjax.attacks.cw import cw
from robustjax.attacks.deepfool import deepfool
from robustjax.attacks.fab import fab
from robustjax.attacks.multi_targeted import multi_targeted
from robustjax.attacks.optimized import optimized_pgd
from robustjax.attacks.pgd import fgsm, n_fgsm, pgd
from robustjax.attacks.square import square

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
