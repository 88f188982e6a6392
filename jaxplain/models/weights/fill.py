"""Fills the variables of a network with tensors from elsewhere: all of them, or none.

A `Plan` says for each variable which tensor fills it and how it is laid out there: `torch_plan` for
state dicts of torchvision and timm, `own_plan` for our own files.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxplain.models.network import Network
from jaxplain.models.weights.tensors import Tensor, Tensors, aligned_empty

# Where a variable lies: ("params", "conv1_1", "kernel").
Path = tuple[str, ...]

TORCH_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


# Rows that are turned into columns at once: with these, both sides stay in the processor's cache.
BLOCK = 16


class Slot(NamedTuple):
    """Where one variable comes from.

    Attributes:
        name: the tensor.
        shape: the shape that it must have.
        arrange: from rows of the tensor to the same columns of the variable, (..., rows), both
            seen with as many axes as this needs; None where the elements come in the order of the
            variable's.
    """

    name: str
    shape: tuple[int, ...]
    arrange: Callable[[np.ndarray], np.ndarray] | None = None


Plan = Mapping[Path, Slot]


def variable_shapes(network: Network) -> Mapping[Path, tuple[int, ...]]:
    """Return the shape of every variable of a network.

    Found by tracing, which takes a second or two for the deepest; remembered.

    Example:
        >>> from jaxplain.models.alexnet import AlexNet
        >>> variable_shapes(AlexNet())["params", "conv1", "kernel"]
        (11, 11, 3, 64)
    """
    hashable: Any = network  # Linen's modules are, by their fields; the type does not say so
    return _traced_shapes(hashable)


@functools.lru_cache(maxsize=64)
def _traced_shapes(network: Any) -> Mapping[Path, tuple[int, ...]]:
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    shapes: Any = jax.eval_shape(network.init, jax.random.key(0), images)
    flat: Any = traverse_util.flatten_dict(shapes)
    return types.MappingProxyType({path: leaf.shape for path, leaf in flat.items()})


def own_plan(shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, Slot]:
    """Return the plan of our own files: "params/conv1_1/kernel", laid out as here."""
    return {path: Slot("/".join(path), shape) for path, shape in shapes.items()}


def torch_plan(
    network: Network, shapes: Mapping[Path, tuple[int, ...]], tensors: Tensors
) -> dict[Path, Slot]:
    """Return the plan of a torch state dict: OIHW convolutions, (out, in) dense layers.

    A dense layer behind a flattened map reads channels first there and last here. timm's dense
    layers of VGG are convolutions and have other names; either form is taken.
    """
    renamed = network.torch_names()
    if any(f"{name}.weight" in tensors for name in network.timm_names.values()):
        renamed |= network.timm_names
    plan = {}
    for path, shape in shapes.items():
        _, layer, leaf = path
        name = f"{renamed.get(layer, layer)}.{TORCH_LEAVES[leaf]}"
        if leaf != "kernel":
            plan[path] = Slot(name, shape)
        elif len(shape) == 4:
            height, width, inputs, outputs = shape
            plan[path] = Slot(name, (outputs, inputs, height, width), _channels_last)
        else:
            inputs, outputs = shape
            height, width = network.flattened.get(layer, (1, 1))
            unflattened = (outputs, inputs // (height * width), height, width)
            convolutional = name in tensors and len(tensors[name].shape) == 4
            source = unflattened if convolutional else (outputs, inputs)
            plan[path] = Slot(name, source, _flattened(unflattened))
    return plan


def _channels_last(rows: np.ndarray) -> np.ndarray:
    """(O, I, H, W) -> (H, W, I, O)."""
    return rows.transpose(2, 3, 1, 0)


def _flattened(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Return (O, C*H*W) -> (H, W, C, O)."""

    def arrange(rows: np.ndarray) -> np.ndarray:
        return _channels_last(rows.reshape(-1, *shape[1:]))

    return arrange


def fill(
    plan: Plan,
    shapes: Mapping[Path, tuple[int, ...]],
    tensors: Tensors,
    *,
    source: str,
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """Return the variables of a network, float32, made of `tensors`.

    They are read one after the other, in pieces, so that little more memory is needed than the
    network itself takes.

    Args:
        plan: which tensor fills which variable.
        shapes: the variables.
        tensors: what there is.
        source: what it is called in errors.
        ignored: says of a name whether it may stay unused.

    Raises:
        ValueError: tensors are missing, left over, of the wrong shape, not numbers or not finite;
            all of them are listed, by what is wrong with them.
    """
    _check(plan, tensors, source, ignored)
    variables, broken = {}, []
    for path, slot in plan.items():
        values = aligned_empty(shapes[path], np.dtype(np.float32))
        if not _read(tensors[slot.name], slot, values):
            broken.append(slot.name)
        variables[path] = jax.device_put(values)
    if broken:
        raise ValueError(f"{source} holds NaN or infinity in: {_listed(broken)}")
    return traverse_util.unflatten_dict(variables)


def _read(tensor: Tensor, slot: Slot, values: np.ndarray) -> bool:
    """Copy a tensor into its variable; say whether it is finite."""
    finite = True
    for rows, piece in tensor.pieces():
        # A half-precision NaN stays one.
        piece = np.asarray(piece, np.float32)
        finite = finite and bool(np.isfinite(piece).all())
        if slot.arrange is None:
            values.reshape(slot.shape)[rows] = piece
            continue
        for start in range(0, len(piece), BLOCK):
            columns = slot.arrange(piece[start : start + BLOCK])
            first = (rows.start or 0) + start
            seen = values.reshape(*columns.shape[:-1], -1)
            seen[..., first : first + columns.shape[-1]] = columns
    return finite


def _check(plan: Plan, tensors: Tensors, source: str, ignored: Callable[[str], bool]) -> None:
    """Raise ValueError listing everything that does not fit."""
    if problems := misfits(plan, tensors, ignored):
        raise ValueError(f"{source} does not fit the network: {'; '.join(problems)}")


def misfits(
    plan: Plan,
    tensors: Tensors,
    ignored: Callable[[str], bool] = lambda name: False,
    *,
    numbers: bool = False,
) -> list[str]:
    """Return what does not fit, by what is wrong: how many tensors, and which.

    Args:
        plan: which tensor fills which variable.
        tensors: what there is.
        ignored: says of a name whether it may stay unused.
        numbers: whether to read all tensors for NaN even if everything fits.
    """
    wanted = {slot.name: slot for slot in plan.values()}
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted and not ignored(name)]
    misshaped = [
        f"{name} {tuple(tensors[name].shape)}, expected {slot.shape}"
        for name, slot in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != slot.shape
    ]
    strange = [
        f"{name} {tensors[name].dtype}"
        for name in wanted
        if name in tensors and not jnp.issubdtype(tensors[name].dtype, jnp.floating)
    ]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("not of this network", extra),
            ("of another shape", misshaped),
            ("not floating point", strange),
        )
        if names
    ]
    if problems or numbers:
        # Looked for only now, since nothing else reads the tensors of a file that does not fit.
        broken = [name for name in wanted if name in tensors and not _finite(tensors[name])]
        if broken:
            problems.append(f"{len(broken)} with NaN or infinity: {_listed(broken)}")
    return problems


def _finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds numbers only; of what is no number at all, yes."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return True
    return all(np.isfinite(np.asarray(piece, np.float32)).all() for _, piece in tensor.pieces())


def _listed(names: list[str]) -> str:
    return ", ".join(names)
