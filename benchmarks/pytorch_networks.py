"""Networks in PyTorch as its users write them, the residual ones with the names of RobustBench's."""

import torch
from torch import nn


class Block(nn.Module):
    """Post-activation (He et al. 2015)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """With the stem for 32 x 32 images."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for stage, (inputs, outputs) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
            blocks = [Block(inputs, outputs, 1 if stage == 1 else 2), Block(outputs, outputs, 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    """Pre-activation (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        active = self.bn1(x).relu()
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(self.bn2(self.conv1(active)).relu())


class Group(nn.Module):
    """Blocks of one width."""

    def __init__(self, count, inputs, outputs, stride):
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width."""

    def __init__(self, depth, width, channels=3):
        super().__init__()
        widths, count = [16, *(16 * 2**i * width for i in range(3))], (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = (
            Group(count, widths[i], widths[i + 1], 1 if i == 0 else 2) for i in range(3)
        )
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean((2, 3)))


class SmallCNN(nn.Module):
    """The library's ``small_cnn``, with its weights."""

    def __init__(self, weights):
        super().__init__()
        kernels = {name: weights[f"conv{name}.kernel"].permute(3, 2, 0, 1) for name in "12"}
        self.convs = nn.ModuleList(
            nn.Conv2d(kernel.shape[1], kernel.shape[0], 4, stride=2, padding=1) for kernel in kernels.values()
        )
        self.dense = nn.Linear(*weights["dense.kernel"].shape)
        self.head = nn.Linear(*weights["head.kernel"].shape)
        with torch.no_grad():
            for i, conv in enumerate(self.convs, 1):
                conv.weight.copy_(kernels[str(i)])
                conv.bias.copy_(weights[f"conv{i}.bias"])
            for name in ("dense", "head"):
                getattr(self, name).weight.copy_(weights[f"{name}.kernel"].T)
                getattr(self, name).bias.copy_(weights[f"{name}.bias"])

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).relu()
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order in which ours flattens
        return self.head(self.dense(x).relu())


def loaded(network, weights):
    """A network with a state dict that has all but the counts of batches.

    Raises:
        RuntimeError: it lacks more, or has more.
    """
    missing, surplus = network.load_state_dict(weights, strict=False)
    other = [*surplus, *(name for name in missing if not name.endswith("num_batches_tracked"))]
    if other:
        raise RuntimeError(f"the networks differ: {sorted(other)}")
    return network
