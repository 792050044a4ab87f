"""The peer of ``gpu.py``: ResNet-18 for CIFAR in PyTorch, trained on PGD examples as its users do it on a GPU."""

import time


def network(torch):
    """He et al. 2015 with the stem for 32 x 32 images."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            self.shortcut = nn.Sequential()
            if stride > 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = torch.relu(self.norm1(self.conv1(x)))
            return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

    blocks, inputs = [], 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def pgd_steps(torch, *, batch_size, num_steps, repetitions, device="cuda", compiled=True):
    """Seconds of each training step: PGD in inference mode, then the update; bfloat16 autocast, channels last."""
    last = torch.channels_last
    model = network(torch).to(device, memory_format=last)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images = torch.rand(batch_size, 3, 32, 32, device=device).contiguous(memory_format=last)
    labels = torch.randint(0, 10, (batch_size,), device=device)
    epsilon, length = 8 / 255, 2 / 255

    def loss(points):
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = forward(points)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    def step():
        model.eval()
        points = (images + torch.empty_like(images).uniform_(-epsilon, epsilon)).clamp(0, 1)
        for _ in range(num_steps):
            points.requires_grad_(True)
            (slope,) = torch.autograd.grad(loss(points), points)
            moved = points.detach() + length * slope.sign()
            points = torch.clamp(torch.clamp(moved, images - epsilon, images + epsilon), 0, 1)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss(points).backward()
        optimizer.step()

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):  # compiles both modes
        step()
    wait()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - started)
    return seconds
