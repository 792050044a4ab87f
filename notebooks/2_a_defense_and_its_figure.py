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
# # A defense as a pure function, and why a figure can look robust
#
# The defenses of this library are functions of feature maps. Here four defenses are put into the same small network,
# and each is attacked through its own gradient, through a useful one, and by transfer from the network without it. The
# lowest figure counts.

# %%
import jax
import jax.numpy as jnp
import optax

from robustjax import attacks, data, defenses
from robustjax.ops import straight_through

train, test = data.load("digits", "train"), data.load("digits", "test")
images, labels = data.to_float(test.images[:200]), jnp.asarray(test.labels[:200])


# %%
def network(weights, images, guard=lambda features: features):
    """Two dense layers, with a guard on the activations between them."""
    hidden = guard(jax.nn.relu(images.reshape(len(images), -1) @ weights["in"]))
    return hidden @ weights["out"]


keys = jax.random.split(jax.random.key(0))
weights = {"in": 0.1 * jax.random.normal(keys[0], (64, 256)), "out": 0.1 * jax.random.normal(keys[1], (256, 10))}
adam = optax.adam(3e-3)


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
# ## Four guards
#
# - **SAP** keeps activations at random, in proportion to their size, and scales them so that their expectation is the
#   same.
# - **kWTA** keeps the largest fifth of the activations.
# - **MeanSparse** sets what is close to its mean over the training images to that mean. It is one line.
# - **Rounding** to steps of a half stands for everything whose gradient is zero: quantised activations, hard
#   thresholds, a mask that saturates.

# %%
hidden = jax.nn.relu(data.to_float(train.images).reshape(-1, 64) @ weights["in"])
mean, spread = hidden.mean(axis=0), hidden.std(axis=0)


def mean_sparse(features, *, width=1.0):
    return jnp.where(jnp.abs(features - mean) < width * spread, mean, features)


def sap(key):
    return lambda features: defenses.sap.prune(key, features)


def kwta(features):
    return defenses.kwta.k_winners(features, fraction=0.2)


def rounding(features):
    return jnp.round(2 * features) / 2


# %% [markdown]
# ## The same networks with a useful gradient
#
# `straight_through(value, surrogate)` has the value of the first and the gradient of the second: the network's outputs
# stay the same, and on the backward pass the guard is the identity (BPDA, Athalye et al. 2018).

# %%
guards = {"none": lambda features: features, "kWTA": kwta, "MeanSparse": mean_sparse, "rounding": rounding}
threat = {"epsilon": 0.1, "step_size": 0.02, "num_steps": 20}


def accuracy(logits_fn, points):
    return float((logits_fn(points).argmax(axis=1) == labels).mean())


def pgd(logits_fn, **options):
    return jax.jit(lambda key: attacks.pgd(logits_fn, key, images, labels, **threat, **options))(jax.random.key(1))


rows = {}
for name, guard in guards.items():
    plain = lambda x, guard=guard: network(weights, x, guard)
    useful = lambda x, guard=guard: network(weights, x, lambda features: straight_through(guard(features), features))
    undefended = lambda x: network(weights, x)
    rows[name] = [accuracy(plain, points) for points in (images, pgd(plain), pgd(useful), pgd(undefended))]

# %% [markdown]
# SAP is random, so every call takes a key. One draw's gradient is that of one random mask; `eot_samples` averages
# over draws; and the surrogate passes through all of them.

# %%
noisy = lambda x, key: network(weights, x, sap(key))
surrogate = lambda x, key: network(weights, x, lambda features: straight_through(sap(key)(features), features))
fresh = lambda points: network(weights, points, sap(jax.random.key(99)))
rows["SAP"] = [
    accuracy(fresh, points)
    for points in (
        images,
        pgd(noisy, eot_samples=1),
        pgd(surrogate, eot_samples=20),
        pgd(lambda x: network(weights, x)),
    )
]
rows["SAP, EOT"] = [rows["SAP"][0], accuracy(fresh, pgd(noisy, eot_samples=20)), *rows["SAP"][2:]]

# %%
print(f"{'guard':12} {'clean':>7} {'direct':>7} {'BPDA':>7} {'transfer':>9}")
for name, values in rows.items():
    print(f"{name:12} " + " ".join(f"{value:7.1%}" for value in values))

# %% [markdown]
# Read the table row by row. The lowest figure of a row, apart from clean, is an upper bound on robustness.
#
# - Rounding has a gradient of zero: "direct" is nearly as good as clean. With the identity on the backward pass the
#   network is as weak as the one without a guard. The first figure reports the attack's failure, not robustness.
# - SAP, kWTA and MeanSparse hide little in a network as small as this. But they give nothing either: their lowest
#   figure is that of the network without them, within a few points, and the pruning costs clean accuracy.
#
# `evaluation.judge` runs all of these attacks by itself, and flags the difference as `surrogate_helps`,
# `transfer_beats_white_box` or `eot_not_converged`.

# %%
for name, (_, direct, *others) in rows.items():
    print(f"{name:12} looks {direct:6.1%} robust, is {min(direct, *others):6.1%} at most")
