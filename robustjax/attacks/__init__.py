"""Attacks: `attack(logits_fn, key, images, labels, *, epsilon, ...) -> images`, pure functions for any JAX network."""

from robustjax.attacks import geometry, losses
from robustjax.attacks.pgd import fgsm, n_fgsm, pgd

__all__ = ["fgsm", "geometry", "losses", "n_fgsm", "pgd"]
