"""What a report says about a run: predictions, lines about methods, versions."""

import functools
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.report import MethodEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxplain.cli.maps import Maps
    from jaxplain.methods import Method
    from jaxplain.model import Model

PACKAGES = ("jaxplain", "jax", "flax", "numpy")


def probabilities(model: "Model", images: np.ndarray, *, chunk: int) -> np.ndarray:
    """Return the class probabilities (N, classes) of N images, `chunk` at a time.

    Raises:
        ValueError: logits that are not finite.
    """
    predict = _predict()
    chunk = min(chunk, len(images))
    parts = []
    for start in range(0, len(images), chunk):
        rows = np.minimum(np.arange(start, start + chunk), len(images) - 1)
        parts.append(np.asarray(predict(model, images[rows]))[: len(images) - start])
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise ValueError(
            f"model {model.name!r} answers with values that are not finite: "
            "its weights or its preprocessing are damaged"
        )
    return found


@functools.cache
def _predict() -> "Callable[[Model, np.ndarray], Any]":
    """The one compiled function, so that a call after the first of its shape compiles nothing."""
    import jax

    return jax.jit(lambda model, x: model.probabilities(x))


def entry(method: "Method", maps: "Maps | None", layer: str | None) -> MethodEntry:
    """Return the report's line about a method; `layer` is where it explained, if layered."""
    # "cam" of jaxplain.methods.cam and of jaxplain.methods.cam.maps; others go by their own module.
    module = method.function.__module__.removeprefix("jaxplain.methods.")
    return MethodEntry(
        name=method.name,
        title=method.title,
        signed=method.signed,
        family=module.partition(".")[0],
        summary=method.summary,
        reference=method.reference,
        options=", ".join(f"{name} = {value}" for name, value in method.options),
        layer=layer,
        seconds=maps.seconds if maps else None,
        compile_seconds=maps.compile_seconds if maps else None,
        audit=maps.audit if maps else (),
    )


def of_the_run(*, seed: int, seconds: float | None = None) -> dict[str, str]:
    """Return versions, device, seed and, where it means something, time, as the report lists them.

    Example:
        >>> list(of_the_run(seed=0))[-2:], of_the_run(seed=0, seconds=2.4)["Time"]
        (['System', 'Seed'], '2 s')
    """
    import jax

    facts = {name: metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    facts["Python"] = platform.python_version()
    facts["Device"] = f"{jax.device_count()} × {device.device_kind}"
    facts["Processors"] = str(os.cpu_count())
    facts["System"] = f"{platform.system()} {platform.machine()}"
    facts["Seed"] = str(seed)
    if seconds is not None:
        facts["Time"] = f"{seconds:.0f} s"
    return facts
