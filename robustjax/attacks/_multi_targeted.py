"""MultiTargeted: one run of PGD towards every wrong class."""

from __future__ import annotations

from typing import Any

import jax

from robustjax.attacks import geometry, losses
from robustjax.attacks._pgd import ascend, check_random_start
from robustjax.attacks.engine import inputs
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
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with ``eot_samples >=
            1``, (images, key) -> those.
        key: a typed key.
        images, labels, epsilon, step_size, num_steps, norm, random_start, bounds, eot_samples: as in :func:`pgd`.
        num_targets: how many of the likeliest wrong classes are aimed at; all of them by default.

    Returns:
        Each example's best end of a run, by (share of draws misclassified, margin), inside ball and box, in the dtype
        given. An empty batch is returned as it is.

    Raises:
        InputError: as :func:`pgd`, and for ``num_targets`` below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> multi_targeted(linear, jax.random.key(0), images, labels, epsilon=0.1, step_size=0.05, num_steps=5).ravel()
        Array([0.4, 0.4], dtype=float32)
    """
    inputs.at_least(0, num_steps=num_steps)
    if num_targets is not None:
        inputs.static(1, num_targets=num_targets)
    check_random_start(random_start)
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon, "step_size": step_size},
        loss=losses.margin, eot_samples=eot_samples,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    logits = expected_logits_fn(given.logits_fn, network_key(key), num_samples=eot_samples)(given.images)
    targets = likeliest_wrong(logits, given.labels, num_targets or logits.shape[-1] - 1)

    def run(i: Array, best: Best) -> Best:
        def towards_target(outputs: Any, labels: Array) -> Array:
            return losses.targeted_margin(getattr(outputs, "logits", outputs), labels, targets[i])

        key_points, key_outcome = jax.random.split(jax.random.fold_in(key, i))
        points = ascend(
            given._replace(loss=towards_target), key_points, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
            norm=norm, random_start=random_start, eot_samples=eot_samples,
        )  # fmt: skip
        outcome = expected_outcome(
            given.logits_fn, key_outcome, points, given.labels, loss=given.loss, num_samples=eot_samples
        )
        return best.or_better(points, *outcome)

    return given.returned(jax.lax.fori_loop(0, targets.shape[0], run, Best.none(given.images)).images)
