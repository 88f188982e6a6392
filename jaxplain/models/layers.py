"""`tap`: the one place where a network's tensor gets its name, its gates and its mask.

Every ReLU, pooling and layer output of the networks in this package passes through `tap`, so that
nothing that explains them can be bypassed: the name is a `jax.ad_checkpoint.checkpoint_name`, which
`jaxplain.capture`, `split` and `edit` read.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxplain.names import unknown

Edits = Mapping[str, jax.Array] | None


def tap(x: jax.Array, name: str, gates: Edits = None, masks: Edits = None) -> jax.Array:
    """Gate, mask and name one tensor of a network.

    Args:
        x: (B, H, W, K) feature maps or (B, K) features.
        name: the layer's name.
        gates: layer name -> (K,) or (B, K) factors of the channels.
        masks: layer name -> (H, W) or (B, H, W) factors of the positions.

    Returns:
        `x` multiplied by what is asked for this layer, tagged `name`. Absent means untouched, at no
        cost.

    Raises:
        ValueError: a gate or mask of the wrong shape, or a mask for a layer without positions.

    Example:
        >>> x = jnp.ones((1, 2, 2, 3))
        >>> float(tap(x, "conv1", gates={"conv1": jnp.array([1.0, 0.0, 0.0])}).sum())
        4.0
    """
    if gates is not None and name in gates:
        x = gate(x, gates[name], name)
    if masks is not None and name in masks:
        x = mask(x, masks[name], name)
    return checkpoint_name(x, name)


def gate(x: jax.Array, factors: jax.Array, name: str) -> jax.Array:
    """Multiply the channels of `x` (B, ..., K) by (K,) or (B, K) factors."""
    factors = jnp.asarray(factors, x.dtype)
    if factors.shape not in ((x.shape[-1],), (x.shape[0], x.shape[-1])):
        raise ValueError(
            f"gates[{name!r}] has shape {factors.shape}; "
            f"expected ({x.shape[-1]},) or {(x.shape[0], x.shape[-1])}"
        )
    batch = factors.shape[0] if factors.ndim == 2 else 1
    return x * factors.reshape(batch, *(1,) * (x.ndim - 2), x.shape[-1])


def mask(x: jax.Array, factors: jax.Array, name: str) -> jax.Array:
    """Multiply the positions of `x` (B, H, W, K) by (H, W) or (B, H, W) factors."""
    factors = jnp.asarray(factors, x.dtype)
    if x.ndim != 4:
        raise ValueError(
            f"masks[{name!r}]: this layer has shape {x.shape} and no positions to mask"
        )
    if factors.shape not in (x.shape[1:3], x.shape[:3]):
        raise ValueError(
            f"masks[{name!r}] has shape {factors.shape}; expected {x.shape[1:3]} or {x.shape[:3]}"
        )
    return x * (factors if factors.ndim == 3 else factors[None])[..., None]


def check_names(known: tuple[str, ...], **edits: Edits) -> None:
    """Raise ValueError when gates or masks name a layer that the network does not have."""
    for argument, mapping in edits.items():
        for name in mapping or ():
            if name not in known:
                raise ValueError(unknown(argument, name, known))
