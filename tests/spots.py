"""A classifier that looks for the brightest spot, and pictures of spots: for masking networks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxplain.data.labelled import Data, Pictures
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing

SIDE, CLASSES = 16, ("red", "green", "blue")


def brightest(_, images):
    """How bright the brightest spot of each colour is; two layers to read."""
    fine = jax.lax.reduce_window(images, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    fine = checkpoint_name(jax.nn.relu(fine), "fine")
    coarse = jax.lax.reduce_window(fine, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    coarse = checkpoint_name(jax.nn.relu(coarse), "coarse")
    return 4 * coarse.max((1, 2))


MODEL = Model.from_function(
    brightest,
    jnp.zeros(1),
    preprocessing=Preprocessing((SIDE, SIDE), (0.2,) * 3, (0.2,) * 3),
    input_shape=(SIDE, SIDE, 3),
    class_names=CLASSES,
    name="brightest",
)


def spots(count, seed):
    """Dark pictures with a spot of the class's colour."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    images = random.integers(0, 40, (count, SIDE, SIDE, 3)).astype(np.uint8)
    masks = np.zeros((count, SIDE, SIDE), bool)
    for image, mask, label in zip(images, masks, labels, strict=True):
        top, left = random.integers(0, SIDE - 5, 2)
        image[top : top + 5, left : left + 5, label] = 255
        mask[top : top + 5, left : left + 5] = True
    return Pictures(images, labels), masks


DATA = Data(spots(120, 0)[0], spots(24, 1)[0], spots(24, 2)[0], CLASSES)
