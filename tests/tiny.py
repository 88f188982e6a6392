"""`tiny`, the network of the reference values in `data/explain_tiny.npz`, in Linen and in NNX."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Model

DATA = Path(__file__).parent / "data" / "explain_tiny.npz"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
# torch's layout: convolutions (out, in, height, width), dense layers (out, in).
SHAPES = {
    "features.0": (8, 3, 3, 3),
    "features.3": (16, 8, 3, 3),
    "features.5": (16, 16, 3, 3),
    "classifier.0": (32, 256),
    "classifier.2": (10, 32),
}


def fixture_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array that the reference values were computed with: a function of its name.

    Weights are He normal over their inputs, biases normal with deviation 0.05.
    """
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if len(shape) == 1:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    deviation = np.sqrt(2.0 / int(np.prod(shape[1:])))
    return (deviation * rng.standard_normal(shape, np.float32)).astype(np.float32)


def layers() -> dict[str, dict[str, np.ndarray]]:
    """Return {layer: {"kernel", "bias"}} in Flax's layout, names with underscores."""
    found = {}
    for name, shape in SHAPES.items():
        weight = fixture_array(f"{name}.weight", shape)
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        bias = fixture_array(f"{name}.bias", shape[:1])
        found[name.replace(".", "_")] = {"kernel": kernel, "bias": bias}
    return found


def references() -> dict[str, np.ndarray]:
    """Return the reference values; "images" are uint8, "targets" their classes."""
    with np.load(DATA) as file:
        return {key: file[key] for key in file.files}


def inputs() -> tuple[jax.Array, jax.Array]:
    """Return the normalised images (2, 32, 32, 3) and the targets (2,)."""
    found = references()
    images = (found["images"] / np.float32(255) - MEAN) / STD
    return jnp.asarray(images), jnp.asarray(found["targets"].astype(np.int32))


class LinenTiny(nn.Module):
    """The network in Linen; layers have torch's names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(8, (3, 3), padding=1, name="features_0")
        x = checkpoint_name(nn.relu(conv(x)), "features.1")
        x = checkpoint_name(nn.max_pool(x, (2, 2), (2, 2)), "features.2")
        conv = nn.Conv(16, (3, 3), (2, 2), padding=1, name="features_3")
        x = checkpoint_name(nn.relu(conv(x)), "features.4")
        conv = nn.Conv(16, (3, 3), padding=1, name="features_5")
        x = checkpoint_name(nn.relu(conv(x)), "features.6")
        x = flattened(nn.avg_pool(x, (2, 2), (2, 2)))
        x = checkpoint_name(nn.relu(nn.Dense(32, name="classifier_0")(x)), "classifier.1")
        return nn.Dense(10, name="classifier_2")(x)


class NnxTiny(nnx.Module):
    """The network in NNX; layers have torch's names."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.features_0 = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.features_3 = nnx.Conv(8, 16, (3, 3), (2, 2), padding=1, rngs=rngs)
        self.features_5 = nnx.Conv(16, 16, (3, 3), padding=1, rngs=rngs)
        self.classifier_0 = nnx.Linear(256, 32, rngs=rngs)
        self.classifier_2 = nnx.Linear(32, 10, rngs=rngs)
        for name, arrays in layers().items():
            for key, value in arrays.items():
                setattr(getattr(self, name), key, nnx.Param(jnp.asarray(value)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = checkpoint_name(nnx.relu(self.features_0(x)), "features.1")
        x = checkpoint_name(nnx.max_pool(x, (2, 2), (2, 2)), "features.2")
        x = checkpoint_name(nnx.relu(self.features_3(x)), "features.4")
        x = checkpoint_name(nnx.relu(self.features_5(x)), "features.6")
        x = flattened(nnx.avg_pool(x, (2, 2), (2, 2)))
        x = checkpoint_name(nnx.relu(self.classifier_0(x)), "classifier.1")
        return self.classifier_2(x)


def flattened(x: jax.Array) -> jax.Array:
    """Flatten channels first, as torch does."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def linen_model() -> Model:
    """Return `tiny` in Linen."""
    variables = {"params": jax.tree.map(jnp.asarray, layers())}
    return Model.from_linen(
        LinenTiny(), variables, input_shape=(32, 32, 3), name="tiny", default_layer="features.6"
    )


def nnx_model() -> Model:
    """Return `tiny` in NNX."""
    return Model.from_nnx(
        NnxTiny(), input_shape=(32, 32, 3), name="tiny", default_layer="features.6"
    )


MODELS = {"linen": linen_model, "nnx": nnx_model}


def relative_error(found: jax.Array, reference: np.ndarray) -> float:
    """Return max |found - reference| / max |reference|."""
    return float(np.abs(np.asarray(found) - reference).max() / np.abs(reference).max())
