"""MultiTargeted: one run of PGD towards every wrong class."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry, losses
from robustjax.attacks._pgd import pgd
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.search import likeliest_wrong, network_key
from robustjax.attacks.eot import expected_logits_fn, expected_outcome
from robustjax.types import Array, Key, LogitsFn


def multi_targeted(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    step_size: Array | float,
    num_steps: int,
    num_targets: int | None = None,
    norm: str = "linf",
    random_start: bool | str = True,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
) -> Array:
    r"""MultiTargeted attack (Gowal et al. 2019, arXiv 1910.09338): PGD on :math:`z_t - z_y` for each class t.

    Args:
        logits_fn: images -> logits [B, K]; with `eot_samples >= 1`, (images, key) -> logits.
        key: a typed key.
        images, labels, epsilon, step_size, num_steps, norm, random_start, bounds, eot_samples: as in `pgd`.
        num_targets: how many of the likeliest wrong classes are aimed at; all of them by default.

    Returns:
        Each example's best end of a run, by (misclassified share, margin), inside ball and box.

    Raises:
        ValueError: as `pgd`, and for `num_targets` below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> multi_targeted(linear, jax.random.key(0), images, labels, epsilon=0.1, step_size=0.05, num_steps=5).ravel()
        Array([0.4, 0.4], dtype=float32)
    """
    if num_targets is not None and num_targets < 1:
        raise ValueError(f"num_targets must be at least 1, got {num_targets}")
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    logits = expected_logits_fn(logits_fn, network_key(key), num_samples=eot_samples)(images)
    targets = likeliest_wrong(logits, labels, num_targets or logits.shape[-1] - 1)

    def run(i: Array, best: Best) -> Best:
        key_climb, key_outcome = jax.random.split(jax.random.fold_in(key, i))
        points = pgd(
            logits_fn,
            key_climb,
            images,
            labels,
            epsilon=epsilon,
            step_size=step_size,
            num_steps=num_steps,
            norm=norm,
            random_start=random_start,
            loss=lambda logits, labels: losses.targeted_margin(logits, labels, targets[i]),
            bounds=bounds,
            eot_samples=eot_samples,
        )
        return best.or_better(
            points,
            *expected_outcome(logits_fn, key_outcome, points, labels, loss=losses.margin, num_samples=eot_samples),
        )

    return jax.lax.fori_loop(0, targets.shape[0], run, Best.none(images)).images
