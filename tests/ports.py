"""The ported networks under the weights of `fixture_weights`, and what torchvision computes."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fixture_weights import FixtureTensor
from flax import traverse_util

from jaxplain.models import alexnet, inception, resnet, vgg, zoo
from jaxplain.models.network import Network
from jaxplain.models.weights.fill import Slot, fill, torch_plan, variable_shapes

NETWORKS: dict[str, Network] = {
    "alexnet": alexnet.AlexNet(),
    "vgg11": vgg.VGG(depth=11),
    "vgg13": vgg.VGG(depth=13),
    "vgg16": vgg.VGG(depth=16),
    "vgg16_bn": vgg.VGG(depth=16, batch_norm=True),
    "vgg19": vgg.VGG(depth=19),
    "resnet18": resnet.ResNet(depth=18),
    "resnet34": resnet.ResNet(depth=34),
    "resnet50": resnet.ResNet(depth=50),
    "resnet101": resnet.ResNet(depth=101),
    "resnet152": resnet.ResNet(depth=152),
    "googlenet": inception.GoogLeNet(),
    "inception_v3": inception.InceptionV3(),
}

# torchvision's module -> our layer, where the names differ.
RENAMED = {
    "alexnet": {"features.1": "conv1", "features.5": "pool2", "features.12": "pool5"},
    "vgg11": {"features.1": "conv1_1", "features.19": "conv5_2", "classifier.4": "fc7"},
    "vgg13": {"features.1": "conv1_1", "features.23": "conv5_2", "classifier.4": "fc7"},
    "vgg16": {
        "features.1": "conv1_1",
        "features.4": "pool1",
        "features.9": "pool2",
        "features.16": "pool3",
        "features.23": "pool4",
        "features.29": "conv5_3",
        "features.30": "pool5",
        "classifier.4": "fc7",
    },
    "vgg16_bn": {"features.2": "conv1_1", "features.42": "conv5_3", "classifier.4": "fc7"},
    "vgg19": {
        "features.1": "conv1_1",
        "features.35": "conv5_4",
        "features.36": "pool5",
        "classifier.4": "fc7",
    },
}

TOLERANCE = 1e-4

# The side of the smallest images that leave each layer of a network some positions.
SIZES = {a.name: 32 if a.name.startswith("vgg") else 33 for a in zoo.ARCHITECTURES} | {
    "alexnet": 63,
    "vgg_f": 43,
    "inception_v3": 75,
}


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    path = Path(__file__).parent / "data" / "forward.npz"
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def variables_of(network: Network) -> Any:
    shapes = variable_shapes(network)
    plan = torch_plan(network, shapes, {})
    shared = {path: _drawn(slot.name, path) for path, slot in plan.items() if is_shared(path, slot)}
    plan = {path: slot for path, slot in plan.items() if path not in shared}
    tensors = {slot.name: FixtureTensor(slot.name, slot.shape) for slot in plan.values()}
    filled = traverse_util.flatten_dict(fill(plan, shapes, tensors, source="the fixture"))
    return traverse_util.unflatten_dict(filled | shared)


def is_shared(path: tuple[str, ...], slot: Slot) -> bool:
    """Whether this is the dense layer of a hundred million weights that all VGGs have."""
    return path == ("params", "fc6", "kernel") and slot.shape == (4096, 25088)


@functools.lru_cache(maxsize=1)
def _drawn(name: str, path: tuple[str, ...]) -> jax.Array:
    shapes = variable_shapes(NETWORKS["vgg16"])
    slot = torch_plan(NETWORKS["vgg16"], shapes, {})[path]
    assert slot.name == name
    tensors = {name: FixtureTensor(name, slot.shape)}
    filled = fill({path: slot}, shapes, tensors, source="the fixture")
    return traverse_util.flatten_dict(filled)[path]


def photographs(size: int) -> jax.Array:
    pictures = goldens()[f"images_{size}"].astype(np.float32) / 255
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return jnp.asarray((pictures - mean) / deviation)


def errors(name: str) -> dict[str, float]:
    """Return the relative error of the logits and of every recorded activation of a network."""
    network, reference = NETWORKS[name], goldens()
    images = photographs(299 if name == "inception_v3" else 224)
    # Not compiled as a whole: layers of one shape share what is compiled, in all networks.
    logits, layers = tapped(network, variables_of(network), images)
    found = {"logits": relative(logits, reference[f"{name}/logits"])}
    prefix = f"{name}/act/"
    for key in reference:
        if key.startswith(prefix) and key.endswith("/value"):
            module = key.removeprefix(prefix).removesuffix("/value")
            activation = layers[RENAMED.get(name, {}).get(module, module)]
            shape = reference[f"{prefix}{module}/shape_nhwc"]
            assert activation.shape == tuple(shape), module
            values = activation.reshape(-1)[reference[f"{prefix}{module}/index"]]
            found[module] = relative(values, reference[key])
    return found


def relative(ours: Any, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def interpret(program: Any, arguments: Any, change: Callable[[str, jax.Array], jax.Array]) -> Any:
    """Run a jaxpr equation by equation, with `change(name, tensor)` in place of what it names.

    Nothing of the package's own tracing is needed.
    """
    values = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(program.jaxpr.invars, jax.tree.leaves(arguments), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in program.jaxpr.eqns:
        parameters = equation.primitive.get_bind_params(equation.params)
        outputs = equation.primitive.bind(*map(read, equation.invars), **parameters)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
        if equation.primitive.name == "name":
            outputs = [change(equation.params["name"], outputs[0])]
        values.update(zip(equation.outvars, outputs, strict=True))
    return read(program.jaxpr.outvars[0])


def tapped(
    network: Network, variables: Any, images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the logits and every tensor that the network names."""
    layers: dict[str, jax.Array] = {}

    def keep(name: str, tensor: jax.Array) -> jax.Array:
        layers[name] = tensor
        return tensor

    program = jax.make_jaxpr(network.apply)(variables, images)
    return interpret(program, (variables, images), keep), layers


def layer_names(network: Network, size: int) -> list[str]:
    """Return the names of a network's layers, in order."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    program = jax.make_jaxpr(network.apply)(variables, images)
    return [e.params["name"] for e in program.jaxpr.eqns if e.primitive.name == "name"]


def cheap_variables(shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> Any:
    """Return variables that cost no time: a few thousand random numbers over and over.

    Args:
        shapes: path of each variable -> its shape, as `variable_shapes` tells them.
    """
    numbers = np.random.default_rng(0).standard_normal(4093).astype(np.float32)

    def values(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        drawn = np.resize(numbers, shape)
        if path[-1] == "kernel":
            return drawn * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        return 1 + 0.1 * np.abs(drawn) if path[-1] in ("scale", "var") else 0.1 * drawn

    return traverse_util.unflatten_dict({p: jnp.asarray(values(p, s)) for p, s in shapes.items()})
