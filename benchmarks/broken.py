"""Broken defenses, each in a dozen lines from its paper's description; ``zoo.py`` and tests attack them.

Each is a function of a :class:`Network` of images [B, 8, 8, 1] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import defenses
from robustjax.ops import bpda
from robustjax.types import Array, Key, LogitsFn


class Network(NamedTuple):
    """A network in two parts: images -> activations, activations -> logits."""

    features: Callable[[Array], Array]
    head: Callable[[Array], Array]

    def __call__(self, images: Array) -> Array:
        return self.head(self.features(images))


class Defended(NamedTuple):
    """A defended network, and what an attack by hand uses in place of its gradient.

    Attributes:
        logits_fn: images, or images and a key, -> logits.
        by_hand: the same outputs with useful derivatives.
        plain: the network without the defense.
        stochastic: takes a key.
    """

    logits_fn: LogitsFn
    by_hand: LogitsFn
    plain: LogitsFn
    stochastic: bool = False


def before(prepare: Callable[[Array], Array]) -> Callable[[Network], Defended]:
    """A transformation of the images, with the identity as its derivative by hand."""
    known = bpda(lambda x: prepare(jax.lax.stop_gradient(x)), lambda x: x)
    return lambda network: Defended(
        lambda images: network(prepare(images)), lambda images: network(known(images)), network
    )


def bit_depth(images: Array) -> Array:
    """Feature squeezing (Xu et al. 2018): two bits a pixel."""
    return jnp.round(3.0 * images) / 3.0


def jpeg(images: Array) -> Array:
    """JPEG compression (Guo et al. 2018): the cosine transform of blocks of 8 x 8, rounded."""
    k, x = np.arange(8)[:, None], np.arange(8)[None]
    basis = np.where(k == 0, np.sqrt(1 / 8), 0.5 * np.cos(np.pi * (2 * x + 1) * k / 16))
    basis = jnp.asarray(basis, jnp.float32)
    steps = jnp.asarray(0.1 + 0.05 * (k + x), jnp.float32)[None, :, :, None]
    blocks = jnp.einsum("ki,bijc,lj->bklc", basis, images, basis)
    return jnp.einsum("ki,bklc,lj->bijc", basis, jnp.round(blocks / steps) * steps, basis)


def thermometer(images: Array) -> Array:
    """Thermometer encoding (Buckman et al. 2018): how many of eight levels a pixel reaches."""
    levels = (jnp.arange(8.0) + 0.5) / 8.0
    return jnp.mean((images[..., None] >= levels.reshape((1,) * images.ndim + (8,))).astype(jnp.float32), axis=-1)


def median(images: Array) -> Array:
    """Spatial smoothing (Xu et al. 2018): the median of a cross of five pixels."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return jnp.median(jnp.stack([padded[:, i : i + height, j : j + width] for i, j in places]), axis=0)


def binarised(images: Array) -> Array:
    """Binary inputs (Qiu et al. 2018)."""
    return 0.5 + 0.5 * jnp.sign(images - 0.5)


def purified(images: Array) -> Array:
    """Total-variation minimisation in the forward pass (Guo et al. 2018)."""

    def roughness(x: Array) -> Array:
        across, down = jnp.diff(x, axis=2), jnp.diff(x, axis=1)
        return (
            jnp.sum((x - images) ** 2)
            + 0.3 * jnp.sum(jnp.sqrt(across**2 + 1e-2))
            + 0.3 * jnp.sum(jnp.sqrt(down**2 + 1e-2))
        )

    return jax.lax.fori_loop(0, 10, lambda i, x: x - 0.1 * jax.grad(roughness)(x), images)


def denoised_in_python(images: Array) -> Array:
    """A filter that is no JAX program: levels in NumPy."""
    cut = lambda x: np.round(4 * np.asarray(x)).astype(np.float32) / 4  # noqa: E731
    return jax.pure_callback(cut, jax.ShapeDtypeStruct(images.shape, images.dtype), images, vmap_method="expand_dims")


def flattened_in_python(images: Array) -> Array:
    """The same, but nothing that Python is given has the shape of what it returns."""
    cut = lambda x: np.round(4 * np.asarray(x)).astype(np.float32).reshape(*x.shape[:-3], 64) / 4  # noqa: E731
    shape = jax.ShapeDtypeStruct((images.shape[0], 64), images.dtype)
    return jax.pure_callback(cut, shape, images, vmap_method="expand_dims").reshape(images.shape)


def resized(images: Array, key: Key) -> Array:
    """Random resizing and padding (Xie et al. 2018)."""
    key_scale, key_place = jax.random.split(key)
    scale = jax.random.uniform(key_scale, (2,), jnp.float32, 0.8, 1.0)
    shift = jax.random.uniform(key_place, (2,), jnp.float32) * (1.0 - scale) * 8.0
    return jax.vmap(lambda x: jax.image.scale_and_translate(x, x.shape, (0, 1), scale, shift, "linear"))(images)


def dropped(images: Array, key: Key) -> Array:
    """Random pixels missing (Feinman et al. 2017 drop units at test time)."""
    return jnp.where(jax.random.bernoulli(key, 0.9, images.shape), images, jnp.zeros_like(images))


def noisy_levels(images: Array, key: Key) -> Array:
    """Noise, then levels (Raff et al. 2019 combine such)."""
    return bit_depth(images + 0.02 * jax.random.normal(key, images.shape))


def at_random(
    prepare: Callable[..., Array], by_hand: Callable[..., Array] | None = None
) -> Callable[[Network], Defended]:
    """A random transformation of the images, averaged over by hand."""
    return lambda network: Defended(
        lambda images, key: network(prepare(images, key)),
        lambda images, key: network((by_hand or prepare)(images, key)),
        lambda images, key: network(images), True,
    )  # fmt: skip


def distilled(network: Network) -> Defended:
    """Defensive distillation (Papernot et al. 2016): probabilities of logits a thousand times too large."""
    return Defended(lambda images: jax.nn.softmax(1000.0 * network(images)), network, network)


def winners(network: Network) -> Defended:
    """k-Winners-Take-All (Xiao et al. 2020) on the hidden activations."""
    keep = partial(defenses.kwta.k_winners, fraction=0.2)
    made = [lambda images, f=f: network.head(f(network.features(images))) for f in (keep, bpda(keep, lambda x: x))]
    return Defended(made[0], made[1], network)


def pruned(network: Network) -> Defended:
    """Stochastic Activation Pruning (Dhillon et al. 2018) of the hidden activations."""

    def with_identity(hidden: Array, key: Key) -> Array:
        return bpda(lambda h: defenses.sap.prune(key, h), lambda h: h)(hidden)

    return Defended(
        lambda images, key: network.head(defenses.sap.prune(key, network.features(images))),
        lambda images, key: network.head(with_identity(network.features(images), key)),
        lambda images, key: network(images), True,
    )  # fmt: skip


def mean_sparse(network: Network) -> Defended:
    """MeanSparse (Amini et al. 2024), of statistics of the activations of grey images."""

    def sparse(x: Array) -> Array:
        mean, deviation = 0.5, 0.8
        return jnp.where(jnp.abs(x - mean) < 0.5 * deviation, jnp.full_like(x, mean), x)

    made = [lambda images, f=f: network.head(f(network.features(images))) for f in (sparse, bpda(sparse, lambda x: x))]
    return Defended(made[0], made[1], network)


def votes(network: Network) -> Defended:
    """An ensemble by vote over shifted images."""
    views = lambda images: [jnp.roll(images, (i, j), (1, 2)) for i, j in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]  # noqa: E731
    vote = lambda images: sum(jax.nn.one_hot(jnp.argmax(network(view), axis=1), 10) for view in views(images))  # noqa: E731
    mean = lambda images: sum(jax.nn.softmax(network(view)) for view in views(images))  # noqa: E731
    return Defended(vote, bpda(vote, mean), network)


def detached(network: Network) -> Defended:
    """Images behind a stop_gradient."""
    return Defended(lambda images: network(jax.lax.stop_gradient(images)), network, network)


def lying(network: Network) -> Defended:
    """A derivative rule that is not the function's."""

    @jax.custom_jvp
    def same(x: Array) -> Array:
        return 1.0 * x

    same.defjvp(lambda primals, tangents: (same(*primals), -tangents[0]))
    return Defended(lambda images: network(same(images)), network, network)


def squeezing_detector(network: Network, images: Array) -> Callable[[Array], Defended]:
    """A detector that rejects images whose probabilities change with two bits a pixel (Xu et al. 2018).

    An attack succeeds where an image is misclassified and accepted. Of images of one class that is a network, whose
    logit of the class is raised to the score that rejects: class -> network.

    Args:
        network: of the classes.
        images: honest ones, of which one in twenty is rejected.
    """
    known = bpda(lambda x: bit_depth(jax.lax.stop_gradient(x)), lambda x: x)

    def change(squeeze: Callable[[Array], Array], images: Array) -> Array:
        return jnp.sum(jnp.abs(jax.nn.softmax(network(images)) - jax.nn.softmax(network(squeeze(images)))), axis=1)

    limit = jnp.quantile(change(bit_depth, images), 0.95)

    def accepted(squeeze: Callable[[Array], Array], label: Array, images: Array) -> Array:
        logits = network(images)
        rejects = jnp.max(logits, axis=1) + 10.0 * (change(squeeze, images) - limit)
        own = jnp.arange(logits.shape[1])[None] == label
        return jnp.where(own, jnp.maximum(logits, rejects[:, None]), logits)

    functions = [partial(accepted, squeeze) for squeeze in (bit_depth, known)]
    functions.append(lambda label, images: network(images))
    # The class is an argument of what is compiled.
    return lambda label: Defended(*(jax.tree_util.Partial(function, label) for function in functions))


ZOO: dict[str, Callable[[Network], Defended]] = {
    "bit_depth": before(bit_depth),
    "jpeg": before(jpeg),
    "thermometer": before(thermometer),
    "median": before(median),
    "binarised": before(binarised),
    "purified": before(purified),
    "python": before(denoised_in_python),
    "python_flattened": before(flattened_in_python),
    "resized": at_random(resized),
    "dropped": at_random(dropped),
    "noisy_levels": at_random(noisy_levels, lambda images, key: bpda(noisy_levels, lambda x, key: x)(images, key)),
    "distilled": distilled,
    "winners": winners,
    "pruned": pruned,
    "mean_sparse": mean_sparse,
    "votes": votes,
    "detached": detached,
    "lying": lying,
    "none": before(lambda images: images),
}  # fmt: skip
