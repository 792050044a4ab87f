"""PyTorch networks with the published structures and names, written for these tests: what ours must reproduce.

Every network maps images [B, C, H, W] to logits and auxiliary logits by kind, [S, B, K], in inference mode. Sizes are
free, so that tests stay quick.
"""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


def conv3(channels_in, channels_out, stride=1, bias=False):
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=bias)


# How near a forward pass came to a kink, relative to the size of what it cut: there, rounding decides on the gradient.
kinks = []


def relu(x):
    size = x.detach().abs()
    kinks.append(float(size.min() / size.mean()))
    return F.relu(x)


class Relu(nn.Module):
    def forward(self, x):
        return relu(x)


def max_pool(x):
    first, second = x.detach().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).topk(2, dim=4).values.unbind(4)
    kinks.append(float((first - second)[first > 0].min() / first.mean()))
    return F.max_pool2d(x, 2)


def pooled(features):
    return features.mean(dim=(2, 3))


def suppressed(features, fc):
    """CAS: raw class weights of the class that the auxiliary classifier predicts."""
    logits = fc(pooled(features))
    return features * fc.weight[logits.argmax(dim=1)][:, :, None, None], logits


class Pooled(nn.Module):
    def forward(self, features):
        return pooled(features)


class HiddenProbe(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.fc = nn.Linear(channels, hidden)

    def forward(self, features):
        return F.softplus(self.fc(pooled(features)), beta=5)


class Cifs(nn.Module):
    """CIFS: softmax of the probe's gradient at detached features."""

    def __init__(self, channels, classes, hidden=None):
        super().__init__()
        first = HiddenProbe(channels, hidden) if hidden else Pooled()
        self.Probe = nn.Sequential(first, nn.Linear(hidden or channels, classes))

    def forward(self, features):
        point = features.detach().requires_grad_()
        score = self.Probe(point).topk(2, dim=1).values.sum()
        (gradient,) = torch.autograd.grad(score, point, create_graph=True)
        mask = gradient.sum(dim=(2, 3)).softmax(dim=1)
        return features * mask[:, :, None, None], self.Probe(features)


def fsr_stack(channels, width):
    layers = [conv3(channels, width), nn.BatchNorm2d(width), Relu()]
    layers += [conv3(width, width), nn.BatchNorm2d(width), Relu(), conv3(width, channels)]
    return nn.Sequential(*layers)


class Separation(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.sep_net = fsr_stack(channels, width)

    def forward(self, features, tau=0.1, tiny=1e-8):
        keep = self.sep_net(features).sigmoid()
        pair = torch.stack([(keep + tiny).log(), (1 - keep + tiny).log()])
        return (pair / (tau + tiny)).softmax(dim=0)[0]


class Recalibration(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.rec_net = fsr_stack(channels, width)


class Network(nn.Module):
    classifier_name = "linear"

    def classifier_layers(self):
        return getattr(self, self.classifier_name).modules()

    def add_fsr(self, channels, classes, width):
        self.separation = Separation(channels, width)
        self.recalibration = Recalibration(channels, width)
        self.aux = nn.Sequential(nn.Linear(channels, classes))

    def recalibrated(self, features):
        mask = self.separation(features)
        robust, nonrobust = features * mask, features * (1 - mask)
        corrected = nonrobust + self.recalibration.rec_net(nonrobust) * (1 - mask)
        parts = {"robust": robust, "nonrobust": nonrobust, "recalibrated": corrected}
        return robust + corrected, {kind: self.aux(pooled(part))[None] for kind, part in parts.items()}


class Block(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3(width_in, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3(width, width), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1 or width_in != width:
            projection = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x):
        out = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(Network):
    def __init__(self, classes, guard=None, blocks=(1, 1, 1, 2), widths=(8, 12, 16, 24), hidden=6, normalised=False):
        super().__init__()
        self.guard = guard
        self.conv1, self.bn1 = conv3(3, widths[0]), nn.BatchNorm2d(widths[0])
        width_in = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layers = []
            for i in range(count):
                layers.append(Block(width_in, width, 2 if i == 0 and stage > 1 else 1))
                width_in = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        for i, block in enumerate(self.layer4):
            if guard == "cas":
                block.fc = nn.Linear(width_in, classes)
            elif guard == "cifs":
                block.Probe = Cifs(width_in, classes, None if i == blocks[-1] - 1 else hidden)
        if guard == "fsr":
            self.add_fsr(width_in, classes, hidden)
        self.linear = nn.Linear(width_in, classes)
        if normalised:
            self.register_buffer("mu", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
            self.register_buffer("sigma", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))

    def forward(self, x):
        if hasattr(self, "mu"):
            x = (x - self.mu) / self.sigma
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        heads, kinds = [], {}
        for block in self.layer4:
            x = block(x)
            if self.guard in ("cas", "cifs"):
                x, logits = suppressed(x, block.fc) if self.guard == "cas" else block.Probe(x)
                heads.append(logits)
        if self.guard == "fsr":
            x, kinds = self.recalibrated(x)
        return self.linear(pooled(x)), {"probe": torch.stack(heads)} if heads else kinds


class PreActBlock(nn.Module):
    """`ahead`: whether the shortcut takes what BatchNorm and ReLU make of the input, RobustBench's second version."""

    def __init__(self, width_in, width, stride, ahead):
        super().__init__()
        self.ahead = ahead
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), conv3(width_in, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3(width, width)
        if stride > 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False))

    def forward(self, x):
        out = relu(self.bn1(x))
        shortcut = self.shortcut(out if self.ahead else x) if hasattr(self, "shortcut") else x
        return self.conv2(relu(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet(Network):
    def __init__(self, classes, final_norm, blocks=(1, 1, 2, 1), widths=(8, 12, 16, 20)):
        super().__init__()
        self.conv1 = conv3(3, widths[0])
        width_in = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layers = []
            for i in range(count):
                layers.append(PreActBlock(width_in, width, 2 if i == 0 and stage > 1 else 1, final_norm))
                width_in = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        if final_norm:
            self.bn = nn.BatchNorm2d(width_in)
        self.linear = nn.Linear(width_in, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if hasattr(self, "bn"):
            x = relu(self.bn(x))
        return self.linear(pooled(x)), {}


class WideBlock(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), conv3(width_in, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3(width, width)
        if width_in != width:
            self.convShortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x, guard=lambda features: (features, None)):
        active = relu(self.bn1(x))
        shortcut = self.convShortcut(active) if hasattr(self, "convShortcut") else x
        guarded, logits = guard(active)
        return self.conv2(relu(self.bn2(self.conv1(guarded)))) + shortcut, logits


class Group(nn.Module):
    def __init__(self, count, width_in, width, stride):
        super().__init__()
        blocks = [WideBlock(width if i else width_in, width, 1 if i else stride) for i in range(count)]
        self.layer = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.layer:
            x, _ = block(x)
        return x


class WideResNet(Network):
    """`twin`: whether it holds the first group a second time, unused."""

    classifier_name = "fc"

    def __init__(self, classes, guard=None, count=2, width=1, twin=False, hidden=6):
        super().__init__()
        self.guard = guard
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = conv3(3, 16)
        for group in (1, 2, 3):
            setattr(self, f"block{group}", Group(count, widths[group - 1], widths[group], 1 if group == 1 else 2))
        if twin:
            self.sub_block1 = Group(count, widths[0], widths[1], 1)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)
        last, late = self.block3.layer[-1], self.block3.layer[-1].bn1.num_features
        if guard == "cas":
            last.fc, self.extra_fc = nn.Linear(late, classes), nn.Linear(widths[3], classes)
        elif guard == "cifs":
            last.Probe, self.Probe = Cifs(late, classes, hidden), Cifs(widths[3], classes)
        elif guard == "fsr":
            self.add_fsr(widths[3], classes, hidden)

    def forward(self, x):
        x = self.block2(self.block1(self.conv1(x)))
        *front, last = self.block3.layer
        for block in front:
            x, _ = block(x)
        heads, kinds = [], {}
        guards = {
            "cas": (lambda z: suppressed(z, last.fc), lambda z: suppressed(z, self.extra_fc)),
            "cifs": (lambda z: last.Probe(z), lambda z: self.Probe(z)),
        }
        if self.guard in guards:
            inner, outer = guards[self.guard]
            x, logits = last(x, inner)
            heads.append(logits)
            x, logits = outer(relu(self.bn1(x)))
            heads.append(logits)
        else:
            x = relu(self.bn1(last(x)[0]))
        if self.guard == "fsr":
            x, kinds = self.recalibrated(x)
        return self.fc(pooled(x)), {"probe": torch.stack(heads)} if heads else kinds


VGG_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class GuardedConv(nn.Module):
    def __init__(self, width_in, width, classes):
        super().__init__()
        self.conv, self.bn = conv3(width_in, width, bias=True), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return suppressed(relu(self.bn(self.conv(x))), self.fc)


class VggCas(Network):
    classifier_name = "layer8"

    def __init__(self, classes, widths=(20, 24)):
        super().__init__()
        width_in = 3
        for group, group_widths in enumerate(VGG_GROUPS, 1):
            layers = []
            for width in group_widths:
                if group == 5:
                    layers.append(GuardedConv(width_in, width, classes))
                else:
                    conv = conv3(width_in, width, bias=True)
                    layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), Relu()))
                width_in = width
            setattr(self, f"layer{group}", nn.ModuleList(layers))
        for name, width in zip(("layer6", "layer7"), widths, strict=True):
            dense = nn.Sequential(nn.Linear(width_in, width), nn.BatchNorm1d(width), Relu())
            setattr(self, name, dense)
            width_in = width
        self.layer8 = nn.Linear(width_in, classes)

    def forward(self, x):
        for group in range(1, 5):
            for layer in getattr(self, f"layer{group}"):
                x = layer(x)
            x = max_pool(x)
        heads = []
        for layer in self.layer5:
            x, logits = layer(x)
            heads.append(logits)
        x = max_pool(x).flatten(1)
        return self.layer8(self.layer7(self.layer6(x))), {"probe": torch.stack(heads)}


class VggFsr(Network):
    classifier_name = "classifier"

    def __init__(self, classes, widths=(20, 24), hidden=6):
        super().__init__()
        width_in = 3
        for group, group_widths in enumerate(VGG_GROUPS):
            layers = []
            for width in group_widths:
                layers += [conv3(width_in, width, bias=True), nn.BatchNorm2d(width), Relu()]
                width_in = width
            setattr(self, f"block{group}", nn.Sequential(*layers))
        self.add_fsr(width_in, classes, hidden)
        first, second = nn.Linear(width_in, widths[0]), nn.Linear(*widths)
        self.classifier = nn.Sequential(first, Relu(), second, Relu(), nn.Linear(widths[1], classes))

    def forward(self, x):
        for group in range(3):
            x = max_pool(getattr(self, f"block{group}")(x))
        x, kinds = self.recalibrated(self.block3(x))
        x = max_pool(self.block4(max_pool(x)))
        return self.classifier(pooled(x)), kinds


def randomise(network, images, seed=0):
    """Parameters and statistics as training leaves them: none 0, none 1, and outputs that tell the images apart.

    Such that no kink is near while these images pass.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)

    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.3, 0.5)
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = (6 / module.weight[0].numel()) ** 0.5
            uniform(module.weight, -bound, bound)
            if module.bias is not None:
                uniform(module.bias, -0.5, 0.5)
    for module in network.modules():
        if isinstance(module, Cifs):
            for parameter in module.parameters():
                parameter.data.mul_(4.0)
        elif isinstance(module, Separation):
            module.sep_net[6].weight.data.mul_(0.1)
    network.eval()
    # Masks make features small: without this, the classifier's bias would be all there is to compare.
    kinks.clear()
    classifier = [layer for layer in network.classifier_layers() if isinstance(layer, nn.Linear)][-1]
    logits = network(images)[0].detach()
    classifier.weight.data.div_(logits.std(dim=0).mean())
    return network if min(kinks) > 1e-6 else randomise(network, images, seed + 1)
