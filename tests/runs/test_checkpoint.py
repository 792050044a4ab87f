"""Checkpoints come back bit for bit, and the right ones are kept."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax.runs.checkpoint import Checkpoints
from robustjax.runtime import sharding
from robustjax.training.state import TrainState
from robustjax.types import InputError


def make_state(step=0, seed=0):
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(seed), (3, 2))}}
    variables = {"params": params, "batch_stats": {}}
    optimizer = optax.sgd(0.1, momentum=0.9).init(params)
    sums = {"steps": jnp.ones(()), "loss": jnp.full((), 1 / 3)}
    return TrainState(
        jnp.asarray(step, jnp.int32), jax.random.key(seed + 1), variables, optimizer, None, sums, jnp.ones(())
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert ours.dtype == theirs.dtype
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_a_state_comes_back_as_it_was_on_every_device(tmp_path):
    layout = sharding.layout()
    state = layout.replicate(make_state(7))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(7, jax.eval_shape(make_state), layout)
    assert isinstance(restored, TrainState)
    assert_same(restored, state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.9, 0.5, 0.6, 0.2]):
            checkpoints.save(step, make_state(step), {"pgd_accuracy": accuracy})
        checkpoints.save(5, make_state(5))  # stopped by a signal: nothing measured
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 3, 4, 5]  # the signal's has pushed nothing out
        assert (checkpoints.best(), checkpoints.latest()) == (1, 5)
        assert [checkpoints.find(name) for name in ("best", "last", "4")] == [1, 5, 4]
        with pytest.raises(InputError, match=r"one of 1, 3, 4, 5, got '2'"):
            checkpoints.find("2")


def test_without_a_validation_the_best_is_the_newest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(3))
        assert checkpoints.best() == 3


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.find("best")


def save_two(workdir):
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (8, 16):
            checkpoints.save(step, make_state(step, seed=step), {"pgd_accuracy": step / 100})
    return workdir


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 4 for byte in data[middle : middle + 1]) + data[middle + 1 :]


DAMAGE = {
    "flipped": flip,
    "torn": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "gone": None,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_whatever_happens_to_any_file_what_is_restored_is_what_was_saved(tmp_path, how):
    """Every file of the newest checkpoint in turn: either nothing is lost with it, or the checkpoint before is used."""
    whole = save_two(tmp_path / "whole")
    files = sorted(path.relative_to(whole) for path in (whole / "checkpoints" / "16").rglob("*") if path.is_file())
    outcomes = []
    for i, name in enumerate(files):
        workdir = tmp_path / str(i)
        shutil.copytree(whole, workdir)
        if DAMAGE[how] is None:
            (workdir / name).unlink()
        else:
            (workdir / name).write_bytes(DAMAGE[how]((workdir / name).read_bytes()))
        warnings = []
        with Checkpoints(workdir, keep=2) as checkpoints:
            state, step = checkpoints.restore_newest(
                jax.eval_shape(make_state), sharding.layout(), warn=warnings.append
            )
            assert checkpoints.latest() == step
        assert_same(state, make_state(step, seed=step))
        if step == 8:
            (line,) = warnings
            assert "checkpoint of step 16" in line and "going on from the one of step 8" in line
            assert (workdir / "damaged_checkpoints" / "16").is_dir()
        else:
            assert not warnings
        outcomes.append(step)
    assert 8 in outcomes
