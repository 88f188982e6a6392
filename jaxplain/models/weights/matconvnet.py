"""Reads networks of MatConvNet (https://www.vlfeat.org/matconvnet/pretrained/), such as VGG-F.

A file is a MATLAB workspace of version 5 with a cell array `layers`; filters lie (H, W, I, O), as
here. Newer files keep filters and biases in a cell `weights`, older ones (before 1.0-beta9) in
fields of their own; what is needed to prepare a picture is in `meta.normalization`, in older files
in `normalization`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.models.network import Network
from jaxplain.models.weights.fill import Path as VariablePath
from jaxplain.models.weights.fill import Slot
from jaxplain.models.weights.mat_file import read_mat
from jaxplain.models.weights.tensors import MemoryTensor
from jaxplain.preprocessing import Preprocessing

# MatConvNet's name of the last layer -> ours; the others are the same.
RENAMED = {"fc8": "logits"}


def read_matconvnet(path: str | Path) -> tuple[dict[str, MemoryTensor], Preprocessing]:
    """Return the tensors of a file ("conv1.filters", "conv1.biases") and how it wants pictures.

    Pictures are RGB in 0..255 with their mean taken away, as MatConvNet's networks expect; an
    average picture is averaged over its positions. `border` says how much larger than the input a
    picture is before its centre is cut out.

    Args:
        path: the `.mat` file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of MATLAB's version 7.3 (HDF5), or not a network.
    """
    path = Path(path)
    workspace = read_mat(path, ("layers", "meta", "normalization"))
    try:
        return _tensors(workspace), _preprocessing(workspace)
    # A value of another kind than expected.
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is not a MatConvNet network: {reason[:500]}") from error


def _tensors(workspace: Mapping[str, Any]) -> dict[str, MemoryTensor]:
    """Return filters and biases of the convolutions (dense layers are convolutions there)."""
    tensors = {}
    for layer in _field(workspace, "layers"):
        if _field(layer, "type") != "conv":
            continue
        if "weights" in layer:
            filters, biases = _field(layer, "weights")
        else:
            filters, biases = _field(layer, "filters"), _field(layer, "biases")
        theirs = str(_field(layer, "name"))
        name = RENAMED.get(theirs, theirs)
        if f"{name}.filters" in tensors:
            raise ValueError(f"two of its layers are called {name[:80]!r}")
        # MATLAB drops axes of length one at the end.
        filters = filters.reshape(*filters.shape, *(1,) * (4 - filters.ndim))
        tensors[f"{name}.filters"] = MemoryTensor(filters)
        tensors[f"{name}.biases"] = MemoryTensor(biases.reshape(-1))
    if not tensors:
        raise ValueError("it has no convolutions")
    return tensors


def _field(struct: Any, name: str) -> Any:
    if not isinstance(struct, Mapping) or name not in struct:
        raise ValueError(f"it has no {name} where one belongs")
    return struct[name]


def _preprocessing(workspace: Mapping[str, Any]) -> Preprocessing:
    """Read what is needed to prepare pictures."""
    described: Any = workspace.get("meta", workspace)
    normalization = _field(described, "normalization")
    height, width = (int(n) for n in _field(normalization, "imageSize").reshape(-1)[:2])
    average = np.asarray(_field(normalization, "averageImage"), np.float64)
    if average.size % 3 or not average.size:
        raise ValueError(f"its averageImage has shape {average.shape}, not three channels")
    # Channels are the last axis of a picture, and the only one of a mean colour.
    mean = average.reshape(-1, 3).mean(0) / 255
    border = np.asarray(normalization.get("border", (0, 0))).reshape(-1)
    return Preprocessing(
        (height, width),
        tuple(float(m) for m in mean),
        (1.0, 1.0, 1.0),
        resize=min(height, width) + int(border.min()) if border.any() else None,
        interpolation=normalization.get("interpolation", "bicubic"),
        scale=255.0,
    )


def matconvnet_plan(
    network: Network, shapes: Mapping[VariablePath, tuple[int, ...]]
) -> dict[VariablePath, Slot]:
    """Return the plan of MatConvNet's names and layout; its dense layers are convolutions."""
    plan = {}
    for path, shape in shapes.items():
        _, layer, leaf = path
        source = shape
        if leaf == "kernel" and len(shape) == 2:
            height, width = network.flattened.get(layer, (1, 1))
            source = (height, width, shape[0] // (height * width), shape[1])
        plan[path] = Slot(f"{layer}.{'filters' if leaf == 'kernel' else 'biases'}", source)
    return plan
