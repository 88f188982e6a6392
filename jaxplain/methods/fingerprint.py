"""Whose parameters something was fitted for."""

import zlib

import jax
import numpy as np
from jax.core import Tracer

from jaxplain.model import Model


def fingerprint(model: Model) -> int:
    """Return a checksum of a model's parameters.

    Raises:
        ValueError: the parameters are not known, because the model is being traced.

    Example:
        >>> import jax.numpy as jnp
        >>> one, other = (Model.from_function(jnp.matmul, jnp.full(3, x)) for x in (1.0, 2.0))
        >>> fingerprint(one) == fingerprint(other)
        False
    """
    checksum = 0
    for leaf in jax.tree.leaves(model.params):
        if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
            raise ValueError("the parameters of the model are not known while it is traced")
        array = np.ascontiguousarray(leaf)
        checksum = zlib.crc32(f"{array.dtype.str}{array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return checksum
