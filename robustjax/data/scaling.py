"""Converts Pillow images of any mode and size to 8-bit arrays of one mode and size, on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

# The share of the shorter side that a centre crop keeps.
CENTRE = 224 / 256
NUM_DRAWS = 40  # that `random_resized_crop` takes: four for each attempt

# A side, of squares cut from the middle; or (height, width) of whole images.
Size = int | tuple[int, int]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name of an image with so many channels


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of 8 bits and so many channels, whatever the file holds.

    16-bit values v become v // 256, as TensorFlow reads them (Pillow would clip them at 255). Palettes become colours,
    colours become grey by their luminance where one channel is wanted. An alpha channel is dropped unless four channels
    are wanted: what counts is the colour that is stored, also where it is transparent.

    Args:
        image: as Pillow opens it.
        channels: 1, 3 or 4.

    Raises:
        ValueError: the image holds numbers that have no range of their own (32-bit integers or floats).

    >>> grey = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    >>> np.asarray(to_channels(grey, 1)).tolist()
    [[0, 0, 1, 255]]
    """
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"images must have 8 or 16 bits a channel, got one of mode {image.mode}")
    if image.mode.startswith("I"):  # 16 bits of grey; older versions of Pillow open them as 32-bit integers
        image = Image.fromarray((np.asarray(image).astype(np.int32) // 256).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns of dropping a palette's transparency at once
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def natural_channels(image: Image.Image) -> int:
    """How many channels the colours of an image have, without alpha: 1 of grey, 3 of colours and palettes.

    >>> natural_channels(Image.new("LA", (2, 2))), natural_channels(Image.new("P", (2, 2)))
    (1, 3)
    """
    return 1 if image.mode[0] in "1LIF" and image.mode != "LAB" else 3


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The middle of an image, as it is evaluated on: its shorter side scaled to size * 256 / 224, then cropped.

    Returns:
        uint8 [size, size] or [size, size, C].

    >>> centre_crop(Image.new("RGB", (500, 375)), 224).shape
    (224, 224, 3)
    """
    side = min(image.size) * CENTRE
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _scaled(image, (left, top, left + side, top + side), size)


def to_size(image: Image.Image, size: Size) -> np.ndarray:
    """An image scaled to a size: of one number its middle (:func:`centre_crop`), of a pair (H, W) the whole of it.

    A pair changes the proportions of an image that has others. Both scale bilinearly, with antialiasing.

    Returns:
        uint8 [H, W] or [H, W, C].

    >>> to_size(Image.new("RGB", (500, 375)), (32, 48)).shape
    (32, 48, 3)
    """
    if isinstance(size, int):
        return centre_crop(image, size)
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def random_resized_crop(image: Image.Image, size: int, draws: Sequence[float] | np.ndarray) -> np.ndarray:
    """A part of 8 to 100 % of an image's area, of a shape between 3:4 and 4:3 (Szegedy et al. 2015, arXiv 1409.4842).

    Ten attempts; if none fits the image, ``centre_crop``.

    Args:
        image: of any size.
        size: of the result.
        draws: ``NUM_DRAWS`` numbers, independent and uniform in [0, 1).

    Returns:
        uint8 [size, size] or [size, size, C].

    >>> random_resized_crop(Image.new("RGB", (500, 375)), 224, np.linspace(0, 0.99, NUM_DRAWS)).shape
    (224, 224, 3)
    """
    for u_area, u_shape, u_left, u_top in np.asarray(draws).reshape(-1, 4):
        area = image.width * image.height * (0.08 + 0.92 * u_area)
        ratio = math.exp((2 * u_shape - 1) * math.log(4 / 3))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= image.width and height <= image.height:
            left, top = u_left * (image.width - width), u_top * (image.height - height)
            return _scaled(image, (left, top, left + width, top + height), size)
    return centre_crop(image, size)


def _scaled(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
