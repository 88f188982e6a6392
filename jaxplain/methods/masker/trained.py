"""`Masker`: a masking network with what it belongs to, and its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.methods.fingerprint import fingerprint
from jaxplain.methods.fitted import Fitted
from jaxplain.methods.masker.network import MaskingNetwork, scales
from jaxplain.model import Model

KIND = Fitted(
    "masker",
    "masker",
    "masker",
    "real-time saliency needs a masker",
    "train one with jaxplain.training.masker.train_masker",
    verb="train",
)


@dataclass(frozen=True)
class Masker:
    """A masking network and what it belongs to; a pytree.

    Attributes:
        params: of `MaskingNetwork`.
        layers: of the classifier that it reads, the finest first.
        classes: of the classifier.
        widths: of the masking network.
        fingerprint: of the classifier's parameters.
        recipe: how it was trained and what it reaches, as JSON.
    """

    params: Mapping[str, Any]
    layers: tuple[str, ...]
    classes: int
    widths: tuple[int, ...]
    fingerprint: int
    recipe: str = field(default="{}", compare=False)

    @property
    def network(self) -> MaskingNetwork:
        """The masking network without its parameters."""
        return MaskingNetwork(self.classes, self.widths)


jax.tree_util.register_dataclass(
    Masker,
    data_fields=["params"],
    meta_fields=["layers", "classes", "widths", "fingerprint", "recipe"],
)


def first(
    model: Model, key: jax.Array, *, widths: tuple[int, ...] | None = None, recipe: str = "{}"
) -> Masker:
    """Return a masker that has learned nothing yet.

    Args:
        model: the classifier.
        key: of the first parameters.
        widths: channels of each scale, the finest first; None for 16, 32, 64, 128 …, at most 256.
        recipe: how it will be trained, as JSON.

    Raises:
        ValueError: as `scales`; not as many widths as scales.

    Example:
        >>> from jaxplain.models import load_model
        >>> masker = first(load_model("digits"), jax.random.key(0))
        >>> masker.layers, masker.widths
        (('pool1', 'conv2', 'pool2'), (16, 32, 64))
    """
    layers = scales(model)
    chosen = widths or tuple(min(16 << place, 256) for place in range(len(layers)))
    if len(chosen) != len(layers):
        raise ValueError(f"widths are {chosen}; expected {len(layers)}, one for each of {layers}")
    shapes = {layer.name: layer.shape for layer in model.layers()}
    features = tuple(jnp.zeros((1, *shapes[layer])) for layer in layers)
    images = jax.ShapeDtypeStruct((1, *(model.input_shape or ())), jnp.float32)
    classes = jax.eval_shape(lambda m, x: m(x), model, images).shape[-1]
    params = MaskingNetwork(classes, chosen).init(key, features, jnp.zeros(1, jnp.int32))
    return Masker(params["params"], layers, classes, chosen, fingerprint(model), recipe)


def save(path: str | Path, masker: Masker) -> None:
    """Write a masker as safetensors; the file appears when complete.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jaxplain.models import load_model
        >>> masker = first(load_model("digits"), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/own.masker.safetensors", masker)
        ...     load(f"{folder}/own.masker.safetensors").layers
        ('pool1', 'conv2', 'pool2')
    """
    arrays = {
        f"{layer}/{name}": value
        for layer, values in masker.params.items()
        for name, value in values.items()
    }
    told = {
        "layers": masker.layers,
        "classes": masker.classes,
        "widths": masker.widths,
        "fingerprint": masker.fingerprint,
        "recipe": json.loads(masker.recipe),
    }
    KIND.write(path, arrays, told)


def load(path: str | Path) -> Masker:
    """Read a masker.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no file of a masker.
    """
    return KIND.read(path, _masker)


def _masker(arrays: Mapping[str, jax.Array], told: Any) -> Masker:
    params: dict[str, dict[str, jax.Array]] = {}
    for place, array in arrays.items():
        layer, _, name = place.partition("/")
        params.setdefault(layer, {})[name] = array
    return Masker(
        params,
        tuple(told["layers"]),
        int(told["classes"]),
        tuple(told["widths"]),
        int(told["fingerprint"]),
        json.dumps(told["recipe"]),
    )


def shipped(model: Model) -> Masker:
    """Return the masker that ships with a model.

    Raises:
        ValueError: none does, or the model's weights are not those that it was trained for.

    Example:
        >>> from jaxplain.models import load_model
        >>> shipped(load_model("an8flower-single-6c")).layers
        ('conv2', 'conv3', 'conv4')
    """
    found = KIND.shipped(model, load)
    check_model(model, found, "the one that ships is for other weights")
    return found


def check_model(model: Model, masker: Masker, reason: str) -> None:
    """Raise ValueError unless a masker was trained for a model with these parameters."""
    KIND.check(model, [masker.fingerprint], reason)
