"""Directions of gradients whose squares float32 cannot hold."""

import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import geometry


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1.0, 1e18, 1e36])
def test_the_l2_direction_is_that_of_the_gradient_at_any_scale_with_pixels_that_have_none(scale):
    gradient = np.float32([[[[0.0, 3.0, -4.0]]], [[[0.0, 0.0, 1.0]]]]) * np.float32(scale)
    images = jnp.full(gradient.shape, 0.5)
    direction = geometry.get("l2").steepest(jnp.asarray(gradient), images, (0.0, 1.0))
    np.testing.assert_allclose(direction, [[[[0.0, 0.6, -0.8]]], [[[0.0, 0.0, 1.0]]]], rtol=1e-6)
