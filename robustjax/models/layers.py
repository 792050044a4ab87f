"""Building blocks of the networks: a ``Pass`` makes the layers of a forward pass and calls the guards at its sites."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import dot_general

from robustjax.layers import BatchNorm, conv2d
from robustjax.types import Array, InputError, Outputs

# Group -> names of sites; see `Network.sites`.
Sites = dict[str, tuple[str, ...]]

# The site that the kernel of every layer passes.
WEIGHTS = "weights"

ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": partial(jax.nn.gelu, approximate=False)}

KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015


class Network(nn.Module):
    """The base class of all networks.

    Attributes:
        num_classes: K, at least 2.
        mean, std: the first layer subtracts mean from the pixels and divides by std; one number, or one per channel.
        dtype: of the computation, "float32" or "bfloat16"; parameters, statistics and logits are float32.
        activation: "relu", "silu", x sigmoid(x), or "gelu", x times the normal distribution of x (both Hendrycks and
            Gimpel 2016, arXiv 1606.08415).
        norm_momentum: share of BatchNorm's running statistics that stays in an update.
        remat: whether the gradient computes what is inside a block again, in place of keeping it (Chen et al. 2016,
            arXiv 1604.06174): memory of a block for each block's output, for one more forward pass.
        guards: site -> module with the call of :class:`robustjax.types.Guard`, as :class:`robustjax.types.Guards` names
            them; None: no guards.
    """

    num_classes: int = 10
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    dtype: str = "float32"
    activation: str = "relu"
    norm_momentum: float = 0.9
    remat: bool = False
    guards: Mapping[str, nn.Module] | None = None

    def sites(self) -> Sites:
        """Groups of the named sites, each in the order in which the network passes them.

        "activation" is every activation function's output, "preactivation" its input, "late" the last stage's sites at
        which CAS and CIFS sit by default, "final" the one at which FSR does. Of residual networks "stage1" and so on
        are what the blocks of a stage pass on; of VGG-16 "group1" and so on are the activations of a group; of vision
        transformers "block" is what each block passes on.
        "weights" is where the kernel of every layer passes, one after the other, each as a batch of one.
        """
        raise NotImplementedError

    def least_side(self) -> int:
        """The least height and width of images for which the strides leave a pixel."""
        return 1


def before(site: str) -> str:
    """The site before the activation function whose output is the site ``site``.

    Example:
        >>> before("stem")
        'stem_input'
    """
    return f"{site}_input"


def with_inputs(
    activation: tuple[str, ...], *, late: tuple[str, ...], final: tuple[str, ...], **others: tuple[str, ...]
) -> Sites:
    """The groups of a network's sites; those before its activations come by themselves.

    Example:
        >>> with_inputs(("a", "b"), late=("b",), final=("b",))["preactivation"]
        ('a_input', 'b_input')
    """
    groups = {"activation": activation, "preactivation": tuple(map(before, activation)), "late": late, "final": final}
    return groups | others | {WEIGHTS: (WEIGHTS,)}


def per_channel(name: str, values: Any) -> tuple[float, ...]:
    """``mean`` or ``std`` of a network as a tuple of one number, or of one number per channel.

    Raises:
        InputError: there is no number, or one that is not finite, or a std that is not above 0.

    Example:
        >>> per_channel("mean", 0.5), per_channel("mean", [0.5, 0.25])
        ((0.5,), (0.5, 0.25))
    """
    try:
        numbers = tuple(map(float, np.ravel(values)))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
        above = " above 0" if name == "std" else ""
        raise InputError(f"{name} must be one finite number{above}, or one per channel, got {values!r}")
    return numbers


class Pass:
    """One forward pass: layers under flat names, and what the sites pass on.

    Args:
        network: the module whose compact method is running.
        images: checked and normalised; the first layer's input is ``self.images``.
        labels, train: handed to guards and BatchNorm.
    """

    network: Any  # the module, with the attributes of its own class

    def __init__(self, network: Network, images: Array, labels: Array | None, train: bool):
        self.network, self._labels, self._train = network, labels, train
        self._dtype = jnp.dtype(network.dtype)
        self._features: dict[str, Array] = {}
        self._inputs: set[str] = set()
        self._auxiliary: dict[str, list[Array]] = {}
        self.images = self._normalised(images)

    def conv(
        self, name: str, features: Array, channels: int, size: int, *, stride: int = 1, padding: int | None = None
    ):
        """A convolution without bias, padded to keep the size (at stride 1) unless told otherwise."""
        padding = size // 2 if padding is None else padding
        return _Convolution(channels, size, stride, padding, guard=self._weights_guard(), name=name)(features)

    def biased_conv(
        self, name: str, features: Array, channels: int, size: int, *, stride: int = 1, padding: int,
        initializer: Callable[..., Array] = KERNEL,
    ):  # fmt: skip
        """A convolution with a bias, for networks without BatchNorm."""
        options = {"use_bias": True, "initializer": initializer, "guard": self._weights_guard()}
        return _Convolution(channels, size, stride, padding, **options, name=name)(features)

    def norm(self, name: str, features: Array) -> Array:
        """BatchNorm: batch statistics in training, running ones in inference."""
        return BatchNorm(self._train, momentum=self.network.norm_momentum, name=name)(features)

    def layer_norm(self, name: str, features: Array) -> Array:
        """Normalises the channels of each position in float32, with a scale and a shift for each."""
        return nn.LayerNorm(name=name)(features.astype(jnp.float32)).astype(self._dtype)

    def dense(self, name: str, features: Array, channels: int) -> Array:
        """A fully connected layer with a bias."""
        guard = self._weights_guard()
        dot = None if guard is None else partial(_guarded_dot, guard)
        return nn.Dense(channels, dtype=self._dtype, dot_general=dot, name=name)(features)

    def act(self, site: str, features: Array) -> Array:
        """The network's activation function, its input and its output a site."""
        return self.site(site, self.unguarded_act(site, features))

    def unguarded_act(self, site: str, features: Array) -> Array:
        """The activation function whose input alone is a site, that of the activation ``site``."""
        name = before(site)
        self._inputs.add(name)
        return ACTIVATIONS[self.network.activation](self._guarded(name, features))

    def block(self, apply: Callable[[Pass, Array], Array], features: Array) -> Array:
        """``apply(pass, features)``, whose inside is computed again for the gradient where the network says so.

        What leaves a block, and what its sites yield, is kept; layers keep their flat names.
        """
        if not self.network.remat:
            return apply(self, features)

        names: list[str] = []

        def compute(network: Network, features: Array) -> tuple[Array, list[Array], dict[str, list[Array]]]:
            inside = copy.copy(self)
            inside.network, inside._features, inside._auxiliary = network, {}, {}
            features = apply(inside, features)
            names[:] = inside._features  # in order, which a dict that leaves a transformation loses
            return features, list(inside._features.values()), inside._auxiliary

        features, passed, heads = nn.remat(nn.compact(compute))(self.network, features)
        self._features |= zip(names, passed, strict=True)
        for kind, logits in heads.items():
            self._auxiliary.setdefault(kind, []).extend(logits)
        return features

    def site(self, name: str, features: Array) -> Array:
        """A named site: its guard, if there is one, may change the features that are passed on."""
        self._features[name] = features = self._guarded(name, features)
        return features

    def _weights_guard(self) -> Callable[[Array], Array] | None:
        """What the kernel of each layer passes, as a batch of one, or None where nothing guards the weights."""
        if not any(key.partition("+")[0] == WEIGHTS for key in self.network.guards or ()):
            return None
        return lambda kernel: self._guarded(WEIGHTS, kernel[None])[0]

    def _guarded(self, name: str, features: Array) -> Array:
        guards = self.network.guards or {}
        for key in sorted(key for key in guards if key.partition("+")[0] == name):
            features, heads = guards[key](features, self._labels, self._train)
            for kind, logits in heads.items():
                self._auxiliary.setdefault(kind, []).append(logits)
        return features

    def outputs(self, features: Array) -> Outputs:
        """The classifier on the last features [B, C]."""
        logits = self.dense("head", features, self.network.num_classes).astype(jnp.float32)
        guarded = {key.partition("+")[0] for key in self.network.guards or ()}
        unknown = sorted(guarded - set(self._features) - self._inputs - {WEIGHTS})
        if unknown:
            raise InputError(f"no site {', '.join(unknown)} to guard; sites are {', '.join(self._features)}")
        return Outputs(logits, {kind: jnp.stack(logits) for kind, logits in self._auxiliary.items()}, self._features)

    def _normalised(self, images: Array) -> Array:
        network = self.network
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images must be floating-point [B, H, W, C], got {images.dtype} {images.shape}")
        least = network.least_side()
        if min(images.shape[1:3]) < least:
            raise InputError(
                f"{type(network).__name__} needs images of at least {least} x {least}, got {images.shape[1:3]}"
            )
        mean, std = per_channel("mean", network.mean), per_channel("std", network.std)
        for name, constants in (("mean", mean), ("std", std)):
            if len(constants) not in (1, images.shape[-1]):
                raise InputError(
                    f"{name} must have one number or one for each of {images.shape[-1]} channels, got {len(constants)}"
                )
        shift, scale = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in (mean, std))
        return ((images.astype(jnp.float32) - shift) / scale).astype(self._dtype)


class _Convolution(nn.Module):
    channels: int
    size: int
    stride: int
    padding: int
    use_bias: bool = False
    initializer: Callable[..., Array] = KERNEL
    guard: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, features: Array) -> Array:
        shape = (self.size, self.size, features.shape[-1], self.channels)
        kernel = self.param("kernel", self.initializer, shape, jnp.float32)
        kernel = (kernel if self.guard is None else self.guard(kernel)).astype(features.dtype)
        outputs = conv2d(features, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), jnp.float32)
            outputs = outputs + bias.astype(features.dtype)[None, None, None, :]
        return outputs


def _guarded_dot(guard: Callable[[Array], Array], features: Array, kernel: Array, *rest: Any, **given: Any) -> Array:
    return dot_general(features, guard(kernel), *rest, **given)


def max_pool(features: Array) -> Array:
    """Maximum of each two by two pixels; a last odd row or column is left out.

    Comparing halves is many times quicker on a CPU than a window that slides, above all in the gradient.
    """
    batch, height, width, channels = features.shape
    even = features[:, : height // 2 * 2, : width // 2 * 2]
    # One axis is split at a time: of two JAX does not know where the rows of a batch on explicit axes are to lie.
    pairs = even.reshape(batch, height // 2, 2, width // 2 * 2, channels)
    pairs = jnp.maximum(pairs[:, :, 0], pairs[:, :, 1]).reshape(batch, height // 2, width // 2, 2, channels)
    return jnp.maximum(pairs[:, :, :, 0], pairs[:, :, :, 1])


def overlapping_max_pool(features: Array) -> Array:
    """Maximum of each three by three pixels around every second one: half the resolution, rounded up."""
    height, width = (-(-side // 2) for side in features.shape[1:3])
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows = jnp.stack([padded[:, i : i + 2 * height - 1 : 2] for i in range(3)]).max(axis=0)
    return jnp.stack([rows[:, :, i : i + 2 * width - 1 : 2] for i in range(3)]).max(axis=0)


def average_pool(features: Array) -> Array:
    """Mean over positions, [B, H, W, C] to [B, C]."""
    return jnp.mean(features, axis=(1, 2))


def flatten(features: Array) -> Array:
    """[B, H, W, C] to [B, H W C]."""
    return features.reshape(features.shape[0], math.prod(features.shape[1:]))  # -1 would not do for an empty batch
