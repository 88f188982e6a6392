"""Models of other libraries as pure functions of their parameters, by value.

Each adapter is the `apply` (or `capture`) of a `Model`: `apply(params, images) -> logits`, images
(B, H, W, C). They are frozen dataclasses, so that models of equal modules share compilations.
Linen and NNX report what their submodules return; in Haiku and Equinox networks the outputs are
tagged with `checkpoint_name` as the network runs, which works inside loops and remat too.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array, compared by its content; a random key if `kind` says of which."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]
    kind: str | None

    @classmethod
    def of(cls, value: Any) -> "Constant":
        """Keep an array."""
        kind = None
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            kind, value = str(jax.random.key_impl(value)), jax.random.key_data(value)
        host = np.asarray(value)
        return cls(host.tobytes(), host.dtype.name, host.shape, kind)

    def array(self) -> jax.Array:
        """Return the array."""
        host = np.frombuffer(self.data, jnp.dtype(self.dtype)).reshape(self.shape)
        value = jnp.asarray(host)
        return value if self.kind is None else jax.random.wrap_key_data(value, impl=self.kind)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Further arguments of a network's call; equal ones share compilations."""

    items: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self) -> dict[str, Any]:
        """Return them as they were given."""
        return {
            name: value.array() if isinstance(value, Constant) else value
            for name, value in self.items
        }


def arguments(call: Mapping[str, Any] | None) -> Arguments:
    """Return further arguments of a network's call as a hashable value.

    Raises:
        TypeError: a value is neither hashable nor an array.
    """
    kept = {}
    for name, value in sorted((call or {}).items()):
        kept[name] = Constant.of(value) if isinstance(value, jax.Array | np.ndarray) else value
        if not isinstance(kept[name], Hashable):
            raise TypeError(
                f"call[{name!r}] is a {type(value).__name__}; expected an array or what is hashable"
            )
    return Arguments(tuple(kept.items()))


def _library(module: str, package: str) -> Any:
    """Import an optional library, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(
            f"{module} is needed for this model; install it: pip install {package}", name=module
        ) from None


# -- Flax ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LinenApply:
    """`module.apply` as a value: equal modules and arguments share compilations."""

    module: Any
    call: Arguments = Arguments()

    def __call__(self, params: Any, images: jax.Array, **edits: Any) -> jax.Array:
        """Return the logits."""
        return self.module.apply(params, images, **self.call(), **edits)


@dataclasses.dataclass(frozen=True)
class LinenCapture:
    """The outputs of every submodule of a Linen module, by path."""

    module: Any
    call: Arguments = Arguments()

    def __call__(self, params: Any, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the logits and {path: output}."""
        logits, state = self.module.apply(
            params, images, capture_intermediates=True, mutable=["intermediates"], **self.call()
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


# -- Haiku -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HaikuApply:
    """The `apply` of a transformed Haiku function, with the output of every module tagged.

    Attributes:
        function: `apply` of what `hk.transform` or `hk.transform_with_state` returned.
        stateful: it takes a state and returns one.
        random: it takes a key; None is passed, for inference draws nothing.
        call: further arguments.
    """

    function: Callable[..., Any]
    stateful: bool
    random: bool
    call: Arguments = Arguments()

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Return the logits."""
        haiku = _library("haiku", "dm-haiku")
        trees = (params["params"], params["state"]) if self.stateful else (params,)
        key = (None,) if self.random else ()
        with haiku.intercept_methods(_tag_haiku):
            found = self.function(*trees, *key, images, **self.call())
        return found[0] if self.stateful else found


def haiku_apply(
    network: Any, params: Any, state: Any, call: Mapping[str, Any] | None
) -> tuple[Any, HaikuApply]:
    """Return a transformed Haiku function as (parameters, apply).

    Raises:
        TypeError: `network` is not what Haiku's transformations return.
        ValueError: a state without need, or none where it is needed.
    """
    haiku = _library("haiku", "dm-haiku")
    stateful = isinstance(network, haiku.TransformedWithState)
    if not stateful and not isinstance(network, haiku.Transformed):
        raise TypeError(
            f"network is a {type(network).__name__}; expected what hk.transform or "
            "hk.transform_with_state returned"
        )
    if stateful and state is None:
        raise ValueError("state is needed: the second of what network.init returned")
    if not stateful and state:
        raise ValueError("state is given, but the network of hk.transform has none")
    # `hk.without_apply_rng` takes the key from the signature.
    leading = list(inspect.signature(network.apply).parameters)[1 + stateful :]
    apply = HaikuApply(network.apply, stateful, leading[:1] == ["rng"], arguments(call))
    return ({"params": params, "state": state} if stateful else params), apply


def _tag_haiku(function: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    output = function(*args, **kwargs)
    if context.method_name != "__call__" or not isinstance(output, jax.Array):
        return output
    # "net/~/block/~/conv": a tilde stands for the method in which the submodule was made.
    path = [part for part in context.module.module_name.split("/") if not part.startswith("~")]
    return checkpoint_name(output, ".".join(path))


# -- Equinox ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EquinoxApply:
    """An Equinox module, which takes one channel-first image, on a batch of channel-last ones.

    The output of every submodule is tagged with its path, maps (K, h, w) as (B, h, w, K).

    Attributes:
        leaves: the leaves of the module that are no arrays; None where an array belongs.
        structure: its tree.
        stateful: it takes a state and returns one.
        call: further arguments.
    """

    leaves: tuple[Any, ...]
    structure: Any
    stateful: bool
    call: Arguments = Arguments()

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Return the logits."""
        arrays, state = params if self.stateful else (params, None)
        given = jax.tree.leaves(arrays, is_leaf=_is_none)
        leaves = [own if own is not None else a for own, a in zip(self.leaves, given, strict=True)]
        module = _tagged(jax.tree.unflatten(self.structure, leaves))

        def logits(image: jax.Array) -> jax.Array:
            image = jnp.transpose(image, (2, 0, 1))
            if self.stateful:
                return module(image, state, **self.call())[0]
            return module(image, **self.call())

        return jax.vmap(logits)(images)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def equinox_apply(
    module: Any, state: Any, call: Mapping[str, Any] | None
) -> tuple[Any, EquinoxApply]:
    """Return an Equinox module in inference mode as (parameters, apply).

    The parameters are the module with None for all that is no array, or (that, state).

    Raises:
        TypeError: not a callable Equinox module.
    """
    equinox = _library("equinox", "equinox")
    if not isinstance(module, equinox.Module) or not callable(module):
        raise TypeError(f"module is a {type(module).__name__}; expected a callable equinox.Module")
    module = equinox.nn.inference_mode(module)
    leaves, structure = jax.tree.flatten(module, is_leaf=_is_none)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf if flag else None for leaf, flag in zip(leaves, is_array, strict=True)]
    static = tuple(None if flag else leaf for leaf, flag in zip(leaves, is_array, strict=True))
    params = jax.tree.unflatten(structure, arrays)
    stateful = state is not None
    apply = EquinoxApply(static, structure, stateful, arguments(call))
    return ((params, state) if stateful else params), apply


def _tagged(module: Any, path: str = "") -> Any:
    """Return an Equinox module whose submodules, and they themselves, tag what they return."""
    equinox = _library("equinox", "equinox")

    def inner(keys: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, equinox.Module):
            return node
        name = jax.tree_util.keystr(keys, simple=True, separator=".")
        return _tagged(node, f"{path}.{name}" if path else name)

    module = jax.tree_util.tree_map_with_path(
        inner, module, is_leaf=lambda node: isinstance(node, equinox.Module) and node is not module
    )
    if not path or not callable(module):
        return module
    tagging = _tagging(type(module))
    tagged = object.__new__(tagging)
    vars(tagged).update(vars(module), **{_PATH: path})  # Equinox freezes its modules
    return tagged


_PATH = "jaxplain_path"


@functools.cache
def _tagging(cls: type) -> type:
    """Return the subclass of an Equinox class that tags what it returns, by its field `_PATH`.

    A subclass, because networks ask `isinstance` and read the fields of their submodules; a static
    field, because Equinox takes modules apart and builds them again.
    """
    equinox = _library("equinox", "equinox")

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = cls.__call__(self, *args, **kwargs)
        path = getattr(self, _PATH)
        if isinstance(output, tuple) and output:  # (tensor, state)
            return (_tag(output[0], path), *output[1:])
        return _tag(output, path)

    namespace = {
        "__call__": __call__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__annotations__": {_PATH: str},
        _PATH: equinox.field(static=True, default=""),
    }
    return type(cls)(cls.__name__, (cls,), namespace)


def _tag(output: Any, path: str) -> Any:
    if not isinstance(output, jax.Array):
        return output
    if output.ndim != 3:
        return checkpoint_name(output, path)
    return jnp.transpose(checkpoint_name(jnp.transpose(output, (1, 2, 0)), path), (2, 0, 1))
