"""VGG-16 with BatchNorm (Simonyan and Zisserman 2014, arXiv 1409.1556), as used on CIFAR: by default, one linear
classifier."""

from __future__ import annotations

from functools import partial

import flax.linen as nn

from robustjax.models.layers import Network, Pass, Sites, average_pool, max_pool, with_inputs
from robustjax.types import Array, Outputs

GROUPS = (2, 2, 3, 3, 3)
WIDTHS = (64, 128, 256, 512, 512)


class VGG16(Network):
    """Five groups of 3 x 3 convolutions, each group followed by max pooling, then the mean over what is left.

    Attributes:
        classifier_widths: of dense layers with ReLU before the linear one: (512, 512) as published for CAS and FSR.
        classifier_norm: BatchNorm between each of those layers and its ReLU, as published for CAS.
    """

    classifier_widths: tuple[int, ...] = ()
    classifier_norm: bool = False

    def sites(self) -> Sites:
        names = [f"group{group}_conv{i + 1}" for group, count in enumerate(GROUPS, 1) for i in range(count)]
        hidden = [f"dense{i}" for i in range(1, len(self.classifier_widths) + 1)]
        groups = {
            f"group{group}": tuple(name for name in names if name.startswith(f"group{group}_"))
            for group in range(1, len(GROUPS) + 1)
        }
        return with_inputs((*names, *hidden), late=tuple(names[-3:]), final=(names[-4],), **groups)

    def least_side(self) -> int:
        return 32

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        x = net.images
        for group, (count, width) in enumerate(zip(GROUPS, WIDTHS, strict=True), 1):
            x = net.block(partial(self._group, group, count, width), x)
        x = average_pool(x)
        for i, width in enumerate(self.classifier_widths, 1):
            x = net.dense(f"dense{i}", x, width)
            x = net.act(f"dense{i}", net.norm(f"dense{i}_norm", x) if self.classifier_norm else x)
        return net.outputs(x)

    @staticmethod
    def _group(group: int, count: int, width: int, net: Pass, x: Array) -> Array:
        for i in range(1, count + 1):
            name = f"group{group}_conv{i}"
            x = net.act(name, net.norm(f"{name}_norm", net.conv(name, x, width, 3)))
        return max_pool(x)
