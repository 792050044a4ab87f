"""What a driver warns of, and of how little it does not: each bound from both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks.engine import output_warnings

COUNT, NUM_CLASSES = 8, 3
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.1, 0.4, (COUNT, 2, 2, 1)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, NUM_CLASSES)).astype(np.float32)


def linear(weights, images, *key):
    return images.reshape(images.shape[0], -1) @ weights


def of_batch(given, images):
    """The second half of the batch moves the logits of the first few images."""
    weights, moved = given
    logits = linear(weights, images)
    moves = jnp.where(jnp.arange(images.shape[0])[:, None] < moved, jnp.mean(images[images.shape[0] // 2 :]), 0.0)
    return logits + moves * jnp.eye(NUM_CLASSES)[:1]


def told(network, logits, *, stochastic=False, size=COUNT):
    found = output_warnings.output_warnings(
        network, KEY, IMAGES, logits, bounds=(0.0, 1.0), stochastic=stochastic, size=size, split=lambda batch: batch
    )
    names = {
        "logits are not finite": "not finite",
        "outputs are probabilities": "probabilities",
        "outputs differ": "randomness",
        "outputs change": "batch",
    }
    return [name for sentence in found for start, name in names.items() if sentence.startswith(start)]


NETWORK = jax.tree_util.Partial(linear, WEIGHTS)
LOGITS = np.asarray(linear(WEIGHTS, IMAGES))
SPAN = np.ptp(LOGITS)


@pytest.mark.parametrize(
    ("rows", "change", "warned"),
    [(8, 0.049, []), (8, 0.051, ["randomness"]), (5, 0.051, ["randomness"]), (4, 9.0, []), (1, 9.0, [])],
)
def test_two_programs_may_differ_by_rounding_and_on_half_of_the_images(rows, change, warned):
    others = LOGITS + np.where(np.arange(COUNT)[:, None] < rows, change * SPAN, 0.0) * np.eye(NUM_CLASSES)[:1]
    assert told(NETWORK, others.astype(np.float32)) == warned
    # Noise that was declared is none that hides.
    assert told(NETWORK, others.astype(np.float32), stochastic=True) == []


@pytest.mark.parametrize(("moved", "warned"), [(0, []), (2, []), (3, ["batch"]), (8, ["batch"])])
def test_other_images_behind_them_may_move_half_of_the_first(moved, warned):
    """Four images stay where they are, behind which four are mirrored."""
    network = jax.tree_util.Partial(of_batch, (WEIGHTS, jnp.int32(moved)))
    assert told(network, np.asarray(of_batch((WEIGHTS, moved), IMAGES))) == warned


def test_the_other_images_are_mirrored_between_the_walls():
    seen = []
    list(
        output_warnings.output_warnings(
            NETWORK, KEY, IMAGES, LOGITS, bounds=(0.1, 0.6), stochastic=False, size=COUNT,
            split=lambda batch: seen.append(batch) or batch,
        )
    )  # fmt: skip
    assert len(seen) == 3
    for batch, second in zip(seen, (IMAGES[4:], IMAGES[4:], 0.7 - IMAGES[4:]), strict=True):
        np.testing.assert_allclose(batch, np.concatenate([IMAGES[:4], second]), rtol=1e-6)


def test_rows_between_0_and_1_that_add_up_to_1_are_probabilities():
    rows = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    assert output_warnings.are_probabilities(rows)
    assert told(NETWORK, rows)[0] == "probabilities"
    assert not output_warnings.are_probabilities(1.01 * rows) and not output_warnings.are_probabilities(0.99 * rows)
    beyond = rows + np.array([[1.0, -0.5, -0.5]])
    np.testing.assert_allclose(beyond.sum(1), 1.0, rtol=1e-6)
    assert not output_warnings.are_probabilities(beyond)
    one = rows.copy()
    one[0] = [0.2, 0.2, 0.2]
    assert not output_warnings.are_probabilities(one)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_told_of_with_the_number_of_images(value):
    some = LOGITS.copy()
    some[[1, 4], 0] = value
    network = jax.tree_util.Partial(lambda logits, images: logits, some)
    assert told(network, some) == ["not finite"]
    assert "for 2 of 8 images" in output_warnings.not_finite(2, 8, "images")
    masked = LOGITS.copy()
    masked[:, 0] = -np.inf
    network = jax.tree_util.Partial(lambda logits, images: logits, masked)
    assert told(network, masked) == []


def test_a_change_is_measured_by_the_range_of_all_logits_and_nothing_is_like_nan_but_nan():
    first = np.array([[0.0, 10.0], [5.0, np.nan], [-np.inf, 1.0], [1.0, 2.0]], np.float32)
    other = first + np.array([[0.0, 0.2], [0.0, 0.0], [0.0, 0.0], [0.09, 0.0]], np.float32)
    np.testing.assert_array_equal(output_warnings._changed(first, other, 0.01), [True, False, False, False])
    other[1, 1], other[2, 0] = 3.0, np.inf
    np.testing.assert_array_equal(output_warnings._changed(first, other, 0.01), [True, True, True, False])
    # Equal logits have no range: a thousandth of their size takes its place.
    same = np.full((2, 3), 100.0, np.float32)
    moved = same + np.array([[0.0005], [0.0015]])
    np.testing.assert_array_equal(output_warnings._changed(same, moved, 0.01), [False, True])
    # Logits whose range is more than float32 holds.
    huge = np.array([[3e38, -3e38], [0.0, 1e38]], np.float32)
    np.testing.assert_array_equal(output_warnings._changed(huge, -huge, 0.01), [True, True])


def test_a_batch_of_one_is_looked_at_in_company():
    moving = jax.tree_util.Partial(of_batch, (WEIGHTS, COUNT))
    assert told(moving, np.asarray(of_batch((WEIGHTS, COUNT), IMAGES)), size=1) == ["randomness"]
    assert told(NETWORK, LOGITS, size=1) == []
