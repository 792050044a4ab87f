"""Sweeps: their points, one compilation for all, and what a picture shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.data import Dataset
from robustjax.evaluation.protocol import pictures, protocols, runner, specs, sweeps
from robustjax.evaluation.protocol.protocols import Threat
from robustjax.runtime import sharding
from robustjax.types import InputError

# Class 1 where the mean pixel exceeds one half: robust up to the distance from there.
LEVELS = np.array([20, 90, 120, 140, 200, 250, 130, 108], np.uint8)
IMAGES = np.tile(LEVELS.reshape(8, 1, 1, 1), (1, 2, 2, 1))
DATASET = Dataset("levels", IMAGES, (LEVELS > 127).astype(np.int32), 2, ("dark", "light"))
THREAT = Threat("linf", 0.1)


def points(kind, *names):
    chosen = protocols.of_specs(specs.parse(list(names)), THREAT, num_classes=2)
    return sweeps.points(kind, chosen, threat=THREAT, image_shape=(2, 2, 1))


@pytest.mark.parametrize("kind", sweeps.KINDS)
def test_all_points_are_one_program_and_give_the_closed_form(kind, key):
    traces = 0

    def network(variables, images):
        nonlocal traces
        traces += 1
        score = variables * (images.mean(axis=(1, 2, 3)) - 0.5)
        return jnp.stack([-score, score], axis=1)

    run = runner.Runner(
        jax.tree_util.Partial(network, jnp.float32(1.0)), DATASET.images, DATASET.labels, threat=THREAT,
        batch_size=8, layout=sharding.layout(),
    )  # fmt: skip
    swept = points(kind, "pgd20")
    outcomes = [run(point.protocol, key) for point in swept]
    assert traces == 2 + 2  # verification of images before and after; the attack's check of outputs, and its gradient
    for point, outcome in zip(swept, outcomes, strict=True):
        options = point.protocol.options
        reach = min(options["epsilon"], options["num_steps"] * options["step_size"])
        np.testing.assert_array_equal(outcome.robust, np.abs(LEVELS / 255 - 0.5) > reach, err_msg=str(point))
    rows = sweeps.summary(kind, swept, outcomes, num_classes=2, conditions={"seed": 0})["points"]
    accuracies = [row["accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > accuracies[-1]
    assert {"epsilon", "num_steps", "interval_95", "num_examples", "settings"} <= rows[0].keys()


def test_epsilon_goes_from_nothing_to_where_all_images_are_grey():
    swept = points("epsilon", "pgd20", "fgsm", "autoattack")
    at = [point.at for point in swept if point.attack == "pgd20"]
    np.testing.assert_allclose(at, [0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.5])
    (base,) = (point.protocol for point in swept if point.attack == "pgd20" and point.at == 0.1)
    # It shares what was stored of it.
    assert base == protocols.of_specs(specs.parse(["pgd20"]), THREAT, num_classes=2)["pgd20"]
    for point in swept:
        options = point.protocol.options
        assert options["epsilon"] == point.at
        np.testing.assert_allclose(options.get("step_size", point.at / 10), point.at / 10)
    for norm in ("linf", "l2", "l1"):
        size = {"linf": 1, "l2": 12**0.5, "l1": 12}[norm]
        assert sweeps.grey_radius(Threat(norm, 0.1), (2, 2, 3)) == pytest.approx(0.5 * size)


@pytest.mark.parametrize(
    ("kind", "name"), [("epsilon", "clean"), ("steps", "clean"), ("steps", "fgsm"), ("steps", "autoattack")]
)
def test_what_cannot_be_swept_is_refused(kind, name):
    with pytest.raises(InputError, match=f"--sweep={kind}: {name} has no"):
        points(kind, "pgd20", name)


@pytest.mark.parametrize("marked", [0.1, None])
def test_a_sweep_becomes_a_picture(tmp_path, marked):
    curves = {"pgd20": [(0.05, 0.9, 0.8, 0.95), (0.1, 0.5, 0.4, 0.6), (0.5, 0.0, 0.0, 0.1)]}
    path = tmp_path / "sweep.png"
    pictures.save_sweep(path, curves, quantity="epsilon", marked=marked, chance=0.1, title="a network")
    assert path.read_bytes().startswith(b"\x89PNG")
