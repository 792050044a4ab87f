"""A small vision transformer of timm: ``--model=docs/examples/timm_vit.py:network --weights=vit.safetensors``."""


def network():
    """A transformer for images of 32 x 32 in patches of 4 x 4, with random weights until ``--weights`` are loaded."""
    import timm
    import torch

    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=4, num_classes=10, embed_dim=64, depth=2, num_heads=4
    ).eval()
