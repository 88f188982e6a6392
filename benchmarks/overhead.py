"""What an explanation costs over running the network: times, tracing and compiling, importing.

Every figure is a ratio measured in one run. The bare counterparts are plain JAX: a forward and
backward pass to the image, a forward pass with the backward pass behind a layer only, and as many
forward passes as occlusion has windows.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from figures import Figures, run

import jaxplain as jxp


@jax.jit
def _forward_backward(model: jxp.Model, images: jax.Array, targets: jax.Array) -> Any:
    def score(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model(x)
        return jnp.take_along_axis(logits, targets[:, None], 1).sum(), logits

    return jax.grad(score, has_aux=True)(images)


@functools.partial(jax.jit, static_argnames="layer")
def _forward_and_backward_behind(
    model: jxp.Model, images: jax.Array, targets: jax.Array, layer: str
) -> Any:
    prefix, suffix = jxp.split(model, layer)
    activation = prefix(images)

    def score(activation: jax.Array) -> jax.Array:
        return jnp.take_along_axis(suffix(activation), targets[:, None], 1).sum()

    return activation, jax.grad(score)(activation)


@functools.partial(jax.jit, static_argnames=("rounds", "chunk"))
def _forwards(model: jxp.Model, images: jax.Array, *, rounds: int, chunk: int) -> jax.Array:
    """Run `rounds` batches of `chunk` copies of the images, and the images themselves once."""
    copies = jnp.tile(images, (chunk, 1, 1, 1))
    shifted = jnp.arange(rounds, dtype=images.dtype)
    _, logits = jax.lax.scan(lambda c, s: (c, model(copies + s)), 0, shifted)
    return logits.sum() + model(images).sum()


def _network(
    figures: Figures, label: str, model: jxp.Model, batch: int, windows: int, chunk: int
) -> None:
    assert model.input_shape is not None
    assert model.default_layer is not None
    images = jax.random.uniform(jax.random.key(0), (batch, *model.input_shape), minval=-1.0)
    targets = jnp.arange(batch) % 5
    data = (model, images, targets)

    def bare() -> Any:
        return _forward_backward(*data)

    def behind() -> Any:
        return _forward_and_backward_behind(*data, layer=model.default_layer)

    def forwards() -> Any:
        return _forwards(model, images, rounds=windows**2 // chunk, chunk=chunk)

    def compare(
        name: str, method: Callable[..., Any], baseline: Callable[[], Any], limit: float
    ) -> None:
        figures.ratio(f"overhead/{label}/{name}", lambda: method(*data), baseline, at_most=limit)

    compare("gradient", jxp.gradient, bare, 1.10)
    compare("saliency", jxp.saliency, bare, 1.10)
    compare("guided_backprop", jxp.guided_backprop, bare, 1.10)
    compare("deconvnet", jxp.deconvnet, bare, 1.10)
    compare("grad_cam", jxp.grad_cam, behind, 1.10)
    compare("excitation_backprop", jxp.excitation_backprop, bare, 2.5)
    compare("lrp_alpha2_beta1", functools.partial(jxp.lrp, rules="alpha2_beta1"), bare, 5.0)
    side = model.input_shape[0] // windows
    occlusion = functools.partial(jxp.occlusion, window=side, stride=side, chunk=chunk)
    compare("occlusion", occlusion, forwards, 1.05)


def _stages(function: Callable[..., Any], data: tuple[Any, ...]) -> tuple[float, float]:
    """Return the seconds that tracing and compiling take when nothing of it was traced before."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(lambda *args: function(*args)).lower(*data)
    middle = time.perf_counter()
    lowered.compile()
    return middle - start, time.perf_counter() - middle


def _compilation(figures: Figures, label: str, model: jxp.Model) -> None:
    """Tell what tracing and compiling cost beside the bare forward and backward pass."""
    assert model.input_shape is not None
    data = (model, jnp.zeros((1, *model.input_shape)), jnp.zeros(1, int))
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        _stages(_forward_backward.__wrapped__, data)  # what JAX itself sets up once
        bare = _stages(_forward_backward.__wrapped__, data)
        for name, method in (
            ("guided_backprop", jxp.guided_backprop),
            ("excitation_backprop", jxp.excitation_backprop),
            ("lrp_alpha2_beta1", functools.partial(jxp.lrp, rules="alpha2_beta1")),
        ):
            trace, compile_ = _stages(method, data)
            figures.add(f"overhead/{label}/{name}/trace", trace / bare[0])
            figures.add(f"overhead/{label}/{name}/compile", compile_ / bare[1])
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def _import_time(figures: Figures) -> None:
    """Importing the package over importing JAX and Flax."""

    def importing(code: str) -> Callable[[], Any]:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code]
        return lambda: subprocess.run(command, check=True, env=environment)

    figures.ratio(
        "overhead/import",
        importing("import jaxplain"),
        importing("import jax, flax.linen"),
        at_most=1.3,
    )


def main(figures: Figures) -> None:
    """Method time over bare time: the shipped flower network, then VGG-16 at 224 x 224."""
    flowers = jxp.load_model("an8flower-single-6c")
    _network(figures, "flowers", flowers, batch=16, windows=7, chunk=7)
    _compilation(figures, "flowers", flowers)
    _import_time(figures)
    vgg = jxp.load_model("vgg16", weights="random")
    _network(figures, "vgg16", vgg, batch=1 if figures.quick else 2, windows=2, chunk=2)
    _compilation(figures, "vgg16", vgg)


if __name__ == "__main__":
    run(main)
