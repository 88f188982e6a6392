"""The canvas against areas that can be worked out by hand."""

import numpy as np

from jaxplain.data.canvas import Canvas


def square(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]])


def test_coverage_is_the_share_of_samples():
    """A square whose edges lie on the middle of samples covers those samples."""
    canvas = Canvas(8)
    middle = 0.5 / 32  # of the first of four samples in a pixel, in the picture's side
    canvas.polygons(square(0.25 + middle, 0.25 + middle, 0.5 + middle, 0.5 + middle), RED)
    layer = canvas.layer()
    along = np.array([0, 0, 1, 1, 0.25, 0, 0, 0], np.float32)
    np.testing.assert_array_equal(layer.alpha, along[:, None] * along)
    np.testing.assert_array_equal(layer.marked, np.zeros((8, 8)))
    np.testing.assert_allclose(layer.colour[..., 0], 200 * along[:, None] * along, atol=1)


def test_what_is_painted_over_a_marked_shape_hides_it():
    canvas = Canvas(8)
    middle = 0.5 / 32
    canvas.polygons(square(middle, middle, 1 - middle, 1 - middle), RED, marked=True)
    canvas.polygons(square(0.5 + middle, middle, 1 - middle, 1 - middle), RED)
    layer = canvas.layer()
    np.testing.assert_array_equal(layer.alpha, np.ones((8, 8)))
    np.testing.assert_array_equal(
        layer.marked, np.repeat([[1.0, 0.0]], 4, axis=1) * np.ones((8, 1))
    )


RED = np.array([[200.0, 0.0, 0.0]])
