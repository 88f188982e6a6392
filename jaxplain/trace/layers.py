"""Layers: read (`capture`), cut (`split`) and change (`edit`) the named tensors of any model.

A tensor has a name from `jax.ad_checkpoint.checkpoint_name` (the networks of this package tag
every layer) or from the path of the module that returned it; a name that several tensors have
becomes "name#0", "name#1". The model is traced and its program is run as it stands, so all three
compose with `jax.jit`, `jax.vmap`, `jax.grad` and `jax.shard_map`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Layer, Model
from jaxplain.models.layers import gate, mask
from jaxplain.names import unknown
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.jaxpr import Program
from jaxplain.trace.receptive import receptive_fields

INPUT = "input"


@dataclasses.dataclass(frozen=True)
class Traced:
    """A model's program at one image shape.

    Attributes:
        program: equations from the leaves of the parameters and the images to the logits.
        parameters: the input variables that hold the parameters.
        image: the input variable that holds the images.
        names: layer name -> variable, in evaluation order, "input" first.
    """

    program: Program
    parameters: tuple[int, ...]
    image: int
    names: Mapping[str, int]

    def variable(self, layer: str) -> int:
        """Return the variable of a layer, or raise naming the nearest."""
        if layer in self.names:
            return self.names[layer]
        several = [name for name in self.names if name.rpartition("#")[0] == layer]
        if several:
            raise ValueError(
                f"layer {layer!r} names {len(several)} tensors; say which: {', '.join(several)}"
            )
        if layer in self.program.inner_names():
            raise ValueError(
                f"layer {layer!r} lies inside a scan or cond, where it is no single tensor; "
                "name what comes out of it"
            )
        raise ValueError(unknown("layer", layer, self.names))

    def bind(self, params: Any, images: Any) -> dict[int, Any]:
        """Return the values of the program's inputs."""
        values = dict(zip(self.parameters, jax.tree.leaves(params), strict=True))
        values[self.image] = images
        return values


def trace_model(model: Model, images: Any) -> Traced:
    """Trace a model on `images`: an array, tracer or `jax.ShapeDtypeStruct` of shape (B, H, W, C).

    Raises:
        TypeError: the model does not return one array of logits.
    """
    apply, capture = model.apply, model.capture
    if capture is None:
        program, tree = jx.trace(apply, model.params, images)
    else:
        program, tree = jx.trace(lambda p, x: _ordered(*capture(p, x)), model.params, images)
    logits_tree, *captured = tree if capture is not None else (tree,)
    names = captured[0].names if captured else ()
    if not isinstance(logits_tree, jax.ShapeDtypeStruct):
        raise TypeError(
            f"model {model.name!r} returns {jax.tree.structure(logits_tree)}; "
            "expected one array of logits"
        )
    *parameters, image = program.inputs
    named = {n: v for n, v in zip(names, program.outputs[1:], strict=True) if isinstance(v, int)}
    named |= program.names()  # tags come first where both name a tensor
    named = {INPUT: image} | {n: v for n, v in named.items() if n != INPUT}
    program = program.pruned(program.outputs[:1], named.values())
    named = dict(sorted(named.items(), key=lambda item: item[1]))
    return Traced(program, tuple(parameters), image, named)


def _ordered(
    logits: jax.Array, tensors: Mapping[str, jax.Array]
) -> tuple[jax.Array, "_Names", list[jax.Array]]:
    return logits, _Names(tuple(tensors)), list(tensors.values())


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Names:
    """Names as part of a result's tree structure."""

    names: tuple[str, ...]


def layers(model: Model, image_shape: tuple[int, int, int] | None = None) -> tuple[Layer, ...]:
    """Return the layers of a model: see `Model.layers`."""
    model = _unedited(model)
    traced = trace_model(model, _image_struct(model, image_shape))
    fields = receptive_fields(traced.program, traced.image)
    return tuple(
        Layer(name, tuple(traced.program.avals[v].shape[1:]), fields.get(v))
        for name, v in traced.names.items()
        if name != INPUT
    )


def _image_struct(
    model: Model, shape: Sequence[int] | None, *, like: jax.Array | None = None, dtype: Any = None
) -> jax.ShapeDtypeStruct:
    """Return the shape of one image, or of the images that a tensor `like` (B, ...) belongs to."""
    size = shape or model.input_shape
    if size is None:
        raise ValueError("image_shape is needed: the model does not say its input_shape")
    if like is None:
        return jax.ShapeDtypeStruct((1, *size), jnp.float32)

    def spread(tensor: jax.Array) -> jax.Array:
        # Made of the tensor, so that it lies on a mesh as the tensor does.
        one = tensor.reshape(tensor.shape[0], -1)[:, :1].astype(dtype)
        return jnp.broadcast_to(one[..., None, None], (tensor.shape[0], *size))

    return jax.eval_shape(spread, like)


def _unedited(model: Model) -> Model:
    """Return a model of the same structure without edits, whose tensors may fit one batch only."""
    while isinstance(model.apply, _Edited):
        own, _ = model.params
        model = dataclasses.replace(model.apply.whole, params=own)
    return model


def logits(model: Model, images: jax.Array) -> jax.Array:
    """Return the model's logits, on a CPU sooner than the model itself does.

    The numbers are those of `model(images)` up to rounding; see `jaxplain.trace.convolution`. A
    black box is called as it is.

    Args:
        model: any model.
        images: (B, H, W, C) floats.

    Returns:
        (B, classes).

    Example:
        >>> import jaxplain as jxp
        >>> logits(jxp.load_model("digits"), jnp.ones((2, 28, 28, 1))).shape
        (2, 10)
    """
    if model.black_box:
        return model(images)
    traced = trace_model(model, images)
    return jx.evaluate(
        traced.program, traced.bind(model.params, images), traced.program.outputs[:1], fast=True
    )[0]


def capture(model: Model, images: jax.Array, names: Iterable[str]) -> dict[str, jax.Array]:
    """Return the named tensors; nothing behind the last of them is computed.

    Args:
        model: any model.
        images: (B, H, W, C) floats.
        names: layers, or "input" and "logits".

    Returns:
        {name: tensor (B, ...)}.

    Raises:
        ValueError: a layer that is not in this model.

    Example:
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> capture(model, jnp.zeros((1, 28, 28, 1)), ["conv1"])["conv1"].shape
        (1, 24, 24, 20)
    """
    traced = trace_model(model, images)
    wanted = {
        name: traced.program.outputs[0] if name == "logits" else traced.variable(name)
        for name in names
    }
    needed, _ = jx.ancestors(traced.program, list(wanted.values()))
    values = jx.evaluate(
        traced.program, traced.bind(model.params, images), list(wanted.values()), equations=needed
    )
    return dict(zip(wanted, values, strict=True))


@dataclasses.dataclass(frozen=True)
class _Prefix:
    """`apply` of the part before a layer."""

    whole: Model  # without parameters

    layer: str

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        return capture(dataclasses.replace(self.whole, params=params), images, [self.layer])[
            self.layer
        ]


@dataclasses.dataclass(frozen=True)
class _Suffix:
    """`apply` of the part behind a layer."""

    whole: Model  # without parameters
    layer: str
    image_shape: tuple[int, int, int] | None

    def __call__(self, params: Any, tensor: jax.Array) -> jax.Array:
        model = dataclasses.replace(self.whole, params=params)
        # The images' dtype is not known here; the one that gives the layer this dtype will do.
        own = [tensor.dtype] if jnp.issubdtype(tensor.dtype, jnp.floating) else []
        found = set()
        for dtype in dict.fromkeys([*own, jnp.dtype(jnp.float32)]):
            struct = _image_struct(model, self.image_shape, like=tensor, dtype=dtype)
            traced = trace_model(model, struct)
            variable = traced.variable(self.layer)
            aval = traced.program.avals[variable]
            if (aval.dtype, aval.shape) == (tensor.dtype, tensor.shape):
                return self._run(params, traced, variable, tensor)
            found.add(f"{aval.dtype} of shape {aval.shape}")
        raise ValueError(
            f"the tensor is {tensor.dtype} of shape {tensor.shape}; "
            f"layer {self.layer!r} is {' or '.join(sorted(found))}"
        )

    def _run(self, params: Any, traced: Traced, variable: int, tensor: jax.Array) -> jax.Array:
        """Run what follows the layer."""
        needed, inputs = jx.ancestors(traced.program, traced.program.outputs, frozenset({variable}))
        _check_separates(traced, self.layer, inputs)
        values = traced.bind(params, None) | {variable: tensor}
        return jx.evaluate(traced.program, values, traced.program.outputs, equations=needed)[0]


def _check_separates(traced: Traced, layer: str, inputs: set[int]) -> None:
    if traced.image in inputs and layer != INPUT:
        raise ValueError(
            f"layer {layer!r} does not separate the input from the logits: "
            "a skip path goes round it; "
            "choose a layer outside the residual branch"
        )


def split(
    model: Model, layer: str, *, image_shape: tuple[int, int, int] | None = None
) -> tuple[Model, Model]:
    """Cut a model at a layer into two models: images -> tensor and tensor -> logits.

    Args:
        model: any model.
        layer: where to cut.
        image_shape: (H, W, C), when it differs from `model.input_shape`.

    Returns:
        (prefix, suffix) with `suffix(prefix(images)) == model(images)`. Both share the
        parameters of `model`.

    Raises:
        ValueError: no such layer, or a skip path goes round it.

    Example:
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> prefix, suffix = split(model, "pool1")
        >>> suffix(prefix(jnp.zeros((2, 28, 28, 1)))).shape
        (2, 10)
    """
    bare = _unedited(model)
    traced = trace_model(bare, _image_struct(bare, image_shape))
    shape = tuple(traced.program.avals[traced.variable(layer)].shape[1:])
    _, inputs = jx.ancestors(
        traced.program, traced.program.outputs, frozenset({traced.variable(layer)})
    )
    _check_separates(traced, layer, inputs)
    whole = dataclasses.replace(model, params=())
    prefix = Model(
        model.params,
        _Prefix(whole, layer),
        input_shape=model.input_shape,
        preprocessing=model.preprocessing,
        name=f"{model.name} up to {layer}",
    )
    suffix = Model(
        model.params,
        _Suffix(whole, layer, image_shape),
        input_shape=shape if len(shape) == 3 else None,
        class_names=model.class_names,
        multilabel=model.multilabel,
        name=f"{model.name} behind {layer}",
    )
    return prefix, suffix


@dataclasses.dataclass(frozen=True)
class _Edited:
    """`apply` of an edited model; its parameters are (parameters, {kind: {layer: array}})."""

    whole: Model  # without parameters

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        own, changes = params
        model = dataclasses.replace(self.whole, params=own)
        traced = trace_model(model, images)
        for change in changes.values():
            for name in change:
                traced.variable(name)
        touched = {name for change in changes.values() for name in change}
        by_variable: dict[int, list[str]] = {}
        for name, variable in traced.names.items():
            if name != INPUT or name in touched:
                by_variable.setdefault(variable, []).append(name)
        edits = {v: _Change(tuple(names), changes) for v, names in by_variable.items()}
        return jx.evaluate(
            traced.program, traced.bind(own, images), traced.program.outputs, edits=edits
        )[0]


@dataclasses.dataclass(frozen=True)
class _Change:
    """Apply the changes of one tensor and tag the result with its names."""

    names: tuple[str, ...]
    changes: Mapping[str, Mapping[str, Any]]

    def __call__(self, x: jax.Array) -> jax.Array:
        for kind, change in _CHANGES.items():  # in this order; jit sorts the changes themselves
            for name in self.names:
                if name in self.changes.get(kind, {}):
                    x = change(x, self.changes[kind][name], name)
        for name in self.names:
            x = checkpoint_name(x, name)
        return x


def _like(value: Any, x: jax.Array, kind: str, name: str) -> jax.Array:
    value = jnp.asarray(value, x.dtype)
    try:
        return jnp.broadcast_to(value, x.shape)
    except ValueError:
        raise ValueError(
            f"{kind}[{name!r}] has shape {value.shape}; the layer has {x.shape}"
        ) from None


_CHANGES: Mapping[str, Callable[[jax.Array, Any, str], jax.Array]] = {
    "replace": lambda x, value, name: _like(value, x, "replace", name),
    "gates": gate,
    "masks": mask,
    "add": lambda x, value, name: x + _like(value, x, "add", name),
}


def edit(
    model: Model,
    *,
    gates: Mapping[str, jax.Array] | None = None,
    masks: Mapping[str, jax.Array] | None = None,
    replace: Mapping[str, jax.Array] | None = None,
    add: Mapping[str, jax.Array] | None = None,
) -> Model:
    """Return the model with some of its tensors changed on their way.

    Several kinds of change of one layer apply in the order replace, gates, masks, add.

    Args:
        model: any model.
        gates: {layer: (K,) or (B, K)} factors of the channels.
        masks: {layer or "input": (H, W) or (B, H, W)} factors of the positions.
        replace: {layer: tensor} what stands there instead, broadcastable to the layer's shape.
        add: {layer: tensor} what is added, broadcastable to the layer's shape.

    Returns:
        A model whose parameters are the pair (those of `model`, the changes), so that one can
        differentiate with respect to either.

    Raises:
        ValueError: a layer that is not in this model (when the model is called), or a wrong shape.

    Example:
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> closed = edit(model, gates={"conv1": jnp.zeros(20)})
        >>> float(abs(capture(closed, jnp.ones((1, 28, 28, 1)), ["conv1"])["conv1"]).max())
        0.0
    """
    requested = {"replace": replace, "gates": gates, "masks": masks, "add": add}
    changes = {
        kind: {n: jnp.asarray(a) for n, a in c.items()} for kind, c in requested.items() if c
    }
    return dataclasses.replace(
        model,
        params=(model.params, changes),
        apply=_Edited(dataclasses.replace(model, params=())),
        capture=None,
    )
