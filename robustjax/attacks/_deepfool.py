"""DeepFool: repeated steps to the nearest linearised decision boundary."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.hyperplane import dual_norm, nearest_boundary
from robustjax.attacks.engine.search import network_key
from robustjax.attacks.engine.verify import is_correct
from robustjax.attacks.eot import expected_logits_fn
from robustjax.types import Array, InputError, Key, LogitsFn


def deepfool(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    norm: str = "l2",
    num_steps: int = 50,
    overshoot: float = 0.02,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
) -> Array:
    r"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599): a small perturbation that changes the prediction.

    Each step goes the shortest way onto the nearest decision boundary of the network linearised at the current point,

    .. math:: r_{i+1} = r_i + \frac{|f_k|}{\|w_k\|_q^q}\, |w_k|^{q-1} \mathrm{sign}(w_k), \quad
              x_i = \mathrm{clip}\bigl(x + (1 + \eta)\, r_i\bigr)

    where :math:`f_k = z_k - z_y` and :math:`w_k = \nabla_x f_k` at :math:`x_i`, k is the class whose boundary is
    nearest, :math:`|f_k| / \|w_k\|_q` away, and q is the dual exponent: 2 for l2, 1 for linf. :math:`\eta` is
    ``overshoot``. An example stops once it is misclassified. The perturbation is small but not the smallest;
    :func:`fab` goes on to look for nearer ones.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with ``eot_samples >=
            1``, (images, key) -> those.
        key: a typed key, or one for each example [B]; only EOT draws from it.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B]; already misclassified images are returned as they are.
        norm: "l2" or "linf", in which the perturbation is to be small.
        num_steps: linearisations at most, from 0.
        overshoot: share of the perturbation that is added to cross the boundary, a number >= 0.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages the logits over n keys, the same in every step; 0 for deterministic networks.

    Returns:
        Images of the same shape and dtype, inside the box. There is no ball: how far they are is what the attack finds
        out, and one that was not misclassified in time is where its last step led. An empty batch is returned as it is.

    Raises:
        InputError: for another norm, negative counts, or arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> deepfool(linear, jax.random.key(0), images, labels).ravel().round(2)
        Array([0.45, 0.45], dtype=float32)
    """
    if not isinstance(norm, str) or norm not in ("l2", "linf"):
        raise InputError(f"norm must be l2 or linf, got {norm!r}; choose one of these")
    inputs.at_least(0, num_steps=num_steps)
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"overshoot": overshoot},
        eot_samples=eot_samples, keys_per_example=True,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    images, labels, bounds = given.images, given.labels, given.bounds
    logits = expected_logits_fn(given.logits_fn, network_key(key), num_samples=eot_samples)

    def moved(delta: Array) -> Array:
        return jnp.clip(
            images + (1.0 + geometry.per_example(overshoot, images)) * delta, *geometry.walls(bounds, images)
        )

    def step(_: Array, delta: Array) -> Array:
        points = moved(delta)
        lead, normals = nearest_boundary(logits, points, labels, norm=norm)
        # The nearest boundary's sign does not tell whether another class leads.
        wrong = ~is_correct(logits(points), labels)
        dual = dual_norm(normals, norm=norm)
        length = jnp.where(wrong | (dual == 0), 0.0, jnp.abs(lead) / jnp.where(dual > 0, dual, 1.0) + 1e-6)
        direction = geometry.get(norm).steepest(normals, points, bounds)
        return delta + geometry.per_example(length, images) * direction

    delta = jax.lax.fori_loop(0, num_steps, step, jnp.zeros_like(images))
    return given.returned(moved(delta))
