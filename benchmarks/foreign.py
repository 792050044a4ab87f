"""Our small_cnn and ResNet-18 as others write them: `jax.lax` alone, in either layout, for benchmarks of `quicken`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LAYOUTS = {"nhwc": ("NHWC", "HWIO", "NHWC"), "nchw": ("NCHW", "OIHW", "NCHW")}
STRIDES = (1, 2, 2, 2)  # of the stages, two blocks each


def network(name: str, layout: str):
    """(variables of our module, images [B, H, W, C]) -> logits."""
    forward = {"small_cnn": _small_cnn, "resnet18": _resnet18}[name]
    return lambda variables, images: forward(_Layers(variables, layout), images)


class _Layers:
    """Layers by the names of our module's."""

    def __init__(self, variables, layout: str):
        self._params, self._stats = variables["params"], variables.get("batch_stats", {})
        self._numbers, self._first = LAYOUTS[layout], layout == "nchw"

    def begin(self, images):
        return images.transpose(0, 3, 1, 2) if self._first else images

    def conv(self, name: str, x, stride: int, padding: int):
        kernel = self._params[name]["kernel"]
        if self._first:
            kernel = kernel.transpose(3, 2, 0, 1)
        window = ((stride, stride), [(padding, padding)] * 2)
        x = jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=self._numbers)
        return x + self._by_channel(self._params[name]["bias"]) if "bias" in self._params[name] else x

    def norm(self, name: str, x):
        params, stats = self._params[name], self._stats[name]
        mean, var, scale, bias = (
            self._by_channel(values) for values in (stats["mean"], stats["var"], params["scale"], params["bias"])
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    def dense(self, name: str, x):
        return x @ self._params[name]["kernel"] + self._params[name]["bias"]

    def flatten(self, x):
        x = x.transpose(0, 2, 3, 1) if self._first else x
        return x.reshape(len(x), -1)

    def pool(self, x):
        return x.mean((2, 3) if self._first else (1, 2))

    def _by_channel(self, values):
        return values[:, None, None] if self._first else values


def _small_cnn(net: _Layers, images):
    x = net.begin(images)
    for name in ("conv1", "conv2"):
        x = jax.nn.relu(net.conv(name, x, 2, 1))
    x = jax.nn.relu(net.dense("dense", net.flatten(x)))
    return net.dense("head", x)


def _resnet18(net: _Layers, images):
    x = jax.nn.relu(net.norm("stem_norm", net.conv("stem_conv", net.begin(images), 1, 1)))
    for stage, stride in enumerate(STRIDES, 1):
        for block in (1, 2):
            name, step = f"stage{stage}_block{block}", stride if block == 1 else 1
            shortcut = x
            if step > 1:
                shortcut = net.norm(f"{name}_shortcut_norm", net.conv(f"{name}_shortcut_conv", x, step, 0))
            x = jax.nn.relu(net.norm(f"{name}_norm1", net.conv(f"{name}_conv1", x, step, 1)))
            x = jax.nn.relu(net.norm(f"{name}_norm2", net.conv(f"{name}_conv2", x, 1, 1)) + shortcut)
    return net.dense("head", net.pool(x))
