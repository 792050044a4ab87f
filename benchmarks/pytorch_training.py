"""The peer of ``gpu.py``: ResNet-18 for CIFAR in PyTorch, trained on PGD examples as its users do it on a GPU."""

import time

import pytorch_networks
import torch


def pgd_steps(*, batch_size, num_steps, repetitions, device="cuda", compiled=True):
    """Seconds of each training step: PGD in inference mode, then the update; bfloat16 autocast, channels last."""
    last = torch.channels_last
    model = pytorch_networks.ResNet18().to(device, memory_format=last)
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
