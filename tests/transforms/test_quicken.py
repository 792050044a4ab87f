"""Networks of other libraries, quickened: the same outputs and gradients by quick forms, whatever is around them."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from robustjax import attacks, evaluation, models, transforms
from robustjax.transforms import quicken

IMAGES = jax.random.uniform(jax.random.key(0), (4, 12, 12, 3))
LABELS = jnp.array([0, 1, 2, 3])
KERNELS = [jax.random.normal(jax.random.key(i), shape) / 5 for i, shape in enumerate([(9, 3, 4, 4), (10, 9, 3, 3)])]
SLOW = {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"}


def by_lax(images):
    """Channels first, stride 2, with a bias."""
    x = jax.lax.conv(images.transpose(0, 3, 1, 2), KERNELS[0], (2, 2), "SAME")
    x = jax.nn.relu(x + jnp.linspace(-1, 1, 9).reshape(1, 9, 1, 1))
    return jax.lax.conv_with_general_padding(x, KERNELS[1], (1, 1), [(1, 1)] * 2, None, None).mean(axis=(2, 3))


class ByFlax(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(9, (3, 3))(images)))
        x = nn.relu(nn.Conv(9, (3, 3), feature_group_count=9)(nn.max_pool(x, (3, 3), (2, 2), padding="SAME")))
        x = nn.avg_pool(nn.Conv(12, (1, 1), strides=(2, 2))(x), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(len(x), -1))


class ByNNX(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 9, (3, 3), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(9, 6, (3, 3), kernel_dilation=2, rngs=rngs)
        self.dense = nnx.Linear(6 * 9, 5, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(nnx.relu(self.conv2(nnx.relu(self.conv1(images)))), (2, 2), (2, 2))
        return self.dense(x.reshape(len(x), -1))


class ByEquinox(eqx.Module):
    """Sees one image at a time, channels first."""

    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(3, 9, 3, padding=1, key=keys[0]),
            jax.nn.gelu,
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(9, 8, 3, key=keys[1]),
            eqx.nn.AvgPool2d(2, 2),
            jnp.ravel,
            eqx.nn.Linear(32, 5, key=keys[2]),
        ]

    def __call__(self, image):
        for layer in self.layers:
            image = layer(image)
        return image


def leniently(function):
    """Other libraries do not pass under the strict promotion that ours is tested under."""

    def call(*arguments):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return call


def flax_network():
    module = ByFlax()
    variables = leniently(jax.jit(module.init))(jax.random.key(1), IMAGES)
    return jax.tree_util.Partial(leniently(module.apply), variables)


def equinox_network():
    network = ByEquinox(jax.random.key(2))
    return leniently(lambda images: jax.vmap(network)(images.transpose(0, 3, 1, 2)))


NETWORKS = {
    "lax": lambda: by_lax,
    "flax": flax_network,
    "nnx": lambda: leniently(ByNNX(nnx.Rngs(0))),
    "equinox": equinox_network,
}


def close(ours, wanted, tolerance=1e-5):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(ours) / scale, wanted / scale, atol=tolerance)


def total(network):
    return lambda images: jnp.sum(jnp.sin(network(images)) * jnp.arange(1.0, 5.0)[:, None])


def outputs_and_slope(network):
    return jax.jit(lambda images: (network(images), jax.grad(total(network))(images)))


def primitives_of(function):
    return set(re.findall(r"= (\w+)", str(jax.make_jaxpr(function)(IMAGES))))


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def test_outputs_and_gradients_are_the_same(network):
    jax.tree.map(close, outputs_and_slope(quicken(network))(IMAGES), outputs_and_slope(network)(IMAGES))


def test_no_slow_form_is_left_in_a_loop_over_gradients(network):
    def walk(network):
        step = lambda x, _: (x + 0.01 * jax.grad(total(network))(x), None)  # noqa: E731
        return lambda x: jax.lax.scan(step, x, None, length=3)[0]

    assert primitives_of(walk(network)) & SLOW and not primitives_of(walk(quicken(network))) & SLOW
    # Read off what the compiler made of it: every convolution left is of the one form that XLA is quick at.
    compiled = jax.jit(walk(quicken(network))).lower(IMAGES).compile().as_text()
    assert set(re.findall(r"dim_labels=(\S+?),? ", compiled)) <= {"b01f_01io->b01f"}
    assert "select-and-scatter" not in compiled


def looped(images):
    add = lambda sum, scale: (sum + by_lax(scale * images), None)  # noqa: E731
    return jax.lax.scan(add, jnp.zeros((4, 10)), jnp.ones(2))[0]


def until(images):
    step = lambda state: (state[0] + 1, state[1] + by_lax(images))  # noqa: E731
    return jax.lax.while_loop(lambda state: state[0] < 2, step, (0, jnp.zeros((4, 10))))[1]


@jax.custom_vjp
def rounded(images):
    return jnp.round(8.0 * by_lax(images)) / 8.0


rounded.defvjp(lambda images: (rounded(images), images), lambda images, slope: jax.vjp(by_lax, images)[1](slope))


@jax.custom_jvp
def doubled(images):
    return by_lax(images)


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2.0 * jax.jvp(by_lax, primals, tangents)[1]))


def on_host(images):
    logits = by_lax(images)
    return logits + jax.pure_callback(lambda x: np.ones_like(x), jax.typeof(logits), jax.lax.stop_gradient(logits))


AROUND = {
    "jit": jax.jit(by_lax),
    "cond": lambda x: jax.lax.cond(x[0, 0, 0, 0] < 2.0, by_lax, lambda x: 2.0 * by_lax(x), x),
    "scan": looped,
    "while": until,
    "remat": jax.checkpoint(by_lax),
    "custom_vjp": rounded,
    "custom_jvp": doubled,
    "callback": on_host,
    "grad": lambda x: jax.grad(lambda x: jnp.sum(by_lax(x) ** 2))(x).mean(axis=(1, 2)),  # a network that differentiates
    "vmap": jax.vmap(lambda image: by_lax(image[None])[0]),
}


@pytest.mark.parametrize("kind", AROUND)
def test_whatever_is_around_the_layers(kind):
    function = AROUND[kind]
    if kind == "while":  # which has no reverse derivative
        assert not primitives_of(quicken(function)) & SLOW
        close(quicken(function)(IMAGES), function(IMAGES))
        return
    assert not primitives_of(outputs_and_slope(quicken(function))) & SLOW
    jax.tree.map(close, outputs_and_slope(quicken(function))(IMAGES), outputs_and_slope(function)(IMAGES))


def test_second_derivatives_and_vmap():
    curvature = lambda network: jax.jit(lambda x: jax.jvp(jax.grad(total(network)), (x,), (jnp.cos(x),))[1])  # noqa: E731
    close(curvature(quicken(by_lax))(IMAGES), curvature(by_lax)(IMAGES))
    several = jnp.stack([IMAGES, 1.0 - IMAGES])
    close(jax.vmap(quicken(by_lax))(several), jax.vmap(by_lax)(several))


def test_our_own_networks_are_left_alone():
    module = models.create("small_cnn")
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    network = lambda images: module.apply(variables, images).logits  # noqa: E731
    assert str(jax.make_jaxpr(quicken(network))(IMAGES)) == str(jax.make_jaxpr(network)(IMAGES))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_left_alone(dtype):
    with jax.enable_x64(dtype == "float64"):
        images, kernel = IMAGES.astype(dtype), jnp.ones((3, 3, 3, 5), dtype)
        layouts = ("NHWC", "HWIO", "NHWC")
        network = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layouts)  # noqa: E731
        assert str(jax.make_jaxpr(quicken(network))(images)) == str(jax.make_jaxpr(network)(images))


def test_two_of_one_function_are_equal_so_that_jit_traces_once():
    assert quicken(by_lax) == quicken(by_lax) and hash(quicken(by_lax)) == hash(quicken(by_lax))
    assert quicken(by_lax) != quicken(jnp.sin) and quicken(quicken(by_lax)) == quicken(by_lax)
    module = nn.Dense(3)
    assert quicken(module.apply) == quicken(module.apply)  # methods are made anew whenever they are looked up
    network = ByEquinox(jax.random.key(0))  # it holds arrays, and has no hash
    assert quicken(network) == quicken(network) and quicken(network) != quicken(ByEquinox(jax.random.key(0)))
    count = 0

    def counted(weights, images):
        nonlocal count
        count += 1
        return weights * images

    call = jax.jit(lambda network, images: network(images))
    for weights in (1.0, 2.0, 3.0):
        network = quicken(jax.tree_util.Partial(counted, jnp.float32(weights)))
        np.testing.assert_array_equal(call(network, IMAGES), weights * IMAGES)
    assert count == 1


def test_it_shows_what_it_was_made_of():
    assert quicken(by_lax).__name__ == "by_lax" and quicken(by_lax).__wrapped__ is by_lax


def test_an_attack_takes_it():
    def attack(network):
        options = {"epsilon": 0.1, "step_size": 0.02, "num_steps": 3}
        return jax.jit(lambda x: attacks.pgd(network, jax.random.key(0), x, LABELS, **options))(IMAGES)

    np.testing.assert_allclose(attack(quicken(by_lax)), attack(by_lax), atol=1e-5)


DRIVERS = {
    "autoattack": lambda *given, **options: (
        attacks.autoattack(*given, epsilon=0.05, version=["apgd-ce"], **options).robust
    ),
    "judge": lambda *given, **options: evaluation.judge(*given, epsilon=0.05, **options).robust,
    "evaluate": lambda *given, **options: evaluation.evaluate(
        *given, threat=evaluation.Threat("linf", 0.05), attacks=("clean", "fgsm"), batch_size=4, **options
    ).worst_case["robust"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "judge" else name for name in DRIVERS]
)
def test_drivers_quicken_unless_told_otherwise(name, monkeypatch):
    seen, real = [], transforms.quicken
    monkeypatch.setattr(transforms, "quicken", lambda network: (seen.append(network), real(network))[1])
    given = by_lax, jax.random.key(0), IMAGES, jnp.argmax(by_lax(IMAGES), -1)
    quick = DRIVERS[name](*given)
    assert len(seen) == 1
    slow = DRIVERS[name](*given, quicken=False)
    assert len(seen) == 1
    np.testing.assert_array_equal(quick, slow)
