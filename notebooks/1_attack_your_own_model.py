# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attack your own model in ten lines
#
# An attack needs one thing of a model: a function from images `[B, H, W, C]` in `[0, 1]` to logits `[B, K]`. The model
# itself is not changed.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

from robustjax import attacks, data, evaluation

train, test = data.load("digits", "train"), data.load("digits", "test")
images, labels = data.to_float(test.images[:200]), jnp.asarray(test.labels[:200])

# %% [markdown]
# ## A model of yours
#
# Here two dense layers in plain JAX, trained for a few seconds on scikit-learn's digits.


# %%
def network(weights, images):
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ weights["in"])
    return hidden @ weights["out"]


keys = jax.random.split(jax.random.key(0))
weights = {"in": 0.1 * jax.random.normal(keys[0], (64, 64)), "out": 0.1 * jax.random.normal(keys[1], (64, 10))}
adam = optax.adam(1e-2)


@jax.jit
def step(weights, state):
    def loss(weights):
        logits = network(weights, data.to_float(train.images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(train.labels)).mean()

    updates, state = adam.update(jax.grad(loss)(weights), state)
    return optax.apply_updates(weights, updates), state


state = adam.init(weights)
for _ in range(200):
    weights, state = step(weights, state)

# %% [markdown]
# ## The ten lines
#
# `jax.tree_util.Partial` makes the weights arguments of the compiled program, so that other weights of the same shapes
# need no new compilation.

# %%
logits_fn = jax.tree_util.Partial(network, weights)
attack = jax.jit(
    lambda key, images, labels: attacks.pgd(logits_fn, key, images, labels, epsilon=0.15, step_size=0.03, num_steps=20)
)
adversarial = attack(jax.random.key(0), images, labels)
clean, attacked = (logits_fn(points).argmax(axis=1) for points in (images, adversarial))
print(f"clean {np.mean(clean == labels):.1%}, under PGD-20 {np.mean(attacked == labels):.1%}")

# %% [markdown]
# The perturbation stays within 0.15 of every pixel. Top: images, with the network's prediction; middle: what was
# added, from -0.15 (black) through 0 (grey) to 0.15 (white); bottom: what the network sees now, and its prediction.

# %%
fooled = np.flatnonzero((clean == labels) & (attacked != labels))[:8]
figure, axes = plt.subplots(3, 8, figsize=(8, 3.4))
for column, i in zip(axes.T, fooled, strict=True):
    pictures = (images[i], 0.5 + (adversarial[i] - images[i]) / 0.3, adversarial[i])
    for axis, picture in zip(column, pictures, strict=True):
        axis.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
    column[0].set_title(str(clean[i]), color="tab:green")
    column[2].set_title(str(attacked[i]), color="tab:red")

# %% [markdown]
# ## A figure to report
#
# PGD-20 is one attack. `evaluate` runs several, verifies every image they return in a separate forward pass, and gives
# each accuracy an interval. Its `pgd20` is that of the papers, with steps of epsilon / 10 from the image itself, and
# so not quite the one above. In the worst case an image is robust only if every attack fails. `autoattack` is the
# ensemble by which the field compares.

# %%
evaluation.evaluate(
    logits_fn,
    jax.random.key(0),
    images,
    labels,
    threat=evaluation.Threat("linf", 0.15),
    attacks=("clean", "pgd20", "apgd:loss=dlr,num_steps=50"),
)

# %% [markdown]
# ## A PyTorch model
#
# With the extra `torch` (gigabytes, so this is not a cell), one line makes such a function of any `torch.nn.Module`;
# everything else stays the same, images with the channels last included:
#
# ```python
# from robustjax import transforms
#
# logits_fn = transforms.from_torch_module(model.eval())
# ```
#
# "Judge your PyTorch model in three lines" in the documentation leads on to a report page, on the command line as well.
