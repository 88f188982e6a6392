"""Writes networks as MatConvNet does."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import io


def cells(values: list[Any]) -> np.ndarray:
    """Return a cell array."""
    row = np.empty((1, len(values)), object)
    row[0, :] = values
    return row


def layer(name: str, filters: np.ndarray, biases: np.ndarray, *, old: bool) -> dict[str, Any]:
    fields = {"name": name, "type": "conv", "stride": 1, "pad": 0}
    if old:
        return fields | {"filters": filters, "biases": biases[None]}
    return fields | {"weights": cells([filters, biases[None]])}


def write_matconvnet(
    path: Path,
    *,
    old: bool = False,
    classes: int = 4,
    average: np.ndarray | None = None,
    compressed: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Write a convolution and the classes; return their filters and biases."""
    draw = np.random.default_rng(0)
    weights = {
        "conv1": draw.standard_normal((3, 3, 3, 5)).astype(np.float32),
        "fc8": draw.standard_normal((1, 1, 5, classes)).astype(np.float32),
    }
    biases = {
        name: draw.standard_normal(w.shape[-1]).astype(np.float32) for name, w in weights.items()
    }
    layers = cells(
        [
            layer("conv1", weights["conv1"], biases["conv1"], old=old),
            {"name": "relu1", "type": "relu"},
            layer("fc8", weights["fc8"], biases["fc8"], old=old),
            {"name": "prob", "type": "softmax"},
        ]
    )
    normalization = {
        "imageSize": np.array([[224.0, 224.0, 3.0]]),
        "averageImage": np.full((224, 224, 3), [123, 117, 104]) if average is None else average,
        "border": np.array([[32.0, 32.0]]),
        "interpolation": "bicubic",
    }
    described = {"normalization": normalization}
    workspace = {"layers": layers} | (described if old else {"meta": described})
    io.savemat(path, workspace, do_compression=compressed)
    return weights, biases
