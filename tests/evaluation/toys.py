"""Networks on 8 x 8 digits whose robustness is known, and wrappers that make a network look more robust than it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from robustjax import attacks
from robustjax.attacks.losses import cross_entropy
from robustjax.ops import straight_through

EPSILON = 0.1
NUM_CLASSES = 10
KEY = jax.random.key(0)


@functools.cache
def digits():
    """Training and test images [N, 8, 8, 1] in [0, 1] with labels, from scikit-learn's own files."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, :, :, None] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int32)
    return (images[200:], labels[200:]), (images[:96], labels[:96])


def mlp(params, images):
    hidden = jax.nn.relu(images.reshape(images.shape[0], -1) @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


@functools.cache
def trained(*, epsilon):
    """Parameters of `mlp` after training on PGD examples of this radius; 0 trains on the images as they are."""
    (images, labels), _ = digits()
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    keys = jax.random.split(KEY, 2)
    params = {
        "w1": jax.random.normal(keys[0], (64, 64)) / 8,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(keys[1], (64, NUM_CLASSES)) / 8,
        "b2": jnp.zeros(NUM_CLASSES),
    }

    def update(state, key):
        params, momentum = state
        rows = jax.random.randint(key, (128,), 0, len(labels))
        x, y = images[rows], labels[rows]
        network = functools.partial(mlp, params)
        x = attacks.pgd(network, key, x, y, epsilon=epsilon, step_size=epsilon / 4, num_steps=7)
        gradient = jax.grad(lambda params: jnp.mean(cross_entropy(mlp(params, x), y)))(params)
        momentum = jax.tree.map(lambda old, new: 0.9 * old + new, momentum, gradient)
        return (jax.tree.map(lambda value, step: value - 0.05 * step, params, momentum), momentum), None

    @jax.jit
    def train(params):
        return jax.lax.scan(update, (params, jax.tree.map(jnp.zeros_like, params)), jax.random.split(KEY, 1500))[0][0]

    return train(params)


def robust_network(images):
    """Plainly adversarially trained: what a clean report should look like."""
    return mlp(trained(epsilon=EPSILON), images)


def plain_network(images):
    """Trained on images as they are: broken at EPSILON."""
    return mlp(trained(epsilon=0.0), images)


def misleading(network, gradient_of):
    """The outputs of the one network with the gradient of the other."""
    return lambda images: straight_through(network(images), gradient_of(images))


@functools.cache
def linear_weights():
    return np.random.default_rng(3).normal(size=(64, 4)).astype(np.float32)


def linear(images):
    """Four classes by linear scores: robustness in closed form."""
    return (images.reshape(images.shape[0], -1) - 0.5) @ jnp.asarray(linear_weights())


def linear_examples(count):
    """Images well inside the box, their labels by `linear`, and their linf distances to the decision boundary."""
    images = np.random.default_rng(4).uniform(0.4, 0.6, (count, 8, 8, 1)).astype(np.float32)
    weights = linear_weights().astype(np.float64)
    logits = (images.reshape(count, -1).astype(np.float64) - 0.5) @ weights
    labels = logits.argmax(1)
    distances = [
        min((z[y] - z[k]) / np.abs(weights[:, y] - weights[:, k]).sum() for k in range(4) if k != y)
        for z, y in zip(logits, labels, strict=True)
    ]
    return images, labels.astype(np.int32), np.array(distances)
