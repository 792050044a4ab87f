"""The order of the epochs, the batches and the conversion to float, checked against definitions written anew here."""

import jax
import numpy as np
import pytest

from robustjax import data
from robustjax.types import InputError

MASK = 2**64 - 1


def philox4x64(key, counter):
    """Philox4x64-10 as published (Salmon et al. 2011), in Python's integers."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**40, 199)])
def test_the_order_of_an_epoch_is_the_rank_of_philox(seed, epoch):
    stream = [word for block in range(1, 6) for word in philox4x64((seed, epoch), (block, 0, 0, 0))][:18]
    order = data.epoch_order(seed, epoch, 18)
    assert order.dtype == np.int32
    assert order.tolist() == sorted(range(18), key=stream.__getitem__)


def test_the_order_of_an_epoch_is_pinned():
    assert data.epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_epochs_and_seeds_differ_and_every_example_comes_once():
    orders = [data.epoch_order(seed, epoch, 1000) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    agreements = [np.sum(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreements) < 10  # one is expected of two independent permutations


@pytest.mark.parametrize("size", [1, 7, 20, 21, 50])
def test_batches_give_back_the_data_set_and_mark_the_padding(size):
    dataset = data.load("digits", "test", num_examples=20)
    parts = list(data.batches(dataset.images, dataset.labels, size))
    assert len(parts) == -(-20 // size)
    for batch in parts:
        assert batch.images.shape == (size, 8, 8, 1) and batch.images.dtype == np.uint8
        assert batch.labels.shape == (size,) and batch.labels.dtype == np.int32
        assert batch.mask.shape == (size,) and batch.mask.dtype == bool
        assert not batch.images[~batch.mask].any() and not batch.labels[~batch.mask].any()
    masks = np.concatenate([batch.mask for batch in parts])
    assert masks[:20].all() and not masks[20:].any()
    assert np.array_equal(np.concatenate([batch.images for batch in parts])[masks], dataset.images)
    assert np.array_equal(np.concatenate([batch.labels for batch in parts])[masks], dataset.labels)


def test_a_batch_holds_at_least_one_example():
    with pytest.raises(InputError, match="batch_size"):
        next(data.batches(np.zeros((1, 2, 2, 1)), np.zeros(1, int), 0))


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["eager", "jit"])
def test_to_float_divides_by_255(wrap):
    values = np.arange(256, dtype=np.uint8)
    floats = np.asarray(wrap(data.to_float)(values))
    assert floats.dtype == np.float32
    # XLA multiplies by the rounded reciprocal, so the last bit may differ from a division; the ends may not.
    np.testing.assert_array_max_ulp(floats, values.astype(np.float32) / np.float32(255), maxulp=1)
    assert (floats[0], floats[-1]) == (0.0, 1.0)
