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
# # Add your own defense, and watch the judge read it
#
# The defense here rounds activations to a few levels. Rounding has a gradient of zero, so no attack that follows
# the gradient finds anything, and the network looks perfectly robust.

# %%
import jax
import jax.numpy as jnp
import optax

from robustjax import data, evaluation
from robustjax.ops import bpda

train, test = data.load("digits", "train"), data.load("digits", "test")
images, labels = data.to_float(test.images[:60]), jnp.asarray(test.labels[:60])


# %%
def rounded(features):
    return jnp.round(features * 2.0) / 2.0


def network(weights, images, guard):
    hidden = guard(jax.nn.relu(images.reshape(len(images), -1) @ weights["in"]))
    return hidden @ weights["out"]


keys = jax.random.split(jax.random.key(0))
weights = {"in": 0.1 * jax.random.normal(keys[0], (64, 64)), "out": 0.1 * jax.random.normal(keys[1], (64, 10))}
adam = optax.adam(1e-2)
useful = bpda(rounded, lambda features: features)  # its value, and the identity's gradient


@jax.jit
def step(weights, state):
    def loss(weights):
        logits = network(weights, data.to_float(train.images), useful)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(train.labels)).mean()

    updates, state = adam.update(jax.grad(loss)(weights), state)
    return optax.apply_updates(weights, updates), state


state = adam.init(weights)
for _ in range(200):
    weights, state = step(weights, state)


def defended(images):
    return network(weights, images, rounded)


# %% [markdown]
# ## The naive figure

# %%
result = evaluation.evaluate(
    defended, jax.random.key(0), images, labels, threat=evaluation.Threat("linf", 0.15), attacks=("clean", "pgd20")
)
result

# %% [markdown]
# PGD moves nothing: the derivative is zero everywhere.

# %%
gradient = jax.grad(lambda x: defended(x).max(axis=1).sum())(images)
print("largest entry of the gradient:", float(jnp.abs(gradient).max()))

# %% [markdown]
# ## The judge
#
# The judge is told nothing. It reads the network's program, finds the rounding and its line, attacks with another
# derivative in its place, and without gradients as well. The flags say that the network's own gradient is of no use.

# %%
verdict = evaluation.judge(defended, jax.random.key(0), images, labels, epsilon=0.15)
verdict

# %%
print(f"by PGD-20 {result.records[1]['accuracy']:.1%}, by the judge {verdict.worst_case:.1%}")
assert verdict.worst_case < result.records[1]["accuracy"]
print([name for name, flag in verdict.flags.items() if flag.status == "fail"])

# %% [markdown]
# If a gradient is hidden in a way that the program does not show, its author can declare it:
# `evaluation.Hints(surrogate_fn=...)` takes the network with a useful gradient, such as the one that it was trained
# with above. See "A defense of your own, and what it is worth" and "Add your own" in the documentation.
