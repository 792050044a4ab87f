"""What our convolution is worth inside a compiled loop: attack steps and updates of networks, against XLA's own.

python benchmarks/convolution.py [--repetitions=9] [--update_batch_size=32]

The same network is compiled with `convolution.conv2d` and with `jax.lax.conv_general_dilated` alone, and both
are timed in turns, so that a busy machine slows them alike. On other backends than the CPU's the two are the same
program. An attack step is the gradient with respect to the images and their move by its sign; an update is the gradient
with respect to the weights, in training mode. Compilation is timed apart. Then single layers of other networks, each as
it is and by `transforms.quicken`: an attack step on the layer alone.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags

from robustjax import cli, models, transforms
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
    for name, layer in LAYERS.items():
        _report_layer(name, layer)
    return 0


def _convolve(kernel: tuple[int, ...], **options) -> Callable[[Array], Array]:
    weights = jax.random.normal(jax.random.key(0), kernel)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    return lambda images: jax.lax.conv_general_dilated(images, weights, **options)


def _pool(kind: str, size: int, stride: int) -> Callable[[Array], Array]:
    start, combine = {"max": (-jnp.inf, jax.lax.max), "sum": (0.0, jax.lax.add)}[kind]
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lambda images: jax.lax.reduce_window(images, start, combine, window, strides, "SAME")


CHANNELS = 64
LAYERS = {
    "depthwise 3 x 3": _convolve((3, 3, 1, CHANNELS), feature_group_count=CHANNELS),
    "depthwise 3 x 3, stride 2": _convolve((3, 3, 1, CHANNELS), feature_group_count=CHANNELS, window_strides=(2, 2)),
    "depthwise 7 x 7": _convolve((7, 7, 1, CHANNELS), feature_group_count=CHANNELS),
    "2 groups": _convolve((3, 3, CHANNELS // 2, CHANNELS), feature_group_count=2),
    "16 groups": _convolve((3, 3, CHANNELS // 16, CHANNELS), feature_group_count=16),
    "dilated": _convolve((3, 3, CHANNELS, CHANNELS), rhs_dilation=(2, 2)),
    "dilated, stride 2": _convolve((3, 3, CHANNELS, CHANNELS), rhs_dilation=(2, 2), window_strides=(2, 2)),
    "3 x 3, stride 2": _convolve((3, 3, CHANNELS, CHANNELS), window_strides=(2, 2)),
    "maximum of 2 x 2": _pool("max", 2, 2),
    "maximum of 3 x 3, stride 2": _pool("max", 3, 2),
    "sum of 2 x 2": _pool("sum", 2, 2),
    "sum of 3 x 3, stride 2": _pool("sum", 3, 2),
}


def _report_layer(name: str, layer: Callable[[Array], Array], batch: int = 32, size: int = 16, num_steps: int = 3):
    """A line for one layer."""
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, CHANNELS))

    def program(layer):
        slope = jax.grad(lambda points: jnp.sum(jnp.sin(layer(points))))
        return _compiled(lambda x: jax.lax.fori_loop(0, num_steps, lambda _, x: x + jnp.sign(slope(x)), x), images)

    programs = {"ours": program(transforms.quicken(layer)), "XLA's": program(layer)}
    print(f"{name}, gradient, {batch} x {size} x {size} x {CHANNELS}: {_turns(programs, num_steps)}", flush=True)


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
    programs = {}
    for form, convolve in (("ours", convolution.conv2d), ("XLA's", _plain)):
        with mock.patch.object(layers, "conv2d", convolve):
            programs[form] = build(models.create(name), images, labels, num_steps)
    kind = build.__name__.strip("_")
    print(f"{name} {kind} step, batch {shape[0]}: {_turns(programs, num_steps)}", flush=True)


def _turns(programs: dict[str, Program], num_steps: int) -> str:
    """The ratio of XLA's seconds to ours, and milliseconds of a step of both."""
    seconds = {form: [] for form in programs}
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
    return f"{_spread(ratios)} x; {', '.join(texts)}"


def _spread(values: list[float], scale: float = 1.0) -> str:
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} [{low:.2f} to {high:.2f}]"


if __name__ == "__main__":
    cli.run(main)
