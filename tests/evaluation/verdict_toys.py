"""Networks with a known answer: honest ones, and such as make an evaluation fail in one way each.

All of `toys()` are one function of images [N, 8, 8, 1] and of a dictionary of arrays, K = 10, so that one compilation
serves them all. Most of `ALONG` depend on u alone, how far the mean pixel is from 1/2 in units of EPSILON: the ball
around GREY reaches exactly u in [-1, 1], and class 0 is right.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from robustjax import attacks
from robustjax.attacks.losses import cross_entropy
from robustjax.ops import straight_through

EPSILON = 0.1
NUM_CLASSES = 10
KEY = jax.random.key(0)
COUNT = 96
OPTIMIZED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


@functools.cache
def digits():
    """Training and test images [N, 8, 8, 1] in [0, 1] with labels, from scikit-learn's own files."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, :, :, None] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int32)
    return (images[200:], labels[200:]), (images[:COUNT], labels[:COUNT])


GREY = np.full((COUNT, 8, 8, 1), 0.5, np.float32), np.zeros(COUNT, np.int32)


def mlp(params, images):
    hidden = jax.nn.relu(images.reshape(images.shape[0], -1) @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


@functools.cache
def trained(epsilon):
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
        if epsilon:
            x = attacks.pgd(network, key, x, y, epsilon=epsilon, step_size=epsilon / 4, num_steps=7)
        gradient = jax.grad(lambda params: jnp.mean(cross_entropy(mlp(params, x), y)))(params)
        momentum = jax.tree.map(lambda old, new: 0.9 * old + new, momentum, gradient)
        return (jax.tree.map(lambda value, step: value - 0.05 * step, params, momentum), momentum), None

    # So many small steps are worth a slower compiler, whatever the tests' own setting is.
    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def train(params):
        start = (params, jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(update, start, jax.random.split(KEY, 1500))[0][0]

    return train(params)


def _dense(toy, images):
    return toy["scale"] * mlp(toy["weights"], images)


def _masked(toy, images):
    """Of quantised images: no gradient anywhere."""
    return _dense(toy, jnp.round(images * 16.0) / 16.0)


def _softmax(toy, images):
    return jax.nn.softmax(_dense(toy, images))


def _nan_gradient(toy, images):
    return _dense(toy, images) + 0.0 * jnp.sqrt(0.0 * jnp.sum(images))


def _nan_logits(toy, images):
    """Of bright images."""
    bright = jnp.mean(images, axis=(1, 2, 3)) > 0.33
    return jnp.where(bright[:, None], jnp.nan, _dense(toy, images))


def _misleading(toy, images):
    """The gradient is that of the logits in another order."""
    logits = _dense(toy, images)
    return straight_through(logits, jnp.roll(logits, 1, axis=1))


def _along(toy, images):
    """Class 1 is ahead of class 0 by a piecewise linear function of u, the others are far behind."""
    u = (jnp.mean(images, axis=(1, 2, 3)) - 0.5) / EPSILON
    gap = jnp.interp(u, toy["points"], toy["values"])
    others = jnp.full((images.shape[0], NUM_CLASSES - 2), -5.0)
    return jnp.concatenate([jnp.zeros_like(u)[:, None], gap[:, None], others], axis=1)


def _of_batch(toy, images):
    """As if normalized by the statistics of the batch."""
    return _dense(toy, images - 0.5 * jnp.mean(images, axis=0, keepdims=True))


def _gates(toy, images):
    """Sixteen groups of pixels, each without effect until the one before is at its end: a long way for small steps."""
    moved = jnp.clip((images.reshape(-1, 16, 4).mean(axis=2) - 0.5) / EPSILON, -1.0, 1.0) + 0.05

    def next_group(state, moved):
        opened, total = state
        opened = jax.nn.relu(jnp.minimum(moved, 1.0) + opened - 1.0)
        return (opened, total + opened), None

    start = jnp.ones_like(moved[:, 0]), jnp.zeros_like(moved[:, 0])
    (_, total), _ = jax.lax.scan(next_group, start, moved.T)
    others = jnp.full((images.shape[0], NUM_CLASSES - 2), -5.0)
    return jnp.concatenate([jnp.zeros_like(total)[:, None], (total - 15.0)[:, None], others], axis=1)


def _crowd(toy, images):
    """Cross-entropy rises with u, as eight classes come nearer; the margin to the ninth falls meanwhile."""
    u = (jnp.mean(images, axis=(1, 2, 3)) - 0.5) / EPSILON
    crowd = jnp.tile((-3.0 + 3.0 * jnp.clip(u, 0.0, 0.5))[:, None], (1, NUM_CLASSES - 2))
    return jnp.concatenate([jnp.zeros_like(u)[:, None], (-1.25 - u)[:, None], crowd], axis=1)


FORWARD = (_dense, _masked, _softmax, _nan_gradient, _misleading, _along, _gates, _crowd, _of_batch, _nan_logits)


def network(toy, images):
    return jax.lax.switch(toy["forward"], FORWARD, toy, images)


def _toy(forward, *, epsilon=0.0, scale=1.0, points=(-1, -0.5, 0, 0.5, 0.9, 1), values=(0,) * 6):
    return jax.tree_util.Partial(
        network,
        {
            "forward": jnp.int32(FORWARD.index(forward)),
            "weights": trained(epsilon),
            "scale": jnp.float32(scale),
            "points": jnp.array(points, jnp.float32),
            "values": jnp.array(values, jnp.float32),
        },
    )


@functools.cache
def toys():
    """Name -> network."""
    return {
        "robust": _toy(_dense, epsilon=EPSILON),
        "undefended": _toy(_dense),
        "masked": _toy(_masked),
        "saturated": _toy(_dense, epsilon=EPSILON, scale=1e4),
        "softmax": _toy(_softmax, epsilon=EPSILON),
        "nan gradient": _toy(_nan_gradient),
        "nan logits": _toy(_nan_logits, epsilon=EPSILON),
        "misleading": _toy(_misleading),
        "constant": _toy(_along, values=(-1,) * 6),
        # A hill that small steps do not leave, on the way to where the class changes.
        "hill": _toy(_along, points=(-4, -0.3, 0.0, 0.2, 0.7, 4), values=(-4, -1.5, -1, -0.5, -2, 30)),
        # A watershed: only what starts beyond it gets to where the class changes.
        "watershed": _toy(_along, points=(-4, -1, 0.06, 0.9, 1, 4), values=(-0.1, -0.5, -2, 1, 2, 9)),
        # So narrow that longer steps pass over it.
        "spike": _toy(_along, points=(-4, 0.047, 0.0625, 0.078, 2, 4), values=(-2, -1.9, 1, -1.9, -1, -0.5)),
        "gates": _toy(_gates),
        "crowd": _toy(_crowd),
        "of batch": _toy(_of_batch),
    }


ALONG = ("constant", "hill", "watershed", "spike", "gates", "crowd", "noisy gradient")


def examples(name):
    """Images and labels that a toy is evaluated on."""
    if name in COINS:
        return digits()[1][0], np.zeros(COUNT, np.int32)
    return GREY if name in ALONG else digits()[1]


def linear_weights():
    return np.random.default_rng(3).normal(size=(64, 4)).astype(np.float32)


def linear(images):
    """Four classes by linear scores: robustness in closed form."""
    return (images.reshape(images.shape[0], -1) - 0.5) @ jnp.asarray(linear_weights())


def linear_examples(count, norm):
    """Images well inside the box, their labels by `linear`, and their distances to the decision boundary."""
    images = np.random.default_rng(4).uniform(0.4, 0.6, (count, 8, 8, 1)).astype(np.float32)
    weights, dual = linear_weights().astype(np.float64), {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    logits = (images.reshape(count, -1).astype(np.float64) - 0.5) @ weights
    labels = logits.argmax(1)
    distances = [
        min((z[y] - z[k]) / np.linalg.norm(weights[:, y] - weights[:, k], dual) for k in range(4) if k != y)
        for z, y in zip(logits, labels, strict=True)
    ]
    return images, labels.astype(np.int32), np.array(distances)


def _noisy(toy, images, key):
    """A smoothed network: every draw adds noise to the images."""
    return _dense(toy, images + 0.05 * jax.random.normal(key, images.shape))


def _few_pixels(toy, images, key):
    """Outputs do not depend on the key, but the gradient of a draw is that of one pixel in eight."""
    seen = jax.random.bernoulli(key, 0.125, images.shape[1:])[None]
    return _dense(toy, jnp.where(seen, images, jax.lax.stop_gradient(images)))


def _noisy_gradient(toy, images, key):
    """Outputs do not depend on the key, but noise drowns the gradient, eight times its size: u gets as far as it is
    averaged out."""
    logits = _along(toy, images)
    noise = 8.0 / (64 * EPSILON) * jnp.sum(images * jax.random.normal(key, images.shape), axis=(1, 2, 3))
    return straight_through(logits, logits.at[:, 1].add(noise))


def _tossed(tosses, images):
    """Class 0 in seven draws of ten, whatever the image; a trace of it in the logits, so that there is a gradient."""
    answer = jax.nn.one_hot((tosses > 0.7).astype(jnp.int32), NUM_CLASSES)
    return answer + 1e-3 * jnp.mean(images, axis=(1, 2, 3))[:, None] * jnp.arange(10.0)[None]


def _coin(toy, images, key):
    """The draws of an example depend on its place in the batch."""
    return _tossed(jax.random.uniform(key, images.shape[:1]), images)


def _content_coin(toy, images, key):
    """Every other image has other draws: each attack tosses anew."""
    bits = jax.lax.bitcast_convert_type(images.reshape(images.shape[0], -1), jnp.uint32)
    odd = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32)[None] + 1
    numbers = jnp.sum(bits * odd, axis=1, dtype=jnp.uint32)
    tosses = jax.vmap(lambda number: jax.random.uniform(jax.random.fold_in(key, number)))(numbers)
    return _tossed(tosses, images)


COINS = ("coin", "content coin")


@functools.cache
def stochastic_toys():
    """Name -> network of images and a key."""
    made = {
        "noisy": (_noisy, _toy(_dense, epsilon=EPSILON)),
        "few pixels": (_few_pixels, _toy(_dense)),
        "noisy gradient": (
            _noisy_gradient,
            _toy(_along, points=(-4, 0, 1, 2, 3, 4), values=(-4.82, -0.82, 0.18, 1.18, 2.18, 3.18)),
        ),
        "coin": (_coin, _toy(_dense)),
        "content coin": (_content_coin, _toy(_dense)),
    }
    return {name: jax.tree_util.Partial(forward, toy.args[0]) for name, (forward, toy) in made.items()}


class Verdicts(dict):
    """Name -> verdict, of which each is reached when it is asked for."""

    def __init__(self, reach):
        super().__init__()
        self.reach = reach

    def __missing__(self, name):
        self[name] = self.reach(name)
        return self[name]


def marked(names, slow):
    """Names as parameters, some of which take long and show again what others do."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def heads(toy, images):
    """Two auxiliary heads [2, B, K] that answer as a toy does."""
    logits = network(toy, images)
    return jnp.stack([logits, 0.5 * logits])


def heads_of(name):
    return jax.tree_util.Partial(heads, toys()[name].args[0])
