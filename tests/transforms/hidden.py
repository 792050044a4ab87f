"""Networks that hide a rounding two calls deep, one written with each library; and small functions with one thing each.

All are functions of images [B, 4, 4, 1] with three classes.
"""

import jax
import jax.numpy as jnp
import numpy as np

IMAGES = np.random.default_rng(0).uniform(size=(2, 4, 4, 1)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
KEY = jax.random.key(3)


def quantised(x):
    return jnp.round(4.0 * x) / 4.0


def prepared(x):
    return quantised(jnp.square(x))


def line_of(function, offset=1):
    """As a finding names a line of a function, counted from its first."""
    code = function.__code__
    return f"{code.co_firstlineno + offset} ({code.co_name})"


HIDDEN = line_of(quantised)


def linear(x):
    return x.reshape(x.shape[0], -1) @ jnp.asarray(WEIGHTS)


def plain(images):
    return linear(prepared(images))


def linen():
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(nn.relu(nn.Conv(2, (3, 3))(prepared(images))).reshape(len(images), -1))

    module = Network()
    variables = module.init(KEY, IMAGES)
    return jax.jit(lambda images: module.apply(variables, images))


def linen_jitted_apply():
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(prepared(images).reshape(len(images), -1))

    module = Network()
    return jax.tree_util.Partial(jax.jit(module.apply), module.init(KEY, IMAGES))


def nnx():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(16, 3, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.dense(nnx.relu(prepared(images)).reshape(len(images), -1))

    return nnx.jit(Network())


def equinox():
    import equinox as eqx

    class Network(eqx.Module):
        dense: eqx.nn.Linear

        def __call__(self, image):
            return self.dense(jax.nn.relu(prepared(image)).ravel())

    return jax.vmap(Network(eqx.nn.Linear(16, 3, key=KEY)))


LIBRARIES = {
    "plain": lambda: plain, "linen": linen, "linen, jitted apply": linen_jitted_apply, "nnx": nnx, "equinox": equinox,
}  # fmt: skip


@jax.custom_jvp
def lying(x):
    return jnp.square(x)


lying.defjvp(lambda primals, tangents: (lying(*primals), -tangents[0]))


@jax.custom_jvp
def honest(x):
    return jnp.square(x)


honest.defjvp(lambda primals, tangents: (honest(*primals), 2.0 * primals[0] * tangents[0]))


@jax.custom_vjp
def lying_vjp(x):
    return jnp.square(x)


lying_vjp.defvjp(lambda x: (jnp.square(x), None), lambda kept, slope: (jnp.zeros_like(slope),))


@jax.custom_vjp
def rounded_vjp(x):
    """Its rule is right: of rounding there is no derivative."""
    return jnp.round(4.0 * x)


rounded_vjp.defvjp(lambda x: (rounded_vjp(x), None), lambda kept, slope: (jnp.zeros_like(slope),))


@jax.custom_jvp
def rounded_jvp(x):
    return jnp.round(4.0 * x)


rounded_jvp.defjvp(lambda primals, tangents: (rounded_jvp(*primals), jnp.zeros_like(tangents[0])))


@jax.custom_vjp
def lying_masked(x, mask):
    return jnp.where(mask, x, 0.0)


lying_masked.defvjp(lambda x, mask: (lying_masked(x, mask), None), lambda kept, slope: (jnp.zeros_like(slope), None))


@jax.custom_vjp
def lying_noisy(x, key):
    return x + jax.random.normal(key, x.shape)


lying_noisy.defvjp(lambda x, key: (lying_noisy(x, key), None), lambda kept, slope: (jnp.zeros_like(slope), None))


@jax.custom_vjp
def honest_masked(x, mask, key):
    return jnp.where(mask, x * jax.random.normal(key, x.shape), 0.0)


honest_masked.defvjp(
    lambda x, mask, key: (honest_masked(x, mask, key), (mask, key)),
    lambda kept, slope: (honest_masked(slope, *kept), None, None),
)

CLOSED_OVER = 2.0 * jnp.asarray(WEIGHTS)


@jax.custom_jvp
def closed_over(x):
    return x.reshape(x.shape[0], -1) @ CLOSED_OVER


closed_over.defjvp(lambda primals, tangents: (closed_over(*primals), 2.0 * linear(tangents[0])))


@jax.custom_vjp
def closed_over_vjp(x):
    return x.reshape(x.shape[0], -1) @ CLOSED_OVER


closed_over_vjp.defvjp(
    lambda x: (closed_over_vjp(x), None), lambda kept, slope: ((slope @ CLOSED_OVER.T).reshape(-1, 4, 4, 1),)
)


@jax.custom_vjp
def lying_closed_over(x):
    return x.reshape(x.shape[0], -1) @ CLOSED_OVER


lying_closed_over.defvjp(
    lambda x: (lying_closed_over(x), None), lambda kept, slope: (jnp.zeros((len(slope), 4, 4, 1)),)
)


@jax.custom_jvp
def raising(x):
    return jnp.square(x)


@raising.defjvp
def _raising_jvp(primals, tangents):
    raise RuntimeError("no gradient of this")


def largest(scores):
    return jnp.argmax(scores, axis=1)


def python(x):
    return jax.pure_callback(lambda y: np.round(4 * np.asarray(y)) / 4, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def descended(x):
    return jax.lax.fori_loop(0, 3, lambda i, c: c - 0.1 * jax.grad(lambda y: jnp.sum(linear(y) ** 2))(c), x)


def grown_each(x):
    """Every image as far as it needs."""
    return jax.vmap(lambda one: jax.lax.while_loop(lambda c: jnp.sum(c) < 15.0, lambda c: 1.1 * c, one))(x)


def bits_of(x):
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def of_bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.float32)


def steep(x):
    """Far out of [0, 1], on either side."""
    return 1000.0 * (x - 0.501)


LEVELS = np.linspace(0.0, 1.0, 17).astype(np.float32)


def binned(x, method="scan"):
    return jnp.searchsorted(jnp.asarray(LEVELS), x, method=method).astype(jnp.float32)


def histogram(x):
    return jax.vmap(lambda row: jnp.histogram(row, bins=3, range=(0.0, 1.0))[0])(x.reshape(len(x), -1))


def bins_counted(row):
    return jnp.bincount((3.0 * row).astype(jnp.int32), length=3)


def first_of(x):
    return jnp.select([x < 0.3, x < 0.6], [jnp.zeros_like(x), jnp.full_like(x, 0.5)], 1.0)


def of_integers(x):
    """As a quantised network multiplies."""
    weights = jnp.asarray(20.0 * WEIGHTS).astype(jnp.int8)
    return jax.lax.dot((127.0 * x).astype(jnp.int8).reshape(len(x), -1), weights, preferred_element_type=jnp.int32)


def counted(x):
    """How many of four levels a pixel is above."""
    return jnp.sum(x[..., 0, None] > jnp.arange(1.0, 5.0)[None, None, None] / 5.0, axis=3).astype(jnp.float32)


def levels(x):
    return jnp.where(x > 0.6, 2, jnp.where(x > 0.3, 1, 0)).astype(jnp.float32)


def grown(x):
    return jax.lax.while_loop(lambda c: jnp.sum(c) < 30.0, lambda c: 1.1 * c, x)


def median(x):
    """Of three neighbours in a row."""
    return jnp.sort(jnp.concatenate([x, jnp.roll(x, 1, axis=1), jnp.roll(x, -1, axis=1)], axis=3), axis=3)[..., 1:2]


def thermometer(x):
    levels = jnp.arange(1.0, 5.0)[None, None, None, :] / 5.0
    return jnp.sum((x >= levels).astype(jnp.float32), axis=3, keepdims=True)


def winners(x):
    scores = x.reshape(len(x), -1)
    least = jax.lax.top_k(scores, 4)[0][:, -1:]
    return jnp.where(scores >= least, scores, 0.0).reshape(x.shape)


def in_loop(x):
    return jax.lax.scan(lambda c, _: (jnp.round(8.0 * c) / 8.0, None), x, None, length=2)[0]


# Name -> (function of images, the kinds that its findings must have).
HIDES = {
    "round": (lambda x: linear(jnp.round(4.0 * x)), {"step"}),
    "floor in checkpoint": (lambda x: jax.checkpoint(lambda y: linear(jnp.floor(4.0 * y)))(x), {"step"}),
    "round in scan": (lambda x: linear(in_loop(x)), {"step"}),
    "sign in vmap": (lambda x: jax.vmap(lambda y: jnp.sign(y.ravel() - 0.5) @ WEIGHTS)(x), {"step"}),
    "cast": (lambda x: linear((4.0 * x).astype(jnp.int32).astype(jnp.float32)), {"integer"}),
    "lookup": (lambda x: linear(jnp.linspace(0.0, 1.0, 17)[(16.0 * x).astype(jnp.int32)]), {"integer"}),
    "detached": (lambda x: linear(jax.lax.stop_gradient(x)), {"detached"}),
    "detached in part": (lambda x: linear(x * jax.lax.stop_gradient(x)), {"detached"}),
    "detached twice": (lambda x: linear(jax.lax.stop_gradient(jax.lax.stop_gradient(x) ** 2)), {"detached"}),
    "lying rule": (lambda x: linear(lying(x)), {"custom_rule"}),
    "lying vjp": (lambda x: linear(jax.jit(lying_vjp)(x)), {"custom_rule"}),
    "lying rule of what closes over weights": (lambda x: lying_closed_over(x), {"custom_rule"}),
    "lying rule of a mask": (lambda x: linear(lying_masked(x, jnp.ones(x.shape, bool))), {"custom_rule"}),
    "lying rule of a key": (lambda x: linear(lying_noisy(x, KEY)), {"custom_rule", "random"}),
    "bits": (lambda x: linear(((255.0 * x).astype(jnp.uint8) >> 4 << 4).astype(jnp.float32)), {"integer"}),
    "bits of a float": (lambda x: linear(of_bits(bits_of(x) & 0x7FF80000)), {"integer"}),
    "shifted bits of a float": (lambda x: linear(of_bits(bits_of(x) >> 19 << 19)), {"integer"}),
    "rounding in an honest vjp": (lambda x: linear(rounded_vjp(x)), {"step"}),
    "rounding in an honest jvp": (lambda x: linear(jax.jit(rounded_jvp)(x)), {"step"}),
    "rounding in an honest vjp in a loop": (
        lambda x: linear(jax.lax.scan(lambda c, _: (jax.jit(rounded_vjp)(c), None), x, None, length=2)[0]),
        {"step"},
    ),
    "remainder": (lambda x: linear(x - jax.lax.rem(x, 0.125)), {"step"}),
    "floor division": (lambda x: linear(x // 0.125), {"step", "selection"}),
    "product of integers": (lambda x: of_integers(x).astype(jnp.float32), {"integer"}),
    "first of several": (lambda x: linear(first_of(x)), {"selection"}),
    "binned": (lambda x: linear(binned(x)), {"selection"}),
    "binned by comparing all": (lambda x: linear(binned(x, "compare_all")), {"selection"}),
    "histogram": (lambda x: histogram(x) @ jnp.asarray(WEIGHTS[:3]), {"selection"}),
    "bins counted": (
        lambda x: jax.vmap(bins_counted)(x.reshape(len(x), -1)).astype(jnp.float32) @ jnp.asarray(WEIGHTS[:3]),
        {"integer"},
    ),
    "clipped everywhere": (lambda x: linear(jnp.clip(steep(x), 0.0, 1.0)), {"selection"}),
    "bounded on both sides": (lambda x: linear(jnp.minimum(jnp.maximum(steep(x), 0.0), 1.0)), {"selection"}),
    "below a bound": (lambda x: linear(jnp.maximum(x - 2.0, 0.0)), {"selection"}),
    "chosen everywhere": (lambda x: linear(jax.nn.hard_tanh(steep(x))), {"selection"}),
    "masked bits": (lambda x: linear(((255.0 * x).astype(jnp.int32) & 0xF0).astype(jnp.float32)), {"integer"}),
    "counted": (lambda x: linear(counted(x)), {"selection"}),
    "integers": (lambda x: linear(jnp.where(x > 0.4, 1, 0).astype(jnp.float32)), {"selection"}),
    "levels": (lambda x: linear(levels(x)), {"selection"}),
    "booleans": (lambda x: linear(jnp.where(x > 0.4, True, x > 0.2).astype(jnp.float32)), {"selection"}),
    "sum of choices": (
        lambda x: linear(x) * (largest(linear(x)) + largest(-linear(x))).astype(jnp.float32)[:, None],
        {"selection"},
    ),
    "threshold": (lambda x: linear(jnp.where(x > 0.4, x, 0.0)), {"selection"}),
    "mask": (lambda x: linear(x * (x > 0.4).astype(jnp.float32)), {"selection"}),
    "winners": (lambda x: linear(winners(x)), {"selection"}),
    "one-hot": (lambda x: jax.nn.one_hot(largest(linear(x)), 3), {"selection"}),
    "chosen column": (lambda x: linear(x) * jnp.asarray(WEIGHTS[:3]).T[largest(linear(x))], {"selection"}),
    "branch": (
        lambda x: jax.lax.cond(jnp.mean(x) > 0.5, linear, lambda y: -linear(y), x),
        {"selection", "batch_dependent"},
    ),
    "thermometer": (lambda x: linear(thermometer(x)), {"selection"}),
    "clamped": (lambda x: linear(jax.lax.clamp(0.45, x, 0.55)), {"selection"}),
    "saturated": (lambda x: jax.nn.sigmoid(1000.0 * linear(x)), {"saturation"}),
    "saturated softmax": (lambda x: jax.nn.softmax(1000.0 * linear(x)), {"saturation"}),
    "python": (lambda x: linear(python(x)), {"callback"}),
    "descent": (lambda x: linear(descended(x)), {"inner_optimisation"}),
    "while": (lambda x: linear(grown(x)), {"inner_optimisation", "batch_dependent"}),
    "while of each": (lambda x: linear(grown_each(x)), {"inner_optimisation"}),
    "bfloat16": (lambda x: linear(x.astype(jnp.bfloat16).astype(jnp.float32)), {"precision"}),
    "batch statistics": (lambda x: linear(x - jnp.mean(x, axis=0, keepdims=True)), {"batch_dependent"}),
    "own key": (lambda x: linear(x + jax.random.normal(jax.random.key(0), x.shape)), {"random"}),
}

# What looks like hiding and is not.
HONEST = {
    "relu": lambda x: linear(jax.nn.relu(x - 0.5)),
    "leaky relu": lambda x: jax.nn.leaky_relu(linear(x)),
    "relu6": lambda x: linear(jax.nn.relu6(20.0 * x - 5.0)),
    "softplus far below": lambda x: jax.nn.softplus(linear(x) - 20.0),
    "elu far above": lambda x: jax.nn.elu(linear(x) + 50.0),
    "a norm within its bound": lambda x: linear(x * jnp.minimum(1.0, 100.0 / jnp.linalg.norm(x))),
    "relu by where": lambda x: (lambda z: jnp.where(z > 0, z, jnp.zeros_like(z)))(linear(x)),
    "elu": lambda x: jax.nn.elu(linear(x)),
    "gelu": lambda x: jax.nn.gelu(linear(x)),
    "silu": lambda x: jax.nn.silu(linear(x)),
    "softplus": lambda x: jax.nn.softplus(linear(x)),
    "softmax": lambda x: jax.nn.softmax(linear(x)),
    "log softmax": lambda x: jax.nn.log_softmax(linear(x)),
    "logsumexp": lambda x: linear(x) - jax.nn.logsumexp(linear(x), axis=1, keepdims=True),
    "max-pooling": lambda x: linear(
        jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    ),
    "median": lambda x: linear(median(x)),
    "clip": lambda x: linear(jnp.clip(x, 0.0, 1.0)),
    "sum over another first axis": lambda x: jnp.sum(jnp.stack([linear(x), 2.0 * linear(x)]), axis=0),
    "not a number": lambda x: jnp.nan_to_num(linear(x)),
    "honest rule": lambda x: linear(honest(x)),
    "rule of what closes over weights": lambda x: jax.jit(closed_over)(x),
    "rule in a loop of what closes over weights": lambda x: jax.lax.scan(
        lambda c, _: (c, closed_over(c)), x, None, length=2
    )[1].sum(0),
    "vjp of what closes over weights": closed_over_vjp,
    "Fourier": lambda x: linear(jnp.abs(jnp.fft.fft2(x, axes=(1, 2)))),
    "loop": lambda x: linear(jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c), x)),
    "of the weights": lambda x: linear(x) @ jnp.round(jnp.asarray(WEIGHTS[:3])),
}
