"""VGG-16 with BatchNorm (Simonyan and Zisserman 2014, arXiv 1409.1556), as used on CIFAR: one linear classifier."""

from __future__ import annotations

import flax.linen as nn

from robustjax.models.layers import Network, Pass, Sites, average_pool, max_pool
from robustjax.types import Array, Outputs

GROUPS = (2, 2, 3, 3, 3)
WIDTHS = (64, 128, 256, 512, 512)


class VGG16(Network):
    """Five groups of 3 x 3 convolutions, each group followed by max pooling, then the mean over what is left."""

    def sites(self) -> Sites:
        names = [f"group{group}_conv{i + 1}" for group, count in enumerate(GROUPS, 1) for i in range(count)]
        return {"activation": tuple(names), "late": tuple(names[-3:]), "final": (names[-4],)}

    def least_side(self) -> int:
        return 32

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        x = net.images
        for group, (count, width) in enumerate(zip(GROUPS, WIDTHS, strict=True), 1):
            for i in range(1, count + 1):
                name = f"group{group}_conv{i}"
                x = net.relu(name, net.norm(f"{name}_norm", net.conv(name, x, width, 3)))
            x = max_pool(x)
        return net.outputs(average_pool(x))
