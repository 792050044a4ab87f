"""Trains the networks of this folder a little, and writes images to judge them on.

python docs/examples/train.py FOLDER [NAME ...]

Writes digits.npz, scikit-learn's handwritten digits at 32 x 32 in three equal channels (the last 297 of 1,797), and for
each name (by default linen_mlp, nnx_cnn and equinox_cnn; torchvision_resnet and timm_vit need those packages) a file of
weights.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

STEPS, BATCH_SIZE, LEARNING_RATE = 300, 64, 3e-3


def main(folder: str, *names: str) -> None:
    """Trains and writes."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = jax.image.resize(jnp.asarray(digits.images / 16.0, jnp.float32), (1797, 32, 32), "linear")
    images = np.repeat(np.asarray(images)[..., None].clip(0.0, 1.0), 3, axis=3)
    np.savez(out / "digits.npz", images=images[1500:], labels=digits.target[1500:])
    for name in names or ("linen_mlp", "nnx_cnn", "equinox_cnn"):
        batches = np.random.default_rng(0).integers(1500, size=(STEPS, BATCH_SIZE))
        TRAINERS[name](out, ((images[batch], digits.target[batch]) for batch in batches))
        print(f"{name} is trained", flush=True)


def fitted(loss, params, state, batches):
    """Parameters and state after a step of Adam for each batch; loss(params, state, *batch) -> (value, state)."""
    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(params, state, moments, *batch):
        (_, state), slopes = jax.value_and_grad(loss, has_aux=True)(params, state, *batch)
        updates, moments = optimizer.update(slopes, moments)
        return optax.apply_updates(params, updates), state, moments

    moments = optimizer.init(params)
    for batch in batches:
        params, state, moments = step(params, state, moments, *batch)
    return params, state


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def linen_mlp(out, batches):
    """A Flax Linen network."""
    import flax.traverse_util
    from linen_mlp import MLP, network

    def loss(params, _, images, labels):
        return cross_entropy(MLP().apply({"params": params}, images), labels), None

    params, _ = fitted(loss, network().args[0]["params"], None, batches)
    np.savez(out / "linen_mlp.npz", **flax.traverse_util.flatten_dict(params, sep="/"))


def nnx_cnn(out, batches):
    """A Flax NNX network, whose BatchNorm has statistics."""
    import flax.traverse_util
    from flax import nnx
    from nnx_cnn import CNN

    model = CNN(nnx.Rngs(0))
    graph, params, others = nnx.split(model, nnx.Param, ...)

    def loss(params, others, images, labels):
        model = nnx.merge(graph, params, others, copy=True)
        return cross_entropy(model(images), labels), nnx.split(model, nnx.Param, ...)[2]

    state = nnx.merge_state(*fitted(loss, params, others, batches))
    np.savez(out / "nnx_cnn.npz", **flax.traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/"))


def equinox_cnn(out, batches):
    """An Equinox network."""
    import equinox as eqx
    from equinox_cnn import CNN

    arrays, static = eqx.partition(CNN(jax.random.key(0)), eqx.is_array)

    def loss(arrays, _, images, labels):
        return cross_entropy(jax.vmap(eqx.combine(arrays, static))(jnp.moveaxis(images, 3, 1)), labels), None

    arrays, _ = fitted(loss, arrays, None, batches)
    eqx.tree_serialise_leaves(out / "equinox_cnn.eqx", eqx.combine(arrays, static))


def by_pytorch(name):
    """A trainer of a PyTorch module."""

    def train(out, batches):
        import importlib

        import torch

        module = importlib.import_module(name).network().train()
        optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE / 3)
        for images, labels in batches:
            optimizer.zero_grad()
            logits = module(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
            optimizer.step()
        torch.save(module.state_dict(), out / f"{name}.pt")

    return train


TRAINERS = {
    "linen_mlp": linen_mlp,
    "nnx_cnn": nnx_cnn,
    "equinox_cnn": equinox_cnn,
    "torchvision_resnet": by_pytorch("torchvision_resnet"),
    "timm_vit": by_pytorch("timm_vit"),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
