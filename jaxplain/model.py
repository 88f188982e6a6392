"""`Model`: a pure function, its parameters, and what it takes to feed it pictures."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.preprocessing import Preprocessing

ApplyFn = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The part of the input that one unit of a layer sees, in pixels, per axis (height, width).

    Attributes:
        size: pixels seen.
        stride: input pixels between neighbouring units.
        offset: first pixel that unit 0 sees; negative where padding is seen.
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

    def __call__(self, images: jax.Array, **edits: Any) -> jax.Array:
        """Return the logits (B, classes) of `images` (B, H, W, C).

        Keyword arguments reach `apply`: the networks of this package take `gates` and `masks`.
        """
        return self.apply(self.params, images, **edits)

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
                `capture`.
        """
        return cls(params, apply, **_described(described))

    @classmethod
    def from_linen(
        cls,
        module: Any,
        variables: Any,
        *,
        call: Mapping[str, Hashable] | None = None,
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
        """
        arguments = tuple(sorted((call or {}).items()))
        return cls(
            variables,
            LinenApply(module, arguments),
            LinenCapture(module, arguments),
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
        """
        from flax import nnx

        copy = nnx.merge(*nnx.split(module))
        copy.eval()
        graph, state = nnx.split(copy)
        return cls(state, NnxApply(graph), NnxCapture(graph), **_described(described))


def _described(options: dict[str, Any]) -> dict[str, Any]:
    allowed = {
        "capture",
        "input_shape",
        "preprocessing",
        "class_names",
        "name",
        "default_layer",
        "evidence_layer",
    }
    if set(options) - allowed:
        raise TypeError(
            f"unknown arguments {sorted(set(options) - allowed)}; known: {sorted(allowed)}"
        )
    for field in ("class_names", "input_shape"):
        if options.get(field) is not None:
            options[field] = tuple(options[field])
    return options


@dataclasses.dataclass(frozen=True)
class LinenApply:
    """`module.apply` as a value: equal modules and arguments share compilations."""

    module: Any
    call: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self, params: Any, images: jax.Array, **edits: Any) -> jax.Array:
        """Return the logits."""
        return self.module.apply(params, images, **dict(self.call), **edits)


@dataclasses.dataclass(frozen=True)
class LinenCapture:
    """The outputs of every submodule of a Linen module, by path."""

    module: Any
    call: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self, params: Any, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the logits and {path: output}."""
        logits, state = self.module.apply(
            params, images, capture_intermediates=True, mutable=["intermediates"], **dict(self.call)
        )
        return logits, _named_outputs(state["intermediates"])


@dataclasses.dataclass(frozen=True)
class NnxApply:
    """The call of an NNX module as a pure function of its state."""

    graph: Any

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Return the logits."""
        from flax import nnx

        return nnx.merge(self.graph, params)(images)


@dataclasses.dataclass(frozen=True)
class NnxCapture:
    """The outputs of every submodule of an NNX module, by attribute path."""

    graph: Any

    def __call__(self, params: Any, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the logits and {path: output}."""
        from flax import nnx

        module = nnx.merge(self.graph, params)
        logits, state = nnx.capture(module, nnx.Intermediate, method_outputs=nnx.Intermediate)(
            images
        )
        return logits, _named_outputs(nnx.to_pure_dict(state))


def _named_outputs(tree: Mapping[Any, Any], path: tuple[str, ...] = ()) -> dict[str, jax.Array]:
    """Flatten {module: {"__call__": (output,)}} into {"module.path": output}; arrays only.

    A module that is called several times appears as "path#0", "path#1", ...
    """
    named: dict[str, jax.Array] = {}
    for key, value in tree.items():
        if key == "__call__":
            calls = value if isinstance(value, tuple) else (value,)
            for number, output in enumerate(calls):
                if path and isinstance(output, jax.Array):
                    named[".".join(path) + (f"#{number}" if len(calls) > 1 else "")] = output
        elif isinstance(value, Mapping):
            named.update(_named_outputs(value, (*path, str(key))))
    return named


jax.tree_util.register_dataclass(
    Model,
    data_fields=["params"],
    meta_fields=[f.name for f in dataclasses.fields(Model) if f.name != "params"],
)


def check_images(images: Any, model: Model | None = None) -> jax.Array:
    """Return `images` as an array, or raise naming what is wrong with them.

    Raises:
        TypeError: not floating point.
        ValueError: not (B, H, W, C), or other channels than the model's.
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
    if (
        model is not None
        and model.input_shape is not None
        and images.shape[-1] != model.input_shape[-1]
    ):
        raise ValueError(
            f"images have {images.shape[-1]} channels; "
            f"model {model.name!r} takes {model.input_shape[-1]}"
        )
    return images
