"""Methods as the tests call them: in few steps, and fitted to what is drawn at random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods import METHODS, Method, interpretation, masker
from jaxplain.methods.chip import ChipImportance, Settings
from jaxplain.methods.interpretation import RelevantFeatures, blocks
from jaxplain.model import Model

SETTINGS = Settings("", 0, 1, 1, 0.5, 0.7, "fresh")


def importances(model: Model, classes: int) -> dict[str, ChipImportance]:
    """Return importances of all layers with positions; all weights are positive."""
    found = {}
    for number, layer in enumerate(model.layers()):
        if len(layer.shape) == 3:
            shape = (classes, layer.shape[-1])
            weights = jax.random.uniform(jax.random.key(number), shape, minval=0.1)
            one = jnp.ones(classes)
            found[layer.name] = ChipImportance(
                weights, one, one, one > 0, one, one.astype(int), layer.name, "drawn", SETTINGS
            )
    return found


def features(model: Model, classes: int) -> RelevantFeatures:
    """Return weights of all features; about half are positive."""
    parts = blocks(model)
    count = sum(part.channels for part in parts)
    weights = jax.random.normal(jax.random.key(1), (classes, count))
    one = jnp.ones(classes)
    settings = interpretation.Settings(
        "", 0, 1, 1.0, "true", "all", False, False, count, 0, count, len(parts) - 1
    )
    return RelevantFeatures(weights, one, one, one > 0, one.astype(int), parts, settings)


def masks(model: Model, classes: int) -> masker.Masker:
    """Return a masking network that has learned nothing."""
    del classes
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.params)
    return masker.first(dataclasses.replace(model, params=zeros), jax.random.key(2))


DRAWS = {interpretation.shipped: features, masker.shipped: masks}


def fitted(method: Method, model: Model) -> Method:
    """Return the method, bound to the model if it needs a fit."""
    if method.fit is None:
        return method
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    classes = jax.eval_shape(lambda m, x: m(x), model, images).shape[-1]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params)
    bare = dataclasses.replace(model, params=shapes)  # it may be a traced one
    draw = DRAWS.get(method.fit, importances)
    return method.bound(model, draw(bare, classes))


FEWER = {"num_samples": 64, "samples": 4, "steps": 8, "inversion_steps": 4, "areas": (0.1, 0.3)}


def brief(method: Method) -> Method:
    """Return a costly method with as few copies as tell standard errors, and a few steps."""
    fewer = FEWER if method.costly else {}
    options = tuple((name, fewer.get(name, value)) for name, value in method.options)
    return dataclasses.replace(method, options=options)


BRIEF = {name: brief(method) for name, method in METHODS.items()}
