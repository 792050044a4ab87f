"""jax_enable_x64 changes nothing about a run: its state stays float32 and int32, and other processes can read it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import QUICKLY, SMALL, read_metrics, run

from robustjax import build, config, runs

BRIEF = [*SMALL, "--config.train.num_epochs=1", "--config.attack.warmup_epochs=0.5"]


def dtypes(tree):
    return {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree.leaves_with_path(tree)}


DEFENSES = (None, "cas", "cifs", "fsr", "kwta", "sap", "sns")


@pytest.mark.parametrize(
    ("objective", "defense"),
    [
        ("standard", None),
        *(("trades", defense) for defense in DEFENSES),
        *(pytest.param("standard", defense, marks=pytest.mark.slow) for defense in DEFENSES[1:]),
    ],
)
def test_a_step_keeps_the_dtypes_that_it_has_without_x64(objective, defense):
    made = config.digits()
    made.model.name, made.model.depth, made.model.width = "wide_resnet", 10, 1
    made.data.flip, made.data.crop_padding, made.data.cutout = True, 1, 2
    made.objective.name, made.defense.name = objective, defense
    made.train.ema_decay, made.train.accumulation = 0.9, 2
    experiment = build.experiment(made)
    expected = dtypes(jax.eval_shape(experiment.create_state))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        state = jax.eval_shape(experiment.create_state)
        images, labels = jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32)
        after = jax.eval_shape(experiment.step, state, images, labels)
    assert dtypes(state) == expected and dtypes(after) == expected


def test_a_run_with_x64_is_the_run_without_and_both_are_read_with_and_without(tmp_path):
    for name, x64 in (("with", "1"), ("without", "0")):
        done = run("train", *BRIEF, f"--workdir={tmp_path / name}", JAX_ENABLE_X64=x64)
        assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "with") == read_metrics(tmp_path / "without")
    jax.tree.map(np.testing.assert_array_equal, *(runs.load(tmp_path / name).variables for name in ("with", "without")))
    done = run(
        "evaluate",
        f"--workdir={tmp_path / 'without'}",
        "--attacks=clean,pgd20",
        "--num_examples=64",
        JAX_ENABLE_X64="1",
        **QUICKLY,
    )
    assert done.returncode == 0, done.stderr
    assert "pgd20" in done.stdout
