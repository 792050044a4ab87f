"""Networks whose robustness is known in closed form, and every way of calling an attack."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
SHAPE = (16, 4, 3, 2)
SIZE = 24
NUM_CLASSES = 5
RNG = np.random.default_rng(7)
IMAGES = jnp.asarray(RNG.uniform(0.4, 0.6, SHAPE), jnp.float32)
WEIGHTS = RNG.normal(size=(SIZE, NUM_CLASSES)).astype(np.float32)
CENTRES = RNG.uniform(0.3, 0.7, (NUM_CLASSES, SIZE)).astype(np.float32)
HIDDEN = jnp.asarray(RNG.normal(size=(SIZE, 16)) / 5, jnp.float32)
READOUT = jnp.asarray(RNG.normal(size=(16, NUM_CLASSES)), jnp.float32)


def smooth(images):
    return jnp.tanh(images.reshape(-1, SIZE) @ HIDDEN) @ READOUT


def linear(images):
    return (images.reshape(-1, SIZE) - 0.5) @ WEIGHTS


def linear_distances(norm):
    """Distance of each of IMAGES to the nearest decision boundary of `linear`, the box left aside, and its label."""
    logits = (np.asarray(IMAGES, np.float64).reshape(-1, SIZE) - 0.5) @ WEIGHTS
    labels = logits.argmax(1)
    distances = [
        min(
            (z[y] - z[k]) / np.linalg.norm(WEIGHTS[:, y] - WEIGHTS[:, k], DUAL[norm])
            for k in range(NUM_CLASSES)
            if k != y
        )
        for z, y in zip(logits, labels, strict=True)
    ]
    return np.array(distances, np.float32), jnp.asarray(labels)


def binary(images):
    """Two classes: the score of class 1 is linear, that of class 0 is 0."""
    score = (images.reshape(-1, SIZE) - 0.5) @ WEIGHTS[:, 0]
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def binary_distances(norm):
    """Distance of each of IMAGES to the decision boundary of `binary`, the box left aside, and its label."""
    score = (np.asarray(IMAGES, np.float64).reshape(-1, SIZE) - 0.5) @ WEIGHTS[:, 0]
    distances = np.abs(score) / np.linalg.norm(WEIGHTS[:, 0], DUAL[norm])
    return distances.astype(np.float32), jnp.asarray(score > 0, jnp.int32)


def nearest_centre(images):
    """Minus the distances to CENTRES: classes are Voronoi cells, whose walls are at a known l2 distance."""
    delta = images.reshape(-1, 1, SIZE) - jnp.asarray(CENTRES)[None]
    return -jnp.sqrt(jnp.sum(delta**2, axis=-1))


def voronoi_distances():
    """l2 distance of each of IMAGES to the wall of its cell, and its label."""
    squares = ((np.asarray(IMAGES, np.float64).reshape(-1, 1, SIZE) - CENTRES) ** 2).sum(-1)
    labels = squares.argmin(1)
    distances = [
        min((s[k] - s[y]) / (2 * np.linalg.norm(CENTRES[k] - CENTRES[y])) for k in range(NUM_CLASSES) if k != y)
        for s, y in zip(squares, labels, strict=True)
    ]
    return np.array(distances, np.float32), jnp.asarray(labels)


def transformed(attack, images, labels, *, key):
    """(name, adversarial images) of every way to call `attack(key, images, labels)` with one key per example."""
    keys = jax.random.split(key, len(images))
    yield "eager", attack(keys, images, labels)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("data")
    yield (
        "shard_map",
        jax.jit(jax.shard_map(attack, mesh=mesh, in_specs=(batch,) * 3, out_specs=batch))(keys, images, labels),
    )
    split = lambda x: x.reshape(2, 2, len(images) // 4, *x.shape[1:])  # noqa: E731
    both = jax.pmap(jax.vmap(attack))(split(keys), split(images), split(labels))
    yield "pmap and vmap", both.reshape(images.shape)
