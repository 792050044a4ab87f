"""Scaling and cropping on the host."""

import numpy as np
import pytest
from PIL import Image

from robustjax.data.scaling import NUM_DRAWS, centre_crop, random_crop

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)


def test_the_centre_of_an_image_of_the_usual_size_is_its_pixels():
    assert np.array_equal(centre_crop(Image.fromarray(PIXELS), 224), PIXELS[16:240, 16:240])
    wide = np.concatenate([PIXELS[:, :50] * 0, PIXELS, PIXELS[:, :50] * 0], axis=1)
    assert np.array_equal(centre_crop(Image.fromarray(wide), 224), PIXELS[16:240, 16:240])


def test_the_whole_area_is_the_whole_image():
    draws = np.full(NUM_DRAWS, 0.5)
    draws[0] = 1.0
    assert np.array_equal(random_crop(Image.fromarray(PIXELS), 256, draws), PIXELS)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_crops_lie_inside_and_show_one_part(mode):
    """A picture whose colour is its column: a crop's columns rise, over a range as wide as drawn."""
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (150, 1))).convert(mode)
    widths = []
    for _ in range(200):
        crop = random_crop(ramp, 32, RNG.random(NUM_DRAWS)).reshape(32, 32, -1)[..., 0].astype(int)
        assert np.all(np.diff(crop, axis=1) >= 0) and np.all(crop == crop[:1])
        widths.append((crop[0, -1] - crop[0, 0]) * 32 / 31)
    # The area is 8 to 100 % of 30,000 pixels, the shape 3:4 to 4:3, and no crop is wider than the image.
    assert min(widths) > np.sqrt(0.08 * 30_000 * 3 / 4) - 3 and max(widths) <= 200 and np.std(widths) > 20


def test_a_strip_that_no_crop_fits_is_cropped_in_its_middle():
    strip = Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (4, 1)))
    assert np.array_equal(random_crop(strip, 8, np.full(NUM_DRAWS, 0.9)), centre_crop(strip, 8))
