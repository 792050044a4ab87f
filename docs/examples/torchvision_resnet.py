"""A ResNet-18 of torchvision: ``--model=docs/examples/torchvision_resnet.py:network --weights=resnet18.pth``."""


def network():
    """ResNet-18 for CIFAR-10, with random weights; ``--weights`` are loaded into it."""
    import torch
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()
