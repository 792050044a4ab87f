"""Networks in flax.linen: :func:`create`, then ``init`` and ``apply``, which returns ``robustjax.types.Outputs``."""

from __future__ import annotations

from functools import partial
from numbers import Integral
from typing import Any

from robustjax.layers import conv2d
from robustjax.models.layers import Network, per_channel
from robustjax.models.resnet import BottleneckResNet, PreActResNet, ResNet
from robustjax.models.small import LeNet5, SmallCNN
from robustjax.models.vgg import VGG16
from robustjax.models.vit import VisionTransformer
from robustjax.types import Guards, InputError, nearest


def _resnet20(**options: Any) -> Network:
    return PreActResNet(blocks=(3, 3, 3), widths=(16, 32, 64), stem_width=16, **options)


# Of Gowal et al. 2020, arXiv 2010.03593, and what followed from it to the top of RobustBench.
_DEEPMIND = {"activation": "silu", "norm_momentum": 0.99, "pad_after": True}


def _wide_resnet(*, depth: int, width: int, **options: Any) -> Network:
    if not (isinstance(depth, int) and isinstance(width, int)):
        raise InputError(f"wide_resnet needs integers as depth and width, got {depth!r} and {width!r}")
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise InputError(
            f"wide_resnet needs depth 6 n + 4 from 10 on and width from 1 on, got {depth} and {width} "
            f"(nearest depth: {max(10, round((depth - 4) / 6) * 6 + 4)})"
        )
    widths = (16 * width, 32 * width, 64 * width)
    return PreActResNet(blocks=((depth - 4) // 6,) * 3, widths=widths, stem_width=16, **options)


def _vgg16(*, classifier_widths: tuple[int, ...] = (), **options: Any) -> Network:
    widths = tuple(classifier_widths)
    if not all(isinstance(width, int) and width >= 1 for width in widths):
        raise InputError(f"vgg16 needs classifier_widths from 1 on, got {widths}")
    return VGG16(classifier_widths=widths, **options)


MODELS = {
    "deepmind_preact_resnet18": partial(PreActResNet, large_shortcut=True, **_DEEPMIND),
    "deepmind_wide_resnet": partial(_wide_resnet, **_DEEPMIND),
    "lenet5": LeNet5,
    "preact_resnet18": PreActResNet,
    "resnet10": partial(ResNet, blocks=(1, 1, 1, 1)),
    "resnet18": ResNet,
    "resnet20": _resnet20,
    "resnet34": partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": BottleneckResNet,
    "small_cnn": SmallCNN,
    "vgg16": _vgg16,
    "vit_b16": partial(VisionTransformer, width=768, heads=12),
    "vit_s16": VisionTransformer,
    "wide_resnet": _wide_resnet,
}
NAMES = tuple(MODELS)
WITHOUT_BATCH_NORM = ("lenet5", "small_cnn", "vit_b16", "vit_s16")
OPTIONS = ("mean", "std", "dtype", "remat")
OWN_OPTIONS = {
    "deepmind_wide_resnet": ("depth", "width"),
    "preact_resnet18": ("final_norm",),
    "small_cnn": ("batch_norm",),
    "vgg16": ("classifier_widths", "classifier_norm"),
    "wide_resnet": ("depth", "width"),
}


def create(name: str, *, num_classes: int = 10, defense: Guards | None = None, **options: Any) -> Network:
    """A network by its name.

    Args:
        name: one of ``NAMES``.
        num_classes: K, at least 2.
        defense: guards some of the network's sites; of :func:`robustjax.defenses.create`.
        **options: mean and std (one number or one per channel; the first layer computes (images - mean) / std), dtype
            ("float32" or "bfloat16", of the computation), remat (True computes the inside of blocks again for the
            gradient, for less memory); wide_resnet and deepmind_wide_resnet need depth and width; preact_resnet18 takes
            final_norm, small_cnn takes batch_norm, vgg16 takes classifier_widths and classifier_norm, each as in its
            class.

    Returns:
        A module. ``module.init(key, images)`` gives variables; ``module.apply(variables, images, labels=None,
        train=False, rngs={"defense": key}, mutable=...)`` gives ``Outputs``. Images are floating-point [B, H, W, C].

    Raises:
        InputError: for an unknown name or option, or a wrong value. Images that do not fit are found by ``init``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> module = create("small_cnn", num_classes=3)
        >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        >>> module.apply(variables, jnp.zeros((2, 8, 8, 1))).logits.shape
        (2, 3)
    """
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(f"model must be one of {', '.join(NAMES)}, got {name!r}{nearest(name, NAMES)}")
    allowed = (*OPTIONS, *OWN_OPTIONS.get(name, ()))
    unknown = sorted(set(options) - set(allowed))
    missing = sorted({"depth", "width"} - set(options)) if "depth" in allowed else []
    if unknown or missing:
        raise InputError(
            f"{name} takes the options {', '.join(allowed)}"
            + (f"; got {', '.join(unknown)}" if unknown else "")
            + (f"; needs {', '.join(missing)}" if missing else "")
        )
    if options.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise InputError(f"dtype must be float32 or bfloat16, got {options['dtype']!r}")
    if not isinstance(options.get("remat", False), bool):
        raise InputError(f"remat must be True or False, got {options['remat']!r}; choose one of the two")
    if defense is not None and not hasattr(defense, "guards"):
        raise InputError(f"defense must be one of defenses.create(...) or None, got {defense!r}; make one")
    if not isinstance(num_classes, Integral) or num_classes < 2:  # of NumPy too, as labels.max() + 1 is
        raise InputError(f"num_classes must be an integer from 2 on, got {num_classes!r}")
    options |= {
        constant: per_channel(constant, options[constant]) for constant in ("mean", "std") if constant in options
    }
    network = MODELS[name](num_classes=int(num_classes), **options)
    return network if defense is None else network.clone(guards=defense.guards(network.sites(), network.num_classes))


__all__ = ["NAMES", "Network", "conv2d", "create"]
