"""Maps that know nothing of the picture: what every explanation must beat."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def centre_map(height: int, width: int) -> Float[Array, "{height} {width}"]:
    """Return a cone: 1 at the centre of the image, falling linearly to 0 at its corners.

    Photographers centre their objects, so this is the baseline of the pointing game (Zhang et al.,
    ECCV 2016). Where a side is even, the pixels beside the centre share the maximum.

    Example:
        >>> centre_map(1, 5).tolist()
        [[0.0, 0.5, 1.0, 0.5, 0.0]]
    """
    rows = np.arange(height) - (height - 1) / 2
    columns = np.arange(width) - (width - 1) / 2
    distance = np.hypot(rows[:, None], columns[None, :])
    near, far = distance.min(), distance.max()
    cone = (far - distance) / (far - near) if far > near else np.ones_like(distance)
    return jnp.asarray(cone, jnp.float32)


def random_maps(
    key: jax.Array, count: int, height: int, width: int
) -> Float[Array, "{count} {height} {width}"]:
    """Return `count` maps of independent uniform values in [0, 1).

    Against a mask that covers a share f of the image, the expected IoU at threshold t is nearly
    (1 − t) f / ((1 − t) + f − (1 − t) f); the expected energy, and the chance of a plain hit, is f.

    Example:
        >>> random_maps(jax.random.key(0), 2, 4, 5).shape
        (2, 4, 5)
    """
    return jax.random.uniform(key, (count, height, width))
