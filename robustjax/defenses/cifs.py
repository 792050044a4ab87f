"""Channel-wise importance-based feature selection, CIFS (Yan et al., ICML 2021, arXiv 2102.05311)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode, joint_loss
from robustjax.ops import as_floats, check_classes, check_number, global_average_pool, scale_channels
from robustjax.types import Array, InputError

Importance = Literal["softmax", "sigmoid", "softplus"]

MASKS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,  # over channels
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}


def probe(layers: Sequence[tuple[Array, Array]], features: Array) -> Array:
    r"""The published probe networks: GAP, then linear layers with softplus(5t)/5 between them.

    Args:
        layers: (kernel [in, out], bias [out]) of each; one or more.
        features: [B, ..., C].

    Returns:
        Logits, float32 [B, K].

    Example:
        >>> import jax.numpy as jnp
        >>> probe([(jnp.eye(2), jnp.ones(2))], jnp.ones((1, 3, 3, 2)))
        Array([[2., 2.]], dtype=float32)
    """
    hidden = global_average_pool(features)
    for kernel, bias in layers[:-1]:
        hidden = jax.nn.softplus(5.0 * (hidden @ kernel + bias[None, :])) / 5.0
    kernel, bias = layers[-1]
    return hidden @ kernel + bias[None, :]


def importance(
    probe_fn: Callable[[Array], Array], features: Array, labels: Array | None = None, *, top_k: int = 2
) -> Array:
    r"""How much each channel matters to the probe's likeliest classes.

    .. math:: g_c = \sum_{h,w} \frac{\partial (a_{(1)} + \dots + a_{(k)})}{\partial z_{hwc}}

    where :math:`a_{(1)} \ge a_{(2)} \ge \dots` are the probe's logits; in training the true label's logit takes the
    place of the first of them, also where the label is ranked second and so counts twice. Differentiable in features
    and in whatever ``probe_fn`` closes over.

    Args:
        probe_fn: float32 features like those given -> logits [B, K], each example's its own function.
        features: z, [B, ..., C].
        labels: integers [B] in training, None in inference.
        top_k: k, at least 1 and at most K.

    Returns:
        g, float32 [B, C].

    Raises:
        InputError: ``top_k`` is out of range, features are not floats, or labels are not classes.

    Example:
        >>> import jax.numpy as jnp
        >>> linear = lambda z: z.mean((1, 2)) @ jnp.array([[1.0, 2.0, 4.0]])
        >>> importance(linear, jnp.ones((1, 2, 2, 1)))
        Array([[6.]], dtype=float32)
        >>> importance(linear, jnp.ones((1, 2, 2, 1)), jnp.array([0]))
        Array([[3.]], dtype=float32)
    """

    features = as_floats("cifs: features", features, least_axes=2)

    def score(points: Array) -> Array:
        logits = probe_fn(points)
        return jnp.sum(jnp.take_along_axis(logits, _classes(logits, labels, top_k), axis=-1))

    gradient = jax.grad(score)(features.astype(jnp.float32))
    return jnp.sum(gradient, axis=tuple(range(1, features.ndim - 1)))


def _classes(logits: Array, labels: Array | None, top_k: int) -> Array:
    """The classes that count, integers [B, k]."""
    check_number("cifs: top_k", top_k, "[1, inf)", whole=True)
    if top_k > logits.shape[-1]:
        raise InputError(f"cifs: top_k must be in [1, {logits.shape[-1]}], the number of classes, got {top_k}")
    if labels is not None:
        check_classes("cifs: labels", labels, *logits.shape)
    classes = jax.lax.top_k(jax.lax.stop_gradient(logits), top_k)[1]
    return classes if labels is None else classes.at[:, 0].set(labels.astype(classes.dtype))


def _importance_by_class(
    probe_fn: Callable[[Array], Array], features: Array, labels: Array | None, top_k: int
) -> list[Array]:
    """The terms of which ``importance`` is the sum: of each class that counts, float32 [B, C]."""
    logits, pull = jax.vjp(probe_fn, features.astype(jnp.float32))
    classes = _classes(logits, labels, top_k)
    pulled = [pull(jax.nn.one_hot(classes[:, i], logits.shape[-1], dtype=logits.dtype))[0] for i in range(top_k)]
    return [jnp.sum(gradient, axis=tuple(range(1, features.ndim - 1))) for gradient in pulled]


def select(
    probe_fn: Callable[[Array], Array],
    features: Array,
    labels: Array | None = None,
    *,
    top_k: int = 2,
    importance: Importance = "softmax",
    scale: float = 1.0,
    temperature: float = 1.0,
    class_mix: float | None = None,
    differentiate_mask: bool = False,
) -> tuple[Array, Array]:
    r"""Multiplies each channel by a mask computed from its importance to the probe.

    .. math:: \tilde z_{hwc} = m_c z_{hwc}, \qquad m = s \, \mathrm{softmax}_c(g / \tau)

    The mask trains the probe: its gradient reaches whatever ``probe_fn`` closes over, through the second derivative. By
    default it does not reach the features, as in the published code; that hides gradients from an attacker, so
    evaluate with ``differentiate_mask=True``. Equal importance is plain scaling: by 1/C with softmax.

    Args:
        probe_fn: as for ``importance``.
        features: z, [B, ..., C].
        labels: integers [B] in training, None in inference.
        top_k: as for ``importance``.
        importance: function from g to m: "softmax" over channels, "sigmoid" or "softplus".
        scale: s, a factor of the mask, above 0: 1 in the paper, 2 in some of its code.
        temperature: tau, by which g is divided, above 0.
        class_mix: each of the ``top_k`` classes has a mask of its own, and the mask is their mean, in which the first
            class has this weight, in [0, 1], and the others share the rest. None: one mask of the sum of their g.
        differentiate_mask: let the mask's gradient through to the features; the value stays.

    Returns:
        Features like those given, and the probe's logits, float32 [B, K], always differentiable in the features.

    Raises:
        InputError: an option is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> linear = lambda z: z.mean((1, 2)) @ jnp.ones((2, 3))
        >>> select(linear, jnp.ones((1, 1, 1, 2)))
        (Array([[[[0.5, 0.5]]]], dtype=float32), Array([[2., 2., 2.]], dtype=float32))
    """
    _check(importance, top_k, scale, temperature, class_mix)
    features = as_floats("cifs: features", features, least_axes=2)
    source = features if differentiate_mask else jax.lax.stop_gradient(features)

    def mask_of(relevance: Array) -> Array:
        return MASKS[importance](relevance if temperature == 1.0 else relevance / temperature)

    if class_mix is None:
        mask = mask_of(_importance(probe_fn, source, labels, top_k=top_k))
    else:
        first, *others = map(mask_of, _importance_by_class(probe_fn, source, labels, top_k))
        mask = class_mix * first + (1.0 - class_mix) / len(others) * sum(others)
    return scale_channels(features, mask if scale == 1.0 else scale * mask), probe_fn(features.astype(jnp.float32))


_importance = importance  # `select` has an argument of that name


def _check(importance: str, top_k: int, scale: float, temperature: float, class_mix: float | None) -> None:
    if not isinstance(importance, str) or importance not in MASKS:
        raise InputError(f"cifs: importance must be one of {', '.join(MASKS)}, got {importance!r}")
    check_number("cifs: scale", scale, "(0, inf)")
    check_number("cifs: temperature", temperature, "(0, inf)")
    if class_mix is not None:
        check_number("cifs: class_mix", class_mix, "[0, 1]")
        check_number("cifs: top_k of a class_mix", top_k, "[2, inf)", whole=True)


def defense(
    *,
    beta: float = 2.0,
    attack_beta: float | None = None,
    top_k: int = 2,
    importance: Importance = "softmax",
    scale: float = 1.0,
    temperature: float = 1.0,
    class_mix: float | None = None,
    hidden: int = 128,
) -> Defense:
    """``select`` at the sites of the last stage: a probe with one hidden layer at each but the last, which is linear.

    Args:
        beta: weight of the probes' mean loss, in training and in its attack; the whole loss is scaled by
            3 / (beta + 1), as published.
        attack_beta: that of the attack in training where it differs: 0 attacks the network's own logits alone. None:
            ``beta``.
        top_k, importance, scale, temperature, class_mix: as for ``select``.
        hidden: width of the hidden layers: 128 for ResNet-18, 240 for WideResNet-28-10.

    Example:
        >>> defense().heads
        ('probe',)
    """
    check_number("cifs: beta", beta, "[0, inf)")
    if attack_beta is None:
        attack_beta = beta
    check_number("cifs: attack_beta", attack_beta, "[0, inf)")
    check_number("cifs: hidden", hidden, "[1, inf)", whole=True)
    check_number("cifs: top_k", top_k, "[1, inf)", whole=True)
    _check(importance, top_k, scale, temperature, class_mix)
    mask = {"importance": importance, "scale": scale, "temperature": temperature, "class_mix": class_mix}
    return Defense(
        name="cifs",
        role="late",
        build=lambda sites, num_classes, mode: {
            site: CIFS(num_classes, None if site == sites[-1] else hidden, top_k, mode=mode, **mask) for site in sites
        },
        gradient="the mask is computed from detached features; the surrogate differentiates it",
        loss=partial(joint_loss, kind="probe", beta=beta, scale=3 / (beta + 1)),
        inner_loss=partial(joint_loss, kind="probe", beta=attack_beta, scale=3 / (attack_beta + 1)),
        heads=("probe",),
    )


class CIFS(nn.Module):
    """A guard that scales each channel by its importance to the likeliest classes of a probe that it holds.

    In training the true label takes the place of the probe's likeliest class; in inference, where labels are None, the
    probe's own ``top_k`` classes count. The probe's logits are returned as the head "probe" in both.

    Attributes:
        num_classes: K, of the probe.
        hidden: width of the probe's hidden layer; None: the probe is linear.
        top_k: how many classes count.
        importance: function from a channel's relevance to its factor, as for :func:`select`.
        scale, temperature, class_mix: of the mask, as for :func:`select`.
        mode: "active"; "surrogate", where the mask's gradient reaches the features; or "off", where the features pass
            unchanged and the probe still answers.
    """

    num_classes: int
    hidden: int | None = None
    top_k: int = 2
    importance: Importance = "softmax"
    scale: float = 1.0
    temperature: float = 1.0
    class_mix: float | None = None
    mode: Mode = "active"

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        # Arrays and a pure function, not submodules: Linen leaks tracers when its calls are differentiated in place.
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        widths = [features.shape[-1], *([self.hidden] if self.hidden else []), self.num_classes]
        layers = [
            (
                self.param(f"kernel_{i}", uniform, (widths[i], widths[i + 1]), jnp.float32),
                self.param(f"bias_{i}", nn.initializers.zeros_init(), (widths[i + 1],), jnp.float32),
            )
            for i in range(len(widths) - 1)
        ]
        selected, logits = select(
            partial(probe, layers),
            features,
            labels,
            top_k=self.top_k,
            importance=self.importance,
            scale=self.scale,
            temperature=self.temperature,
            class_mix=self.class_mix,
            differentiate_mask=self.mode == "surrogate",
        )
        return (features if self.mode == "off" else selected), {"probe": logits}
