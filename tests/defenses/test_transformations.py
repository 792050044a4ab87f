"""All pure functions, values and gradients, under every transformation: each must give what jit gives."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from robustjax.defenses import cas, cifs, fsr, kwta, meansparse, sap, sns

GROUPS, B, C, K = 4, 2, 6, 3
RNG = np.random.default_rng(0)
FEATURES, OTHERS = (jnp.asarray(array, jnp.float32) for array in RNG.normal(size=(2, GROUPS, B, 4, 4, C)))
WEIGHTS, BIASES = jnp.asarray(RNG.normal(size=(C, K)), jnp.float32), jnp.asarray(RNG.normal(size=K), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, K, (GROUPS, B)))
KEYS = jax.random.split(jax.random.key(0), GROUPS)


def _everything(key, features, others, labels):
    robust, nonrobust, mask = fsr.separate(others, features, key=key, temperature=0.5)
    sensitivity = sns.sensitivity(features, others)
    sensitive = {"late": sns.select_sensitive(sensitivity, fraction=0.5)}
    return {
        "sap": sap.prune(key, features),
        "sap bernoulli": sap.prune(key, features, sampler="bernoulli"),
        "kwta": kwta.k_winners(features, fraction=0.3),
        "meansparse": meansparse.sparsify(features, BIASES.repeat(2), jnp.abs(WEIGHTS[:, 0]), alpha=0.3),
        "cas training": cas.suppress(features, WEIGHTS, BIASES, labels),
        "cas inference": cas.suppress(features, WEIGHTS, BIASES, differentiate_selection=True),
        "cifs training": cifs.select(partial(cifs.probe, [(WEIGHTS, BIASES)]), features, labels),
        "cifs inference": cifs.select(lambda z: cifs.probe([(WEIGHTS, BIASES)], z**2), others, differentiate_mask=True),
        "fsr": (robust, nonrobust, mask, fsr.recalibrate(nonrobust, others, mask)),
        "sns": sns.stabilizing_loss({"late": features}, {"late": others}, sensitive),
    }


def _values_and_gradients(key, features, others, labels):
    def total(features, others):
        outputs = _everything(key, features, others, labels)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)), outputs

    (_, outputs), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(features, others)
    return outputs | {"gradients": gradients}


@pytest.fixture(scope="module")
def expected():
    # One trace for all groups: nothing in the program may depend on values.
    compiled = jax.jit(chex.assert_max_traces(_values_and_gradients, n=1))
    groups = [compiled(KEYS[i], FEATURES[i], OTHERS[i], LABELS[i]) for i in range(GROUPS)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *groups)


def _sharded(*arguments):
    mesh = jax.make_mesh((GROUPS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    parts = PartitionSpec("data")

    def one(*shards):
        result = _values_and_gradients(*(shard[0] for shard in shards))
        return jax.tree.map(lambda leaf: leaf[None], result)

    return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(parts,) * 4, out_specs=parts))(*arguments)


TRANSFORMED = {
    "vmap": jax.jit(jax.vmap(_values_and_gradients)),
    "pmap": jax.pmap(_values_and_gradients),
    "shard_map": _sharded,
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_every_transformation_gives_the_same(expected, name):
    result = TRANSFORMED[name](KEYS, FEATURES, OTHERS, LABELS)
    for key in expected:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5, err_msg=f"{name}: {key}"),
            jax.tree.map(np.asarray, result[key]),
            expected[key],
        )


@pytest.mark.parametrize("x64", [False, True])
def test_arrays_of_numpy_give_what_those_of_jax_give(expected, x64):
    """Also in float64, as NumPy makes them, and with labels in int64."""
    given = np.asarray(FEATURES[0], np.float64), np.asarray(OTHERS[0], np.float64), np.asarray(LABELS[0], np.int64)
    with jax.enable_x64(x64):
        result = _everything(KEYS[0], *given)
    assert result["sap"].dtype == (jnp.float64 if x64 else jnp.float32)
    for name, value in result.items():
        for leaf, wanted in zip(jax.tree.leaves(value), jax.tree.leaves(expected[name]), strict=True):
            assert isinstance(leaf, jax.Array) and (x64 or leaf.dtype == wanted.dtype), name
            np.testing.assert_allclose(leaf, wanted[0], rtol=1e-4, atol=1e-5, err_msg=name)
