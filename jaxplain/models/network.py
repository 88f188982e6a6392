"""What the ported networks have in common: taps, explicit padding, two ways to call them.

A network is a Flax Linen module: `network.init(key, images)` makes its variables, and
`network.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})`
trains it. Its parameters lie flat under the layer's name,
`variables["params"]["layer1.0.conv1"]["kernel"]`, so that names in files, in the tree and in
explanations are the same. Each network is also a plain function, `vgg16(params, images, gates=...,
masks=...)`: `jaxplain.models.functions` has them all.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxplain.model import check_images
from jaxplain.models.layers import Edits, check_names, mask, tap

Pair = tuple[int, int]

# He et al. 2015, https://arxiv.org/abs/1502.01852: keeps the variance of gradients through ReLUs.
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Taps:
    """The gates and masks of one pass through a network, and the names of the layers that it met.

    Attributes:
        names: every layer so far, in order.
    """

    def __init__(self, gates: Edits, masks: Edits, *, resize_masks: bool = False):
        self._gates, self._masks, self._resize = gates, masks, resize_masks
        self.names: list[str] = []

    def __call__(self, x: jax.Array, name: str) -> jax.Array:
        """Gate, mask and name one tensor: see `jaxplain.models.layers.tap`."""
        self.names.append(name)
        masks = self._masks
        if self._resize and masks is not None and name in masks and x.ndim == 4:
            masks = {name: resized(masks[name], (x.shape[1], x.shape[2]))}
        return tap(x, name, self._gates, masks)

    def mask_input(self, images: jax.Array) -> jax.Array:
        """Mask the pictures, if there is a mask for "input"; they are no layer and have no gate."""
        if self._masks is None or "input" not in self._masks:
            return images
        factors = self._masks["input"]
        if self._resize:
            factors = resized(factors, (images.shape[1], images.shape[2]))
        return mask(images, factors, "input")

    def check(self) -> None:
        """Raise ValueError if a gate or mask is for a layer that the network does not have."""
        check_names(tuple(self.names), gates=self._gates)
        check_names(("input", *self.names), masks=self._masks)


def resized(mask: jax.Array, shape: Pair) -> jax.Array:
    """Return a mask (..., h, w) at another size, bilinear and antialiased.

    At its own size it is returned as it is; the values stay between its least and its largest, so a
    mask of ones stays one.

    Example:
        >>> resized(jnp.ones((4, 4)), (2, 2)).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    mask = jnp.asarray(mask)
    if mask.shape[-2:] == shape:
        return mask
    if not jnp.issubdtype(mask.dtype, jnp.floating):
        mask = mask.astype(jnp.float32)
    smooth = jax.image.resize(mask, (*mask.shape[:-2], *shape), "linear")
    return smooth.clip(mask.min(), mask.max())


class Network(nn.Module):
    """A classifier whose every layer is tapped. Subclasses give `forward`.

    Attributes:
        num_classes: width of the head.
    """

    num_classes: int = 1000

    head: ClassVar[str] = "fc"
    """Name of the last dense layer, and of the logits."""

    flattened: ClassVar[Mapping[str, Pair]] = {}
    """Dense layers that read a flattened map -> its (height, width); torch has channels first."""

    @nn.compact
    def __call__(
        self,
        images: ArrayLike,
        *,
        train: bool = False,
        gates: Edits = None,
        masks: Edits = None,
        resize_masks: bool = False,
    ) -> Float[Array, "b classes"]:
        """Return the logits.

        Args:
            images: (B, H, W, 3) preprocessed pictures, floats; of any size that leaves the last
                pooling something to pool.
            train: use and update the statistics of the batch, and drop units; needs
                `mutable=["batch_stats"]` where there is batch norm and `rngs={"dropout": key}`
                where there is dropout.
            gates: layer name -> (K,) or (B, K) factors of its channels.
            masks: layer name or "input" -> (H, W) or (B, H, W) factors of its positions.
            resize_masks: bring each mask to the size of its layer first.

        Raises:
            TypeError: images that are not floats.
            ValueError: images of the wrong rank or too small; a gate or mask of the wrong shape or
                for an unknown layer.
        """
        images = check_images(images)
        taps = Taps(gates, masks, resize_masks=resize_masks)
        logits = self.forward(taps.mask_input(images), taps, train)
        taps.check()
        return logits

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        raise NotImplementedError(f"{type(self).__name__} defines no layers")

    timm_names: ClassVar[Mapping[str, str]] = {}
    """Our name of a layer -> timm's, for those that are neither ours nor torchvision's there."""

    torch_only: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of what torch's state dict has and this network does not."""

    def torch_names(self) -> dict[str, str]:
        """Return {our name of a layer with parameters: torchvision's}, for those that differ."""
        return {}


def as_function(name: str, network: Network) -> Callable[..., jax.Array]:
    """Return a network as a plain function of its parameters and images.

    Its keywords are `gates`, `masks` and `resize_masks`. The number of classes is read off the
    parameters.
    """

    def function(
        params: Mapping[str, Any],
        images: ArrayLike,
        *,
        gates: Edits = None,
        masks: Edits = None,
        resize_masks: bool = False,
    ) -> Float[Array, "b classes"]:
        try:
            classes = params["params"][network.head]["kernel"].shape[-1]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"params of {name} have no ['params'][{network.head!r}]['kernel']; "
                f"expected the variables that init or load_model made"
            ) from error
        logits = network.clone(num_classes=classes).apply(
            params, images, gates=gates, masks=masks, resize_masks=resize_masks
        )
        assert isinstance(logits, jax.Array)  # nothing is mutable
        return logits

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""Return the logits (B, classes) of images (B, H, W, 3) under {name}.

    Args:
        params: its variables, {{"params": ...}}, and {{"batch_stats": ...}} if it has batch norm.
        images: (B, H, W, 3) preprocessed pictures, floats.
        gates: layer name -> (K,) or (B, K) factors of its channels.
        masks: layer name or "input" -> (H, W) or (B, H, W) factors of its positions.
        resize_masks: bring each mask to the size of its layer first.

    Raises:
        ValueError: a gate or mask of the wrong shape or for an unknown layer; too small images.
    """
    return function


def conv(
    x: jax.Array,
    name: str,
    features: int,
    size: int | Pair,
    *,
    stride: int = 1,
    padding: int | Pair = 0,
    bias: bool = True,
    init: Callable[..., jax.Array] = HE_NORMAL,
) -> jax.Array:
    """Convolve (B, H, W, C) with `padding` zeros on both sides of each axis, as torch counts."""
    size, padding = pair(size), pair(padding)
    check_room(x, name, size, [(p, p) for p in padding])
    return nn.Conv(
        features,
        size,
        strides=stride,
        padding=[(p, p) for p in padding],
        use_bias=bias,
        kernel_init=init,
        name=name,
    )(x)


def batch_norm(x: jax.Array, name: str, train: bool, *, epsilon: float = 1e-5) -> jax.Array:
    """Normalise channels by running statistics.

    In training, by the batch's, which then move the running ones by a tenth (torch's momentum;
    torch takes the unbiased variance for that, Flax the biased one).
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, name=name)(x)


def dropout(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Drop units in training; nothing otherwise."""
    return nn.Dropout(rate, deterministic=not train)(x)


def flatten(x: jax.Array) -> jax.Array:
    """Return (B, H W C) features of (B, H, W, C) maps, for a dense layer.

    Rounding to its own precision changes no bit. It keeps XLA's CPU backend (jax 0.10.2) from
    fusing the dense layer into the convolutions before it, which then run three times as long.
    """
    kind = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x.reshape(x.shape[0], -1), kind.nexp, kind.nmant)


def pair(value: int | Pair) -> Pair:
    """Return `value` for both axes."""
    return (value, value) if isinstance(value, int) else value


def check_room(x: jax.Array, name: str, size: Pair, padding: list[Pair]) -> None:
    """Raise ValueError if a window does not fit into the padded (B, H, W, C)."""
    for length, window, (low, high) in zip(x.shape[1:3], size, padding, strict=True):
        if length + low + high < window:
            raise ValueError(
                f"images are too small: layer {name!r} gets {x.shape[1]}x{x.shape[2]} positions, "
                f"its window is {size[0]}x{size[1]}"
            )
