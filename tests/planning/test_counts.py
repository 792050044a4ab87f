"""Counts of a program by closed forms."""

import jax
import jax.numpy as jnp

from robustjax import build, config
from robustjax.planning import counts

# Multiplications of ResNet-18's forward pass on a 32 x 32 image (He et al. 2015): stem, four equal convolutions of the
# first stage, three stages of as much work each, head.
STEM = 3 * 9 * 64 * 1024
STAGE = 64 * 128 * 9 * 256 + 3 * 128 * 128 * 9 * 256 + 64 * 128 * 256
RESNET18 = STEM + 4 * 64 * 64 * 9 * 1024 + 3 * STAGE + 512 * 10


def test_a_training_step_costs_what_its_steps_add_up_to():
    """Two passes an attack step and three for the update, of which none goes back to the images."""
    c = config.cifar10()
    c.attack.num_steps = 7
    module = build.model(c, 10)
    state = jax.eval_shape(build.initial_state(c, module, (32, 32, 3)))
    batch = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    found = counts.count(jax.make_jaxpr(build.training_step(c, module, 100))(state, *batch))
    assert found.flops == 4 * 2 * ((2 * 7 + 3) * RESNET18 - STEM)
    assert found.open_loops == 0
    # Most is held where the gradient is there, and of what it is made of the first stage: each convolution's output.
    gradient, outputs = 4 * 11_173_962, 4 * 4 * 5 * 64 * 1024
    assert gradient < found.held < gradient + 2.5 * outputs


def test_loops_count_as_often_as_they_run_and_branches_by_the_dearest():
    w = jnp.ones((8, 8))

    def program(x):
        x = jax.lax.fori_loop(0, 5, lambda i, x: x @ w, x)
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x, x)
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

    found = counts.count(jax.make_jaxpr(program)(w))
    assert found.flops == 2 * 8**3 * (5 + 2 + 1) and found.open_loops == 1
    assert found.traffic == 3 * 4 * 64 * (5 + 2 + 1)


def test_what_is_held_is_what_later_products_need():
    a = jnp.ones((16, 16))
    size = 4 * 256

    def chain(x):
        for _ in range(4):
            x = jnp.tanh(x @ a)
        return x

    assert counts.count(jax.make_jaxpr(chain)(a)).held == 2 * size
    # Backwards, the four products (tanh is computed from them) and what is passed back.
    held = counts.count(jax.make_jaxpr(jax.grad(lambda x: chain(x).sum()))(a)).held
    assert 4 * size <= held <= 6 * size
