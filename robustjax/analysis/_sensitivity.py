"""How much each neuron changes under attack, and the accuracy with the most sensitive ones restored (SNS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.analysis.estimate import Estimate, bootstrap
from robustjax.defenses import sns
from robustjax.ops import global_average_pool
from robustjax.types import AnyArray, Array, InputError

MEANINGS = {
    "sensitivity": "mean over layers and neurons of |F(x) - F(x')|; adversarial training and SNS claim to lower it",
    "relative_sensitivity": "the same over the layer's mean |F(x)|, which does not change with the features' scale",
}


class Sensitivity(NamedTuple):
    """How much neurons change under attack.

    Attributes:
        by_site: site -> sensitivity of its neurons, [C].
        relative: site -> the same over the layer's mean magnitude, [C]; 0 in a layer that is 0.
        estimates: "sensitivity" and "relative_sensitivity"; each says what it is in ``meaning``.
    """

    by_site: Mapping[str, np.ndarray]
    relative: Mapping[str, np.ndarray]
    estimates: Mapping[str, Estimate]


def sensitivity(movement: Mapping[str, np.ndarray], magnitude: Mapping[str, np.ndarray]) -> Sensitivity:
    """Neuron sensitivity layer by layer (Zhang, Liu et al. 2021, arXiv 1909.06978).

    Args:
        movement: site -> mean over positions of ``|F(x) - F(x')|``, [N, C]; N at least 2.
        magnitude: site -> mean over positions of ``|F(x)|``, [N, C].

    Returns:
        A :class:`Sensitivity`.

    Raises:
        InputError: there is no site, or the sites differ.

    Example:
        >>> seen = sensitivity({"dense": np.array([[1.0, 0.0], [3.0, 0.0]])}, {"dense": np.full((2, 2), 2.0)})
        >>> seen.by_site["dense"].tolist(), seen.estimates["relative_sensitivity"].value
        ([2.0, 0.0], 0.5)
    """
    if not movement or movement.keys() != magnitude.keys():
        raise InputError(
            f"movement and magnitude must be of the same sites, at least one, got {', '.join(movement) or 'none'} and "
            f"{', '.join(magnitude) or 'none'}"
        )
    shapes = {site: (np.shape(values), np.shape(magnitude[site])) for site, values in movement.items()}
    if wrong := [site for site, (one, other) in shapes.items() if one != other or len(one) != 2]:
        one, other = map(list, shapes[wrong[0]])
        raise InputError(f"movement and magnitude must be [N, C] of each site, got {one} and {other} of {wrong[0]}")
    moved = np.stack([values.astype(np.float64).mean(axis=1) for values in movement.values()])
    size = np.stack([magnitude[site].astype(np.float64).mean(axis=1) for site in movement])

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        by_layer, scale = moved[:, chosen].mean(axis=1), size[:, chosen].mean(axis=1)
        relative = by_layer[scale > 0] / scale[scale > 0]
        return {
            "sensitivity": float(by_layer.mean()),
            "relative_sensitivity": float(relative.mean()) if len(relative) else np.nan,
        }

    by_site = {site: values.mean(axis=0) for site, values in movement.items()}
    relative = {site: values / (float(magnitude[site].mean()) or np.inf) for site, values in by_site.items()}
    return Sensitivity(by_site, relative, bootstrap(statistic, moved.shape[1], meanings=MEANINGS))


class Restoration(NamedTuple):
    """Accuracy under attack with neurons restored.

    Attributes:
        attacked: bool [N], whether the network is right on the adversarial images.
        sensitive: site -> whether it is with the site's most sensitive neurons restored, bool [N].
        random: site -> how often it is with as many random ones restored, over the draws, [N].
        fraction: of the neurons of a site that are restored.
        estimates: "restoration_gap", the mean over sites of what the sensitive neurons restore beyond random ones.
    """

    attacked: np.ndarray
    sensitive: Mapping[str, np.ndarray]
    random: Mapping[str, np.ndarray]
    fraction: float
    estimates: Mapping[str, Estimate]


def restoration(
    module: Any,
    variables: Any,
    images: AnyArray,
    adversarial: AnyArray,
    labels: AnyArray,
    *,
    sites: Sequence[str] | None = None,
    fraction: float = 0.1,
    num_draws: int = 5,
    seed: int = 0,
    batch_size: int = 250,
) -> Restoration:
    """Accuracy on adversarial images when, at one site, some neurons take the values that the natural image gives them.

    The paper's claim: restoring the most sensitive neurons repairs more than restoring as many random ones.

    Args:
        module: a network of :func:`robustjax.models.create`, without randomness in inference.
        variables: of the network.
        images, adversarial: float32 [N, H, W, C], of the same examples; N at least 2.
        labels: integers [N].
        sites: that hold no guard; None: all such.
        fraction: in (0, 1], of the neurons of a site.
        num_draws: of random neurons.
        seed: of these draws.
        batch_size: images at a time.

    Returns:
        A :class:`Restoration`.

    Raises:
        InputError: a site holds a guard or is not a site of the network, or every site holds one.

    Example:
        >>> from robustjax import models
        >>> images = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
        >>> module = models.create("small_cnn")
        >>> variables = jax.jit(module.init)(jax.random.key(0), images)
        >>> same = restoration(module, variables, images, images, np.zeros(4, int), sites=["dense"], num_draws=1)
        >>> same.estimates["restoration_gap"].value
        0.0
    """
    images, adversarial, labels = (np.asarray(array) for array in (images, adversarial, labels))
    shapes = jax.eval_shape(module.apply, variables, images[:1]).features
    free = [site for site in shapes if site not in (module.guards or {})]
    sites = free if sites is None else list(sites)
    if not sites or set(sites) - set(free):
        wrong, allowed = ", ".join(sorted(set(sites) - set(free))) or "none", ", ".join(free) or "this network has none"
        raise InputError(f"sites must be some that hold no guard, got {wrong}; there are {allowed}")
    run = jax.jit(lambda variables, natural, changed, chosen: _restored(module, variables, natural, changed, chosen))
    size = min(batch_size, len(labels))

    def right(chosen: Mapping[str, np.ndarray]) -> np.ndarray:
        masks = {site: jnp.asarray(chosen.get(site, np.zeros(shapes[site].shape[-1], bool))) for site in sites}
        found = []
        for start in range(0, len(labels), size):
            part = np.minimum(np.arange(start, start + size), len(labels) - 1)
            logits, _ = run(variables, jnp.asarray(images[part]), jnp.asarray(adversarial[part]), masks)
            found.append(np.asarray(logits).argmax(axis=1) == labels[part])
        return np.concatenate(found)[: len(labels)]

    none = {site: jnp.zeros(shapes[site].shape[-1], bool) for site in sites}
    moved = {site: np.zeros(shapes[site].shape[-1]) for site in sites}
    for start in range(0, len(labels), size):
        part = np.minimum(np.arange(start, start + size), len(labels) - 1)
        _, movement = run(variables, jnp.asarray(images[part]), jnp.asarray(adversarial[part]), none)
        for site in sites:
            moved[site] += np.asarray(movement[site])[: len(labels) - start].sum(axis=0)
    rng = np.random.default_rng(seed)
    sensitive, random = {}, {}
    for site in sites:
        chosen = np.asarray(sns.select_sensitive(jnp.asarray(moved[site], jnp.float32), fraction=fraction))
        sensitive[site] = right({site: chosen})
        random[site] = np.mean([right({site: rng.permutation(chosen)}) for _ in range(num_draws)], axis=0)
    gains = np.stack([sensitive[site].astype(np.float64) - random[site] for site in sites])
    found = bootstrap(
        lambda chosen: {"restoration_gap": float(gains[:, chosen].mean())},
        len(labels),
        meanings={
            "restoration_gap": f"accuracy with the {fraction:.0%} most sensitive neurons of a layer restored, minus "
            "with as many random ones, mean over layers; above 0 as SNS claims"
        },
    )
    return Restoration(right({}), sensitive, random, fraction, found)


def _restored(
    module: Any, variables: Any, natural: Array, changed: Array, chosen: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Logits with the chosen neurons restored, and how far each neuron of the plain pass moves, site -> [B, C]."""
    clean, moved = (module.apply(variables, images).features for images in (natural, changed))

    def restoring(site: str) -> Any:
        def guard(features: Array, labels: Array | None = None, train: bool = False) -> tuple[Array, dict[str, Array]]:
            mask = chosen[site].reshape((1,) * (features.ndim - 1) + (-1,))
            return jnp.where(mask, clean[site], features), {}

        return guard

    guarded = module.clone(guards={**(module.guards or {}), **{site: restoring(site) for site in chosen}})
    movement = {site: global_average_pool(jnp.abs(clean[site] - moved[site])) for site in chosen}
    return guarded.apply(variables, changed).logits, movement
