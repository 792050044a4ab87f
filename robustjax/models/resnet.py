"""Residual networks: with CIFAR's stem post-activation (He et al. 2015, arXiv 1512.03385), pre-activation (2016, arXiv
1603.05027) and wide ones (Zagoruyko and Komodakis 2016, arXiv 1605.07146); with ImageNet's stem bottlenecks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from robustjax.models.layers import Network, Pass, Sites, average_pool, overlapping_max_pool, with_inputs
from robustjax.types import Array, InputError, Outputs


class ResNet(Network):
    """Post-activation residual network; the defaults are ResNet-18.

    Attributes:
        blocks: how many in each stage; every stage but the first halves the resolution.
        widths: channels of each stage.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)

    def sites(self) -> Sites:
        names = [name for name, _, _ in _plan(self.blocks, self.widths)]
        activations = [site for name in names for site in (f"{name}_act1", name)]
        late = names[-self.blocks[-1] :]
        return with_inputs(("stem", *activations), late=tuple(late), final=(late[-1],), **_stages(names))

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        x = net.act("stem", net.norm("stem_norm", net.conv("stem_conv", net.images, self.widths[0], 3)))
        for each in _plan(self.blocks, self.widths):
            x = net.block(partial(self._block, *each), x)
        return net.outputs(average_pool(x))

    @staticmethod
    def _block(name: str, width: int, stride: int, net: Pass, x: Array) -> Array:
        shortcut = x
        if stride > 1 or x.shape[-1] != width:
            shortcut = net.conv(f"{name}_shortcut_conv", x, width, 1, stride=stride)
            shortcut = net.norm(f"{name}_shortcut_norm", shortcut)
        x = net.norm(f"{name}_norm1", net.conv(f"{name}_conv1", x, width, 3, stride=stride))
        x = net.act(f"{name}_act1", x)
        x = net.norm(f"{name}_norm2", net.conv(f"{name}_conv2", x, width, 3))
        return net.act(name, x + shortcut)


class BottleneckResNet(Network):
    """Post-activation residual network for large images; the defaults are ResNet-50.

    The stem takes a quarter of the resolution. A block's stride is at its 3 x 3 convolution, as in most code, where the
    paper has it at the first one.

    Attributes:
        blocks: how many in each stage; every stage but the first halves the resolution.
        widths: channels inside the blocks of each stage; what they pass on has four times as many.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)

    def sites(self) -> Sites:
        names = [name for name, _, _ in _plan(self.blocks, self.widths)]
        activations = [site for name in names for site in (f"{name}_act1", f"{name}_act2", name)]
        late = names[-self.blocks[-1] :]
        return with_inputs(("stem", *activations), late=tuple(late), final=(late[-1],), **_stages(names))

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        x = net.conv("stem_conv", net.images, self.widths[0], 7, stride=2)
        x = overlapping_max_pool(net.act("stem", net.norm("stem_norm", x)))
        for each in _plan(self.blocks, self.widths):
            x = net.block(partial(self._block, *each), x)
        return net.outputs(average_pool(x))

    @staticmethod
    def _block(name: str, width: int, stride: int, net: Pass, x: Array) -> Array:
        shortcut = x
        if stride > 1 or x.shape[-1] != 4 * width:
            shortcut = net.conv(f"{name}_shortcut_conv", x, 4 * width, 1, stride=stride)
            shortcut = net.norm(f"{name}_shortcut_norm", shortcut)
        x = net.act(f"{name}_act1", net.norm(f"{name}_norm1", net.conv(f"{name}_conv1", x, width, 1)))
        x = net.norm(f"{name}_norm2", net.conv(f"{name}_conv2", x, width, 3, stride=stride))
        x = net.act(f"{name}_act2", x)
        x = net.norm(f"{name}_norm3", net.conv(f"{name}_conv3", x, 4 * width, 1))
        return net.act(name, x + shortcut)


class PreActResNet(Network):
    """Pre-activation residual network; the defaults are PreActResNet-18.

    Attributes:
        blocks: how many in each stage; every stage but the first halves the resolution.
        widths: channels of each stage.
        stem_width: channels of the first convolution.
        final_norm: BatchNorm and ReLU after the last block, and shortcuts that take what the block has normalised, as
            in the paper. False leaves both out, the form that Wong et al. (2020, arXiv 2001.03994) trained.
        guarded_shortcut: whether a convolution on a shortcut takes what the block's first guard makes of the features,
            or, as published for CAS and CIFS, the features themselves. It matters where a stage's first block is its
            last.
        pad_after: whether convolutions with strides are padded below and to the right only, as TensorFlow's are on
            images of even sides, and so DeepMind's networks (Gowal et al. 2020, arXiv 2010.03593).
        large_shortcut: whether convolutions on shortcuts are 3 x 3 and take the block's input as it is, as in
            DeepMind's PreActResNet.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    final_norm: bool = True
    guarded_shortcut: bool = True
    pad_after: bool = False
    large_shortcut: bool = False

    def sites(self) -> Sites:
        names = [name for name, _, _ in _plan(self.blocks, self.widths)]
        activations = [f"{name}_act{i}" for name in names for i in (1, 2)]
        last = "final" if self.final_norm else names[-1]
        return with_inputs(
            (*activations, "final") if self.final_norm else tuple(activations),
            late=(f"{names[-1]}_act1", last),
            final=(last,),
            **_stages(names),
        )

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        multiple = 2 ** (len(self.blocks) - 1)
        if self.pad_after and not self.large_shortcut and any(side % multiple for side in images.shape[1:3]):
            raise InputError(
                f"images must have sides divisible by {multiple} for DeepMind's WideResNet, whose shortcuts fit no "
                f"others, got {images.shape[1:3]}; scale them"
            )
        x = net.conv("stem_conv", net.images, self.stem_width, 3)
        for each in _plan(self.blocks, self.widths):
            x = net.block(partial(self._block, *each), x)
        if self.final_norm:
            x = net.act("final", net.norm("final_norm", x))
        return net.outputs(average_pool(x))

    @staticmethod
    def _block(name: str, width: int, stride: int, net: Pass, x: Array) -> Array:
        network = net.network
        unguarded = net.unguarded_act(f"{name}_act1", net.norm(f"{name}_norm1", x))
        active = net.site(f"{name}_act1", unguarded)
        shortcut = x
        if stride > 1 or x.shape[-1] != width:
            if network.large_shortcut:
                shortcut = _strided(net, f"{name}_shortcut_conv", x, width, stride)
            else:
                if network.final_norm:
                    shortcut = active if network.guarded_shortcut else unguarded
                shortcut = net.conv(f"{name}_shortcut_conv", shortcut, width, 1, stride=stride)
        x = _strided(net, f"{name}_conv1", active, width, stride)
        x = net.act(f"{name}_act2", net.norm(f"{name}_norm2", x))
        return net.site(name, net.conv(f"{name}_conv2", x, width, 3) + shortcut)


def _strided(net: Pass, name: str, x: Array, width: int, stride: int) -> Array:
    """A 3 x 3 convolution of a PreActResNet, with strides padded as the network says."""
    if stride == 1 or not net.network.pad_after:
        return net.conv(name, x, width, 3, stride=stride)
    return net.conv(name, jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), width, 3, stride=stride, padding=0)


def _plan(blocks: tuple[int, ...], widths: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(name, channels, stride) of every block."""
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        for block in range(1, count + 1):
            yield f"stage{stage}_block{block}", width, 2 if block == 1 and stage > 1 else 1


def _stages(blocks: list[str]) -> Sites:
    """Stage -> its blocks, whose outputs are sites of their names."""
    stages: Sites = {}
    for block in blocks:
        stage = block.partition("_")[0]
        stages[stage] = (*stages.get(stage, ()), block)
    return stages
