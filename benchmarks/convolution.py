"""What our convolution is worth inside a compiled loop: attack steps and updates of networks, against XLA's own.

python benchmarks/convolution.py [--repetitions=9] [--update_batch_size=32]

The same network is compiled with `convolution.conv2d` and with `jax.lax.conv_general_dilated` alone, and both
are timed in turns, so that a busy machine slows them alike. On other backends than the CPU's the two are the same
program. An attack step is the gradient with respect to the images and their move by its sign; an update is the gradient
with respect to the weights, in training mode. Compilation is timed apart.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags

from robustjax import cli, models
from robustjax import layers as convolution
from robustjax.attacks.losses import cross_entropy
from robustjax.evaluation.protocol import records
from robustjax.models import layers
from robustjax.types import Array

REPETITIONS = flags.DEFINE_integer("repetitions", 9, "Turns.", lower_bound=1)
UPDATE_BATCH_SIZE = flags.DEFINE_integer("update_batch_size", 32, "Examples of an update.", lower_bound=1)


class Program(NamedTuple):
    run: Callable[[], object]
    compile_seconds: float


def main() -> int:
    """Prints one line for each loop."""
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    print(f"median [least to most] of {REPETITIONS.value} turns (compilation)")
    _report("small_cnn", _attack, (128, 28, 28, 1), num_steps=10)
    _report("resnet18", _attack, (32, 32, 32, 3), num_steps=3)
    _report("small_cnn", _update, (UPDATE_BATCH_SIZE.value, 28, 28, 1), num_steps=2)
    _report("resnet20", _update, (UPDATE_BATCH_SIZE.value, 32, 32, 3), num_steps=2)
    return 0


def _attack(module: models.Network, images: Array, labels: Array, num_steps: int) -> Program:
    variables = jax.jit(module.init)(jax.random.key(0), images[:1])

    def attack(variables, images):
        def loss(points):
            return jnp.sum(cross_entropy(module.apply(variables, points).logits, labels))

        def step(_, points):
            return jnp.clip(points + 0.01 * jnp.sign(jax.grad(loss)(points)), 0.0, 1.0)

        return jax.lax.fori_loop(0, num_steps, step, images)

    return _compiled(attack, variables, images)


def _update(module: models.Network, images: Array, labels: Array, num_steps: int) -> Program:
    variables = jax.jit(module.init)(jax.random.key(0), images[:1])

    def train(variables, images):
        def loss(params, others):
            outputs, updated = module.apply({**others, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.mean(cross_entropy(outputs.logits, labels)), updated

        def step(_, variables):
            gradient, updated = jax.grad(loss, has_aux=True)(variables["params"], variables)
            params = jax.tree.map(lambda weights, slope: weights - 0.01 * slope, variables["params"], gradient)
            return {**variables, **updated, "params": params}

        return jax.lax.fori_loop(0, num_steps, step, variables)

    return _compiled(train, variables, images)


def _compiled(function: Callable, *arguments) -> Program:
    started = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    jax.block_until_ready(program(*arguments))
    return Program(lambda: program(*arguments), seconds)


def _plain(images: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _report(name: str, build: Callable[..., Program], shape: tuple[int, ...], num_steps: int) -> None:
    images, labels = jax.random.uniform(jax.random.key(1), shape), jnp.arange(shape[0]) % 10
    programs, seconds = {}, {}
    for form, convolve in (("ours", convolution.conv2d), ("XLA's", _plain)):
        with mock.patch.object(layers, "conv2d", convolve):
            programs[form] = build(models.create(name), images, labels, num_steps)
        seconds[form] = []
    for _ in range(REPETITIONS.value):
        for form, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program.run())
            seconds[form].append((time.perf_counter() - started) / num_steps)
    ratios = [plain / ours for ours, plain in zip(seconds["ours"], seconds["XLA's"], strict=True)]
    texts = [
        f"{form} {_spread(seconds[form], 1e3)} ms ({program.compile_seconds:.1f} s)"
        for form, program in programs.items()
    ]
    kind = build.__name__.strip("_")
    print(f"{name} {kind} step, batch {shape[0]}: {_spread(ratios)} x; {', '.join(texts)}", flush=True)


def _spread(values: list[float], scale: float = 1.0) -> str:
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} [{low:.2f} to {high:.2f}]"


if __name__ == "__main__":
    cli.run(main)
