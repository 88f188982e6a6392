"""`jaxplain fit chip`: the importance of a classifier's channels, from many pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxplain.cli.console import note, say, show_table, table
from jaxplain.cli.fit import Cut, Fit
from jaxplain.report import duration

if TYPE_CHECKING:
    from jaxplain.methods.chip import ChipImportance
    from jaxplain.model import Model


@dataclass(frozen=True, kw_only=True)
class Request(Fit):
    """What the user asked for; see `jaxplain fit chip --help`."""

    num_gates: int
    keep: float
    sigma: float | None
    penalty: float
    shared: bool


def run(request: Request) -> None:
    """Fit, write and print how it went.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    import time

    import jax

    from jaxplain.data.labelled import Chosen
    from jaxplain.methods import chip
    from jaxplain.sharding import data_mesh

    began = time.perf_counter()
    out = request.begin("chip.safetensors")
    model = request.load()
    assert model.preprocessing is not None
    layers = request.named_layers(model) or separating(model)
    data, rows = request.open()
    pictures = Cut(Chosen(data.train.images, rows), model.preprocessing)
    mesh = data_mesh()
    note(
        f"{request.model}: {len(pictures):,} pictures, {request.num_gates} gate vectors each; "
        f"layers {', '.join(layers)}, devices: {mesh.size}"
    )
    with request.watched(len(pictures)) as show:
        found = chip.fit(
            model,
            request.stream(pictures),
            layers,
            key=jax.random.key(request.seed),
            num_gates=request.num_gates,
            keep=request.keep,
            sigma=request.sigma,
            penalty=request.penalty,
            gates="shared" if request.shared else "fresh",
            mesh=mesh,
            checkpoint=request.checkpoints,
            every=request.every,
            progress=show,
        )
    if jax.process_index() == 0:
        chip.save(out, found)
        show_layers(found)
        say(f"fitted in {duration(time.perf_counter() - began)}")
        say(out)


def separating(model: "Model") -> list[str]:
    """Return the layers with positions that separate the pictures from the answer.

    Raises:
        ValueError: there is none.
    """
    from jaxplain.trace import split

    names = []
    for layer in model.layers():
        if len(layer.shape) != 3:
            continue
        try:
            split(model, layer.name)
        except ValueError:  # a path goes round it
            continue
        names.append(layer.name)
    if not names:
        raise ValueError(f"no layer of model {model.name!r} has positions and separates")
    return names


def show_layers(found: "dict[str, ChipImportance]") -> None:
    """Print how each layer was fitted, and how good the solution is."""
    columns: Sequence[tuple[str, str]] = [
        ("layer", "left"),
        ("channels", "right"),
        ("important", "right"),
        ("classes", "right"),
        ("KKT", "right"),
        ("gates", "left"),
    ]
    from jaxplain.methods.chip import important

    rows = table("CHIP", columns)
    for layer, importance in found.items():
        fitted = np.asarray(importance.fitted)
        counts = important(importance).sum(1)[fitted]
        rows.add_row(
            layer,
            str(importance.weights.shape[1]),
            f"{counts.mean():.1f}" if len(counts) else "–",
            f"{fitted.sum()} of {len(fitted)}",
            f"{float(np.asarray(importance.kkt).max()):.1e}",
            importance.path,
        )
    show_table(rows)
