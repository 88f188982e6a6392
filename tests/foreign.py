"""Networks of other libraries, made of their own modules, and how each library itself runs them.

Running statistics are as after training: different for every channel.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing

SIZE = (12, 10, 3)
DESCRIBED: dict[str, Any] = {
    "input_shape": SIZE,
    "preprocessing": Preprocessing(SIZE[:2], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}


class Network(NamedTuple):
    """A model and the call of its own library: images -> logits."""

    model: Model
    by_hand: Callable[[jax.Array], jax.Array]


# What a kind of parameter or statistic is drawn from: normal, or uniform between two numbers.
RANGES = {"var": (0.5, 2.0), "scale": (0.5, 1.5), "other": (-0.3, 0.3)}


def draw(seed: int, shape: tuple[int, ...], kind: str = "other") -> jax.Array:
    """Return numbers as a training may leave them; weights of any layout are scaled to be large."""
    rng = np.random.default_rng((seed, *shape))
    if len(shape) > 1 and kind == "other" and np.prod(shape) > max(shape):
        return jnp.asarray(
            rng.standard_normal(shape) * np.sqrt(4 / np.prod(shape) ** 0.6), jnp.float32
        )
    return jnp.asarray(rng.uniform(*RANGES[kind], shape), jnp.float32)


# -- Haiku -----------------------------------------------------------------------------------------


class HaikuBlock(hk.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = hk.Conv2D(channels, 3, stride, with_bias=False)
        self.norm = hk.BatchNorm(True, True, 0.9)

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x), is_training))


def haiku_function(x: jax.Array, is_training: bool) -> jax.Array:
    """Two blocks, global average, one dense layer."""
    for stride in (1, 2):
        x = HaikuBlock(4 * stride, stride)(x, is_training)
    return hk.Linear(5)(x.mean((1, 2)))


haiku_network = hk.transform_with_state(haiku_function)


def haiku_resnet_function(x: jax.Array, is_training: bool) -> jax.Array:
    """Haiku's own ResNet, as small as it can be made."""
    return hk.nets.ResNet(
        blocks_per_group=(1, 1, 1, 1),
        num_classes=5,
        bottleneck=False,
        channels_per_group=(4, 4, 8, 8),
        use_projection=(True,) * 4,
        initial_conv_config={
            "output_channels": 4,
            "kernel_shape": 7,
            "stride": 2,
            "with_bias": False,
        },
    )(x, is_training)


def of_haiku(network: Any, size: tuple[int, int, int], seed: int, **described: Any) -> Network:
    """Make a model of a Haiku network, with parameters and statistics drawn."""
    images = jax.ShapeDtypeStruct((1, *size), jnp.float32)
    init = functools.partial(network.init, is_training=True)
    shapes = jax.eval_shape(init, jax.random.key(0), images)

    def leaf(path: Any, struct: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        kind = next((kind for kind in ("var", "scale") if kind in name), "other")
        return draw(seed, struct.shape, kind)

    params, state = jax.tree_util.tree_map_with_path(leaf, shapes)
    model = Model.from_haiku(
        network, params, state, call={"is_training": False}, **{**DESCRIBED, **described}
    )
    return Network(model, lambda x: network.apply(params, state, None, x, False)[0])


def haiku() -> Network:
    """Return a small network of Haiku's modules."""
    return of_haiku(haiku_network, SIZE, 0, name="haiku", default_layer="haiku_block_1")


def haiku_resnet() -> Network:
    """Return Haiku's ResNet."""
    size = (32, 32, 3)
    network = hk.transform_with_state(haiku_resnet_function)
    return of_haiku(
        network,
        size,
        1,
        name="haiku resnet",
        input_shape=size,
        default_layer="res_net.block_group_3.block_0",
    )


# -- Equinox ---------------------------------------------------------------------------------------


class EquinoxBlock(eqx.Module):
    """Convolution, batch norm, ReLU on one image."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, inputs: int, channels: int, stride: int, mode: str, key: jax.Array):
        self.conv = eqx.nn.Conv2d(inputs, channels, 3, stride, 1, use_bias=False, key=key)
        self.norm = eqx.nn.BatchNorm(channels, "batch", mode=mode)

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        x, state = self.norm(self.conv(x), state)
        return jax.nn.relu(x), state


class EquinoxNetwork(eqx.Module):
    """Two blocks, dropout, global average, one dense layer."""

    blocks: list
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array, mode: str):
        first, second, head = jax.random.split(key, 3)
        self.blocks = [EquinoxBlock(3, 4, 1, mode, first), EquinoxBlock(4, 8, 2, mode, second)]
        self.drop = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(8, 5, key=head)

    def __call__(self, x: jax.Array, state: Any, key: Any = None) -> tuple[jax.Array, Any]:
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(self.drop(x, key=key).mean((1, 2))), state


@functools.cache
def equinox(mode: str = "ema", seed: int = 0) -> Network:
    """Return a small network of Equinox's modules."""
    make = eqx.nn.make_with_state(EquinoxNetwork)
    shapes = eqx.filter_eval_shape(make, jax.random.key(0), mode)

    def leaf(path: Any, struct: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if not isinstance(struct, jax.ShapeDtypeStruct):
            return struct
        if not jnp.issubdtype(struct.dtype, jnp.floating):
            return jnp.full(struct.shape, 40, struct.dtype)  # the counter of steps
        kind = "scale" if "norm.weight" in name else "other"
        return draw(seed, struct.shape, kind)

    module, state = jax.tree_util.tree_map_with_path(leaf, shapes)
    for block in module.blocks:
        index = block.norm.ema_state_index or block.norm.batch_state_index
        mean, var = state.get(index)
        state = state.set(index, (mean, draw(seed, var.shape, "var")))
    model = Model.from_equinox(module, state, name="equinox", default_layer="blocks.1", **DESCRIBED)
    still = eqx.nn.inference_mode(module)

    def by_hand(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda image: still(image, state)[0])(jnp.moveaxis(x, -1, 1))

    return Network(model, by_hand)


# -- NNX -------------------------------------------------------------------------------------------


class NnxBlock(nnx.Module):
    """A residual block of two convolutions with batch norm."""

    def __init__(self, inputs: int, channels: int, stride: int, rngs: nnx.Rngs):
        strides = (stride, stride)
        conv = functools.partial(nnx.Conv, padding=1, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, channels, (3, 3), strides)
        self.norm1 = nnx.BatchNorm(channels, rngs=rngs)
        self.conv2 = conv(channels, channels, (3, 3))
        self.norm2 = nnx.BatchNorm(channels, rngs=rngs)
        self.shortcut = nnx.Conv(inputs, channels, (1, 1), strides, use_bias=False, rngs=rngs)
        self.shortcut_norm = nnx.BatchNorm(channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + self.shortcut_norm(self.shortcut(x)))


class NnxResNet(nnx.Module):
    """Two residual blocks, dropout, global average, one dense layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([NnxBlock(3, 4, 1, rngs), NnxBlock(4, 8, 2, rngs)])
        self.drop = nnx.Dropout(0.5)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(self.drop(x).mean((1, 2)))


def nnx_resnet(seed: int = 0) -> Network:
    """Return a residual network of NNX's modules."""
    graph, shapes = nnx.split(nnx.eval_shape(NnxResNet))

    def leaf(path: Any, struct: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        kind = next((kind for kind in ("var", "scale") if kind in name), "other")
        return draw(seed, struct.shape, kind)

    module = nnx.merge(graph, jax.tree_util.tree_map_with_path(leaf, shapes))
    model = Model.from_nnx(module, name="nnx", default_layer="blocks.1", **DESCRIBED)
    module.eval()
    return Network(model, module)


NETWORKS: dict[str, Callable[[], Network]] = {
    "haiku": haiku,
    "haiku_resnet": haiku_resnet,
    "equinox": equinox,
    "nnx": nnx_resnet,
}


@jax.jit
def run(model: Model, images: jax.Array) -> jax.Array:
    """Return the logits, compiled."""
    return model(images)


@functools.cache
def network(name: str) -> Network:
    """Return a network of the table, made once."""
    return NETWORKS[name]()


def images_of(model: Model, count: int = 2) -> jax.Array:
    """Return images that a model takes."""
    assert model.input_shape is not None
    drawn = np.random.default_rng(3).standard_normal((count, *model.input_shape))
    return jnp.asarray(drawn, jnp.float32)
