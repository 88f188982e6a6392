"""`Model`: a pure function, its parameters, and what it takes to feed it pictures."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.adapters import (
    LinenApply,
    LinenCapture,
    NnxApply,
    NnxCapture,
    arguments,
    equinox_apply,
    haiku_apply,
)
from jaxplain.black_box import BlackBox
from jaxplain.preprocessing import Preprocessing
from jaxplain.scores import probabilities

ApplyFn = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The part of the input that one unit of a layer sees, in pixels, per axis (height, width).

    Attributes:
        size: pixels seen.
        stride: input pixels between neighbouring units.
        offset: first pixel that unit 0 sees; negative where padding is seen.

    Example:
        >>> field = ReceptiveField(size=(5, 5), stride=(2, 2), offset=(-2, -2))
        >>> first = [field.offset[0] + 3 * field.stride[0], field.offset[1]]
        >>> first  # the corner of what unit (3, 0) sees
        [4, -2]
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A named tensor of a model.

    Attributes:
        name: what `capture`, `split`, `edit` and the methods call it.
        shape: its shape without the batch axis: (H, W, K) or (K,).
        receptive_field: what one unit sees of the input; None where it is not a regular window
            (after a dense layer, say).

    Example:
        >>> from jaxplain.models import load_model
        >>> layer = load_model("digits").layers()[0]
        >>> layer.name, layer.shape, layer.receptive_field.size
        ('conv1', (24, 24, 20), (5, 5))
    """

    name: str
    shape: tuple[int, ...]
    receptive_field: ReceptiveField | None


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """An image classifier as a pytree: `params` are its leaves, everything else is static.

    Every method of this package takes a `Model`, whatever library it was written in, so a model can
    be passed through `jax.jit`, `jax.vmap` and `jax.grad` (which then differentiates with respect
    to the parameters).

    Attributes:
        params: the parameters, any pytree.
        apply: `apply(params, images) -> logits`, images (B, H, W, C) floats, logits (B, classes).
        capture: `capture(params, images) -> (logits, {layer name: tensor})` for models without
            tagged layers, or None.
        input_shape: (H, W, C) of the images that it expects.
        preprocessing: from a uint8 picture to its input.
        class_names: one name a class, or empty.
        name: what reports call it.
        default_layer: the layer that Grad-CAM explains unless told otherwise.
        evidence_layer: a finer one, at which excitation backprop shows its map unless told
            otherwise.
        multilabel: whether a picture may have several classes, or none: each logit is then
            answered for itself, by a sigmoid, and not all together by a softmax.

    Example:
        >>> model = Model.from_function(lambda w, x: x.mean((1, 2)) @ w, jnp.ones((3, 2)))
        >>> model(jnp.ones((4, 8, 8, 3))).shape
        (4, 2)
    """

    params: Any
    apply: ApplyFn
    capture: Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]] | None = None
    input_shape: tuple[int, int, int] | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    name: str = ""
    default_layer: str | None = None
    evidence_layer: str | None = None
    multilabel: bool = False

    def __call__(self, images: jax.typing.ArrayLike, **edits: Any) -> jax.Array:
        """Return the logits (B, classes) of `images` (B, H, W, C).

        Keyword arguments reach `apply`: the networks of this package take `gates` and `masks`.
        """
        return self.apply(self.params, jnp.asarray(images), **edits)

    def probabilities(self, images: jax.typing.ArrayLike) -> jax.Array:
        """Return what the model says of each class, (B, classes) in 0..1: see `multilabel`.

        Example:
            >>> model = Model.from_function(lambda _, x: x.mean((1, 2)), multilabel=True)
            >>> model.probabilities(jnp.zeros((1, 8, 8, 3))).tolist()
            [[0.5, 0.5, 0.5]]
        """
        logits = self(images)
        return probabilities(logits, multilabel=self.multilabel)

    def __eq__(self, other: object) -> bool:
        """Say whether two models are made of the same arrays and equal descriptions."""
        if not isinstance(other, Model):
            return NotImplemented
        (mine, structure), (others, other_structure) = map(jax.tree.flatten, (self, other))
        return structure == other_structure and all(
            a is b for a, b in zip(mine, others, strict=True)
        )

    def __hash__(self) -> int:
        """Hash what is static, so that a model itself can be given to `jax.jit`."""
        return hash(jax.tree.structure(self))

    def layers(self, image_shape: tuple[int, int, int] | None = None) -> tuple[Layer, ...]:
        """Return the named tensors in evaluation order, with shapes and receptive fields.

        Nothing is computed: the model is only traced.

        Args:
            image_shape: (H, W, C) when it differs from `input_shape`.

        Example:
            >>> from jaxplain.models import load_model
            >>> load_model("digits").layers()[0].name
            'conv1'
        """
        from jaxplain.trace.layers import layers

        return layers(self, image_shape)

    @classmethod
    def from_function(cls, apply: ApplyFn, params: Any = (), **described: Any) -> "Model":
        """Make a model of `apply(params, images) -> logits`.

        Tag tensors with `jax.ad_checkpoint.checkpoint_name` to make them layers.

        Args:
            apply: the pure function; use the same function object to share compilations.
            params: its parameters, any pytree.
            **described: `input_shape`, `preprocessing`, `class_names`, `name`, `default_layer`,
                `evidence_layer`, `multilabel`, `capture`.

        Raises:
            TypeError: a description that a model does not have, or a function that cannot be called
                with parameters and images.

        Example:
            >>> def apply(weights, images):
            ...     features = jax.ad_checkpoint.checkpoint_name(images.mean((1, 2)), "colour")
            ...     return features @ weights
            >>> model = Model.from_function(apply, jnp.ones((3, 2)), input_shape=(8, 8, 3))
            >>> [layer.name for layer in model.layers()]
            ['colour']
        """
        try:
            inspect.signature(apply).bind(params, None)
        except TypeError as error:
            raise TypeError(
                f"apply is called as apply(params, images), which it does not allow: {error}. A "
                "function of images alone that JAX cannot trace, NumPy or a server, say, goes to "
                "Model.from_black_box"
            ) from None
        except ValueError:  # of what has no signature
            pass
        return cls(params, apply, **_described(described))

    @classmethod
    def from_linen(
        cls,
        module: Any,
        variables: Any,
        *,
        call: Mapping[str, Any] | None = None,
        **described: Any,
    ) -> "Model":
        """Make a model of a Flax Linen module.

        Layers are the tensors tagged with `checkpoint_name` and the outputs of the submodules, by
        path ("block1.conv").

        Args:
            module: the module; its `__call__` takes images and returns logits.
            variables: what `module.init` returned: parameters and batch statistics.
            call: further arguments of `__call__`, such as `{"train": False}`.
            **described: as in `from_function`.

        Raises:
            TypeError: not a Linen module, or a description that a model does not have.

        Example:
            >>> from flax import linen
            >>> module = linen.Sequential([linen.Conv(4, (3, 3)), lambda x: x.mean((1, 2))])
            >>> variables = module.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
            >>> model = Model.from_linen(module, variables, input_shape=(8, 8, 3))
            >>> [layer.name for layer in model.layers()], model(jnp.ones((2, 8, 8, 3))).shape
            (['layers_0'], (2, 4))
        """
        from flax import linen

        if not isinstance(module, linen.Module):
            raise TypeError(
                f"module is a {type(module).__name__}; expected a flax.linen.Module "
                "(Model.from_function takes functions)"
            )
        given = arguments(call)
        return cls(
            variables,
            LinenApply(module, given),
            LinenCapture(module, given),
            **_described(described),
        )

    @classmethod
    def from_nnx(cls, module: Any, **described: Any) -> "Model":
        """Make a model of a Flax NNX module, in inference mode.

        The module itself is left as it was. Layers are tagged tensors and the outputs of the
        submodules, by attribute path.

        Args:
            module: the module; calling it with images returns logits.
            **described: as in `from_function`.

        Raises:
            TypeError: not an NNX module, or a description that a model does not have.

        Example:
            >>> from flax import nnx
            >>> conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
            >>> module = nnx.Sequential(conv, lambda x: x.mean((1, 2)))
            >>> Model.from_nnx(module)(jnp.ones((2, 8, 8, 3))).shape
            (2, 4)
        """
        from flax import nnx

        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"module is a {type(module).__name__}; expected a flax.nnx.Module "
                "(Model.from_function takes functions)"
            )
        copy = nnx.merge(*nnx.split(module))
        copy.eval()
        graph, state = nnx.split(copy)
        return cls(state, NnxApply(graph), NnxCapture(graph), **_described(described))

    @classmethod
    def from_haiku(
        cls,
        network: Any,
        params: Any,
        state: Any = None,
        *,
        call: Mapping[str, Any] | None = None,
        **described: Any,
    ) -> "Model":
        """Make a model of a transformed Haiku function.

        Layers are tagged tensors and the outputs of the modules, by path: "res_net18.logits" is
        what module `res_net18/~/logits` returns. Models of the same `network` share compilations.

        Args:
            network: what `hk.transform` or `hk.transform_with_state` returned, with or without
                `hk.without_apply_rng`; it takes images and returns logits, and draws no random
                numbers at inference.
            params: what `network.init` returned.
            state: of `hk.transform_with_state`, the second of what `network.init` returned.
            call: further arguments of the function, such as `{"is_training": False}`.
            **described: as in `from_function`.

        Raises:
            ModuleNotFoundError: dm-haiku is not installed.
            TypeError, ValueError: not a transformed function; a state without need, or none.

        Example:
            >>> import haiku as hk
            >>> network = hk.transform(lambda x: hk.Linear(5)(hk.Conv2D(4, 3)(x).mean((1, 2))))
            >>> params = network.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
            >>> model = Model.from_haiku(network, params, input_shape=(8, 8, 3))
            >>> [layer.name for layer in model.layers()]
            ['conv2_d', 'linear']
        """
        params, apply = haiku_apply(network, params, state, call)
        return cls(params, apply, **_described(described))

    @classmethod
    def from_equinox(
        cls,
        module: Any,
        state: Any = None,
        *,
        call: Mapping[str, Any] | None = None,
        **described: Any,
    ) -> "Model":
        """Make a model of an Equinox module, in inference mode.

        Equinox modules take one image, channels first. The model takes batches of channel-last
        images, as all models of this package do; its layers, too, are channels last: (h, w, K).
        Layers are tagged tensors and the outputs of the submodules, by path ("layers.0.conv").
        Gradients by the parameters have the structure of the module.

        Args:
            module: the module; calling it with an image (C, H, W) returns logits (classes,).
            state: of a module with state (batch norm), the second of what
                `eqx.nn.make_with_state` returned: the module is called with (image, state) and
                returns (logits, state).
            call: further arguments of the module, such as `{"key": jax.random.key(0)}`.
            **described: as in `from_function`.

        Raises:
            ModuleNotFoundError: equinox is not installed.
            TypeError: not a callable Equinox module.

        Example:
            >>> import equinox as eqx
            >>> conv, dense = jax.random.split(jax.random.key(0))
            >>> module = eqx.nn.Sequential([
            ...     eqx.nn.Conv2d(3, 4, 8, key=conv),
            ...     eqx.nn.Lambda(jnp.ravel),
            ...     eqx.nn.Linear(4, 5, key=dense),
            ... ])
            >>> model = Model.from_equinox(module, input_shape=(8, 8, 3))
            >>> [(layer.name, layer.shape) for layer in model.layers()]
            [('layers.0', (1, 1, 4)), ('layers.1', (4,)), ('layers.2', (5,))]
        """
        params, apply = equinox_apply(module, state, call)
        return cls(params, apply, **_described(described))

    @classmethod
    def from_black_box(
        cls, function: Callable[[np.ndarray], Any], num_classes: int, **described: Any
    ) -> "Model":
        """Make a model of any function of NumPy images: another framework, a server, an ensemble.

        Only the methods that need no derivative explain it, such as occlusion; the others refuse
        it. The function is called on the host, also from compiled code, with as many images as the
        method runs at once, and should not use JAX itself.

        Args:
            function: float images (n, H, W, C) -> logits (n, num_classes); the same images give
                the same logits. Use the same function object to share compilations.
            num_classes: how many logits it returns.
            **described: as in `from_function`.

        Raises:
            ValueError: less than one class.

        Example:
            >>> model = Model.from_black_box(lambda images: images.mean((1, 2)), num_classes=3)
            >>> model(jnp.ones((2, 8, 8, 3))).shape
            (2, 3)
        """
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: at least 1")
        return cls((), BlackBox(function, num_classes), **_described(described))

    @property
    def black_box(self) -> bool:
        """Whether the model is a function on the host, without derivatives and layers."""
        return isinstance(self.apply, BlackBox)


def _described(options: dict[str, Any]) -> dict[str, Any]:
    allowed = {
        "capture",
        "input_shape",
        "preprocessing",
        "class_names",
        "name",
        "default_layer",
        "evidence_layer",
        "multilabel",
    }
    if set(options) - allowed:
        raise TypeError(
            f"unknown arguments {sorted(set(options) - allowed)}; known: {sorted(allowed)}"
        )
    for field in ("class_names", "input_shape"):
        if options.get(field) is not None:
            options[field] = tuple(options[field])
    return options


jax.tree_util.register_dataclass(
    Model,
    data_fields=["params"],
    meta_fields=[f.name for f in dataclasses.fields(Model) if f.name != "params"],
)


def check_differentiable(model: Model, method: str) -> None:
    """Refuse a model that has no derivatives.

    Raises:
        ValueError: the model is a black box.

    Example:
        >>> model = Model.from_black_box(lambda images: images.mean((1, 2)), 3, name="server")
        >>> check_differentiable(model, "gradient")
        Traceback (most recent call last):
        ...
        ValueError: method 'gradient' needs derivatives or layers, which model 'server', a black
        box, does not have; use a method that only runs the network, such as 'occlusion'
    """
    if model.black_box:
        raise ValueError(
            f"method {method!r} needs derivatives or layers, which model {model.name!r}, a black "
            "box, does not have; use a method that only runs the network, such as 'occlusion'"
        )


def check_images(images: Any, model: Model | None = None) -> jax.Array:
    """Return `images` as an array, or raise naming what is wrong with them.

    Raises:
        TypeError: not floating point.
        ValueError: not (B, H, W, C), other channels than the model's, or a size that it cannot
            take.

    Example:
        >>> check_images(np.zeros((2, 8, 8), np.float32))
        Traceback (most recent call last):
        ...
        ValueError: images have shape (2, 8, 8); expected (batch, height, width, channels)
    """
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images have dtype {images.dtype}; expected floats (see Model.preprocessing)"
        )
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {images.shape}; expected (batch, height, width, channels)"
        )
    if model is None or model.input_shape is None or images.shape[1:] == model.input_shape:
        return images
    height, width, channels = model.input_shape
    if images.shape[-1] != channels:
        raise ValueError(
            f"images have {images.shape[-1]} channels; model {model.name!r} takes {channels}"
        )
    # Networks without dense layers, or with a global average before them, take other sizes too. One
    # that fails at its own size as well has another fault, which is its own to tell.
    reason = _failure(model, images.shape[1:], images.dtype)
    if reason is not None and _failure(model, model.input_shape, images.dtype) is None:
        raise ValueError(
            f"images are {images.shape[1]} × {images.shape[2]} pixels (height × width), which "
            f"model {model.name!r} cannot take: its input_shape is {(height, width, channels)}"
        ) from reason
    return images


@jax.jit
def _logits(model: Model, images: jax.Array) -> jax.Array:
    return model(images)


def _failure(model: Model, shape: tuple[int, ...], dtype: Any) -> Exception | None:
    """What the model's program raises on an image of this shape; it is traced once for each."""
    from flax.errors import FlaxError

    try:
        _logits.eval_shape(model, jax.ShapeDtypeStruct((1, *shape), dtype))
    except (TypeError, ValueError, FlaxError) as error:
        return error
    return None
