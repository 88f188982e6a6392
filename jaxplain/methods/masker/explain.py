"""The mask of each picture, in one forward run."""

from jaxtyping import Array, Float, Int

from jaxplain.methods.masker.network import apply_masker
from jaxplain.methods.masker.trained import Masker
from jaxplain.methods.method import explainer
from jaxplain.model import Model
from jaxplain.trace import capture


@explainer()
def explain(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    importance: Masker,
) -> Float[Array, "b h w"]:
    """Return the mask of each target, in 0..1: what the classifier needs for it.

    Dabkowski and Gal 2017, arXiv:1705.07857: one forward run up to the deepest layer that the
    masking network reads, and its own.

    Args:
        model: the classifier that the masker was trained for.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        importance: the masker.

    Returns:
        (B, H, W).

    Raises:
        TypeError: importance is no masker.
        ValueError: a masker for another model, whose layers this one has not.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxplain.methods import masker
        >>> from jaxplain.models import load_model
        >>> model = load_model("an8flower-single-6c")
        >>> images, own = jnp.ones((1, 112, 112, 3)), masker.shipped(model)
        >>> explain(model, images, jnp.array([3]), importance=own).shape
        (1, 112, 112)
    """
    if not isinstance(importance, Masker):
        raise TypeError(f"importance is a {type(importance).__name__}; expected a Masker")
    found = capture(model, images, importance.layers)
    features = [found[layer] for layer in importance.layers]
    size = (int(images.shape[1]), int(images.shape[2]))
    return apply_masker(importance.network, importance.params, features, targets, size).masks
