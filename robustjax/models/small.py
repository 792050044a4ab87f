"""Networks for small images, by default without BatchNorm."""

from __future__ import annotations

import flax.linen as nn

from robustjax.models.layers import Network, Pass, Sites, flatten, max_pool, with_inputs
from robustjax.types import Array, Outputs


class SmallCNN(Network):
    """The network of Wong and Kolter (2018, arXiv 1711.00851): two strided 4 x 4 convolutions, two dense layers.

    Attributes:
        batch_norm: BatchNorm between each convolution and its ReLU, which the published network does not have.
    """

    batch_norm: bool = False

    def sites(self) -> Sites:
        return with_inputs(("conv1", "conv2", "dense"), late=("conv1", "conv2"), final=("conv2",))

    def least_side(self) -> int:
        return 4

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        x = net.images
        for name, channels in (("conv1", 16), ("conv2", 32)):
            if self.batch_norm:
                x = net.norm(f"{name}_norm", net.conv(name, x, channels, 4, stride=2, padding=1))
            else:
                x = net.biased_conv(name, x, channels, 4, stride=2, padding=1)
            x = net.act(name, x)
        x = net.act("dense", net.dense("dense", flatten(x), 100))
        return net.outputs(x)


class LeNet5(Network):
    """LeNet-5 (LeCun et al. 1998) as it is used today: ReLU and max pooling."""

    def sites(self) -> Sites:
        return with_inputs(("conv1", "conv2", "dense1", "dense2"), late=("conv1", "conv2"), final=("conv2",))

    def least_side(self) -> int:
        return 12

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        net = Pass(self, images, labels, train)
        x = max_pool(net.act("conv1", net.biased_conv("conv1", net.images, 6, 5, padding=2)))
        x = max_pool(net.act("conv2", net.biased_conv("conv2", x, 16, 5, padding=0)))
        x = net.act("dense1", net.dense("dense1", flatten(x), 120))
        x = net.act("dense2", net.dense("dense2", x, 84))
        return net.outputs(x)
