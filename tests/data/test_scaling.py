"""Scaling and cropping on the host."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from robustjax.data.scaling import NUM_DRAWS, centre_crop, random_resized_crop, to_channels

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)


def test_the_centre_of_an_image_of_the_usual_size_is_its_pixels():
    assert np.array_equal(centre_crop(Image.fromarray(PIXELS), 224), PIXELS[16:240, 16:240])
    wide = np.concatenate([PIXELS[:, :50] * 0, PIXELS, PIXELS[:, :50] * 0], axis=1)
    assert np.array_equal(centre_crop(Image.fromarray(wide), 224), PIXELS[16:240, 16:240])


def test_the_whole_area_is_the_whole_image():
    draws = np.full(NUM_DRAWS, 0.5)
    draws[0] = 1.0
    assert np.array_equal(random_resized_crop(Image.fromarray(PIXELS), 256, draws), PIXELS)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_crops_lie_inside_and_show_one_part(mode):
    """A picture whose colour is its column: a crop's columns rise, over a range as wide as drawn."""
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (150, 1))).convert(mode)
    widths = []
    for _ in range(200):
        crop = random_resized_crop(ramp, 32, RNG.random(NUM_DRAWS)).reshape(32, 32, -1)[..., 0].astype(int)
        assert np.all(np.diff(crop, axis=1) >= 0) and np.all(crop == crop[:1])
        widths.append((crop[0, -1] - crop[0, 0]) * 32 / 31)
    # The area is 8 to 100 % of 30,000 pixels, the shape 3:4 to 4:3, and no crop is wider than the image.
    assert min(widths) > np.sqrt(0.08 * 30_000 * 3 / 4) - 3 and max(widths) <= 200 and np.std(widths) > 20


def test_a_strip_that_no_crop_fits_is_cropped_in_its_middle():
    strip = Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (4, 1)))
    assert np.array_equal(random_resized_crop(strip, 8, np.full(NUM_DRAWS, 0.9)), centre_crop(strip, 8))


# PNG files of every kind, made by hand: Pillow writes no 16-bit colours. Type of colour -> samples of a pixel.
SAMPLES = {"grey": (0, 1), "colour": (2, 3), "palette": (3, 1), "grey and alpha": (4, 2), "colour and alpha": (6, 4)}
PALETTE = [(10, 20, 30), (200, 100, 0), (7, 7, 7)]


def png(kind, pixels, *, bits, transparency=None):
    """The file of pixels [H, W, samples]."""
    height, width, _ = pixels.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, SAMPLES[kind][0], 0, 0, 0))
        + (chunk(b"PLTE", bytes(sum(PALETTE, ()))) if kind == "palette" else b"")
        + (chunk(b"tRNS", transparency) if transparency else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def decoded(content, channels):
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(to_channels(image, channels))
    return pixels.reshape(*pixels.shape[:2], channels).astype(int)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if kind != "palette"])
def test_png_files_of_either_depth_are_read_in_their_range(kind, bits):
    """16 bits are scaled to 8, where Pillow alone would clip grey at 255; an alpha channel goes unless it is wanted."""
    values = np.random.default_rng(1).integers(0, 2**bits, (5, 7, SAMPLES[kind][1]))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    expected = values // 2 ** (bits - 8)
    colours, alpha = expected, np.full((5, 7, 1), 255)
    if "alpha" in kind:
        colours, alpha = expected[..., :-1], expected[..., -1:]
    content = png(kind, values, bits=bits)
    if "grey" in kind:
        np.testing.assert_array_equal(decoded(content, 1), colours)
        colours = np.repeat(colours, 3, axis=-1)
    else:
        luminance = colours @ np.array([[0.299], [0.587], [0.114]])
        np.testing.assert_allclose(decoded(content, 1), luminance, atol=1)
    np.testing.assert_array_equal(decoded(content, 3), colours)
    np.testing.assert_array_equal(decoded(content, 4), np.concatenate([colours, alpha], axis=-1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, bytes([0, 128])])
def test_palettes_become_their_colours(transparency):
    indices = np.array([[0, 1, 2], [2, 1, 0]])
    content = png("palette", indices[..., None], bits=8, transparency=transparency)
    colours = np.array(PALETTE)[indices]
    np.testing.assert_array_equal(decoded(content, 3), colours)
    alpha = np.array([0, 128, 255] if transparency else [255] * 3)[indices]
    np.testing.assert_array_equal(decoded(content, 4), np.concatenate([colours, alpha[..., None]], axis=-1))
    np.testing.assert_allclose(decoded(content, 1)[..., 0], colours @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_black_and_white_is_0_and_255():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[True, False]])).save(buffer, "PNG")
    np.testing.assert_array_equal(decoded(buffer.getvalue(), 1)[..., 0], [[255, 0]])


def test_numbers_without_a_range_are_refused():
    for dtype in (np.float32, np.int32):
        with pytest.raises(ValueError, match="8 or 16 bits"):
            to_channels(Image.fromarray(np.ones((2, 2), dtype)), 1)
