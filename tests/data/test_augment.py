"""Augmentation against NumPy: every image must be one of the results that the definition allows, each equally often."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from robustjax.data import augment
from robustjax.types import InputError

AUGMENTATIONS = {
    "crop": partial(augment.random_crop, padding=2),
    "flip": augment.random_flip,
    "cutout": partial(augment.cutout, size=3),
}


def images(batch, height, width, channels=1, dtype=np.float32):
    """Pixels from 1 up, all different within an image: no two crops agree, and 0 only comes from outside."""
    one = np.arange(1, 1 + height * width * channels, dtype=dtype).reshape(height, width, channels)
    return jnp.asarray(np.broadcast_to(one, (batch, height, width, channels)))


def frequencies(results, allowed):
    """How often each allowed image occurs; fails on an image that is not allowed."""
    index = {image.tobytes(): position for position, image in enumerate(allowed)}
    assert len(index) == len(allowed)
    counts = np.zeros(len(allowed))
    for result in np.asarray(results):
        counts[index[result.tobytes()]] += 1
    return counts


def is_uniform(counts):
    """Pearson's statistic within five standard deviations of its mean."""
    expected = counts.sum() / len(counts)
    degrees = len(counts) - 1
    return np.sum((counts - expected) ** 2) / expected < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_crops_are_the_windows_of_the_padded_image(key, dtype):
    batch = images(1000, 4, 5, 2, dtype)
    padded = np.pad(np.asarray(batch[0]), ((2, 2), (2, 2), (0, 0)))
    windows = [padded[row : row + 4, column : column + 5] for row in range(5) for column in range(5)]
    result = augment.random_crop(key, batch, padding=2)
    assert result.dtype == dtype
    assert is_uniform(frequencies(result, windows))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_flips_are_the_image_or_its_mirror_image(key, dtype):
    batch = images(1000, 2, 3, 2, dtype)
    result = augment.random_flip(key, batch)
    assert result.dtype == dtype
    assert is_uniform(frequencies(result, [np.asarray(batch[0]), np.asarray(batch[0])[:, ::-1]]))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutouts_are_squares_around_every_pixel(key, dtype, size):
    batch = images(1000, 5, 6, 2, dtype)
    squares = []
    for y in range(5):
        for x in range(6):
            image = np.array(batch[0])
            top, left = y - size // 2, x - size // 2
            image[max(top, 0) : top + size, max(left, 0) : left + size] = 0
            squares.append(image)
    result = augment.cutout(key, batch, size=size)
    assert result.dtype == dtype
    assert is_uniform(frequencies(result, squares))


def test_nothing_to_do_changes_nothing(key):
    batch = images(8, 4, 4)
    assert np.array_equal(augment.random_crop(key, batch, padding=0), batch)
    assert np.array_equal(augment.cutout(key, batch, size=0), batch)
    assert not augment.cutout(key, batch, size=8).any()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_key_decides_alone_in_eager_jit_and_vmap(name, key):
    function, batch = AUGMENTATIONS[name], images(32, 6, 6)
    keys = jax.random.split(key, 3)
    eager = np.stack([function(key, batch) for key in keys])
    assert not np.array_equal(eager[0], eager[1])
    assert np.array_equal(jax.jit(function)(keys[0], batch), eager[0])
    assert np.array_equal(jax.vmap(function, in_axes=(0, None))(keys, batch), eager)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_sharded_batch_stays_where_it_is(name, key):
    """The same images as on one device, and no pixel travels between devices."""
    batch = images(32, 6, 6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    compiled = (
        jax.jit(AUGMENTATIONS[name], out_shardings=sharding).lower(key, jax.device_put(batch, sharding)).compile()
    )
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    assert np.array_equal(compiled(key, jax.device_put(batch, sharding)), AUGMENTATIONS[name](key, batch))


def test_sizes_are_not_negative(key):
    with pytest.raises(InputError, match="padding"):
        augment.random_crop(key, images(2, 4, 4), padding=-1)
    with pytest.raises(InputError, match="size"):
        augment.cutout(key, images(2, 4, 4), size=-1)


def test_cutmix_covers_what_it_says_with_the_image_before(key):
    images = jnp.broadcast_to(jnp.arange(1.0, 65.0).reshape(64, 1, 1, 1), (64, 9, 12, 2))
    mixed, own = augment.cutmix(key, images, share=1.0)
    before = np.roll(np.arange(1, 65), 1)
    for i, (image, share) in enumerate(zip(np.asarray(mixed), np.asarray(own), strict=True)):
        box = image[..., 0] == before[i]
        assert ((image == i + 1) | (image == before[i])).all()
        np.testing.assert_allclose(share, 1 - box.mean(), atol=1e-6)
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        if len(rows):  # one box without holes, of the image's proportions unless a border cuts it
            assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    # lambda is uniform, so half of the area would be covered if nothing were cut; a border takes a good third of it.
    assert 0.6 < float(own.mean()) < 0.8
    _, few = augment.cutmix(key, images, share=0.25)
    assert 0.6 < float((few == 1).mean()) < 0.95
    np.testing.assert_array_equal(augment.cutmix(key, images, share=0.0)[0], images)
