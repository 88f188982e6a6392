"""What fitting CHIP costs: time over the bare forwards, memory over length, work over devices.

VGG-16 at 224 x 224 has random weights, which changes no time. For its last convolution three ways
are compared with the bare forward of the same images: contributions of channels computed once (what
`fit` does), the head run again for every gate vector, and the whole network run again. All of it is
compiled as `jaxplain fit chip` compiles (docs/performance.md).
"""

import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, seconds, time_ratio

import jaxplain as jxp
from jaxplain.cli.compilation import tune
from jaxplain.methods.chip import engine
from jaxplain.methods.chip.options import Options
from jaxplain.methods.chip.run import Run
from jaxplain.methods.streaming import Batch, Stream
from jaxplain.sharding import check_mesh, data_mesh

# Before JAX computes anything.
tune()

GATES = 100
ILSVRC = 1_281_167


def load(name: str) -> jxp.Model:
    return jxp.load_model(name, weights="random" if name.startswith("vgg") else None)


def pictures(model: jxp.Model, count: int, seed: int = 0) -> np.ndarray:
    assert model.input_shape is not None
    random = np.random.default_rng(seed)
    return random.normal(size=(count, *model.input_shape)).astype(np.float32)


def prepared(
    model: jxp.Model, layer: str, batch: int, gates: int, *, linear: bool = True, mesh: Any = None
) -> tuple[Run, Batch]:
    """Return a fit and its first batch."""
    options = Options(gates, 0.5, None, "fresh", 100, 64, None)
    stream = Stream([pictures(model, batch)], model)
    made = Run(model, stream, (layer,), options, jax.random.key(0), check_mesh(mesh), linear)
    first = made.next_batch()
    assert first is not None
    return made, first


@jax.jit
def _forward(model: jxp.Model, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(model(images))


@functools.partial(jax.jit, static_argnames=("layer", "rounds", "copies"))
def _suffixes(
    model: jxp.Model, images: jax.Array, *, layer: str, rounds: int, copies: int
) -> jax.Array:
    """Run a batch as it is, and `rounds` batches of `copies` of its layer through the rest."""
    prefix, suffix = jxp.split(model, layer)
    activation = prefix(images)
    several = jnp.tile(activation, (copies, 1, 1, 1))
    shifts = jnp.arange(rounds, dtype=images.dtype)
    _, found = jax.lax.scan(lambda c, s: (c, jax.nn.softmax(suffix(several + s))), 0, shifts)
    return found.sum() + model(images).sum()


@jax.jit
def _traced_forward(model: jxp.Model, images: jax.Array) -> jax.Array:
    """The bare forward as `fit` runs it: from the program, whose convolutions it knows."""
    return jax.nn.softmax(jxp.capture(model, images, ["logits"])["logits"])


@functools.partial(jax.jit, static_argnames="layer")
def _whole(model: jxp.Model, images: jax.Array, gates: jax.Array, *, layer: str) -> jax.Array:
    """Run the whole network for each of some gate vectors of a layer."""

    def once(gate: jax.Array) -> jax.Array:
        return jax.nn.softmax(jxp.edit(model, gates={layer: gate})(images))

    return jax.lax.map(once, gates)


def _last_layer(figures: Figures, model: jxp.Model, layer: str) -> None:
    batch = 8
    images = jnp.asarray(pictures(model, batch))
    fit, first = prepared(model, layer, batch, GATES)
    assert fit.paths[layer].startswith("linear")
    # In short, one batch is no chunk: what is added once a chunk would count too much.
    several = 1 if figures.quick else fit.a_chunk

    def chunk() -> Any:
        seen = [fit.observe(first) for _ in range(several)]
        if figures.quick:
            return seen
        fit.absorb(seen)
        return fit.sums

    def forwards(forward: Any = _forward) -> Any:
        return [forward(model, images) for _ in range(several)]

    pairs = 3 if figures.quick else 5
    figures.ratio(f"chip/{layer}/linear", chunk, forwards, at_most=1.5, pairs=pairs)
    if figures.quick:
        return
    traced = functools.partial(forwards, _traced_forward)
    figures.add(f"chip/{layer}/linear_over_traced", time_ratio(chunk, traced, pairs=3))
    each = min(seconds(chunk) for _ in range(3)) / (several * batch)
    figures.add("chip/ilsvrc/images_per_second", 1 / each)
    figures.add("chip/ilsvrc/hours_on_this_machine", each * ILSVRC / 3600)
    again, same = prepared(model, layer, batch, GATES, linear=False)
    bare = functools.partial(_forward, model, images)
    ratio = time_ratio(lambda: again.observe(same), bare, pairs=1)
    figures.add(f"chip/{layer}/head_again", ratio)
    channels = fit.sums[layer].sums.corr.shape[1]
    gates = jax.random.bernoulli(jax.random.key(1), 0.5, (2, channels)).astype(jnp.float32)
    ratio = time_ratio(lambda: _whole(model, images, gates, layer=layer), bare, pairs=1)
    figures.add(f"chip/{layer}/network_again", ratio * GATES / len(gates))


def _first_layer(figures: Figures, model: jxp.Model, layer: str) -> None:
    batch, gates = (1, 12) if figures.quick else (4, GATES)
    fit, first = prepared(model, layer, batch, gates)
    images = jnp.asarray(pictures(model, batch))
    shape = next(known.shape for known in model.layers() if known.name == layer)
    rows = engine.rows_of(jax.ShapeDtypeStruct((batch, *shape), jnp.float32))
    copies = engine.at_once(fit.plan, batch, gates, rows)
    bare = functools.partial(
        _suffixes, model, images, layer=layer, rounds=-(-gates // copies), copies=copies
    )
    pairs = 3 if figures.quick else 2
    figures.ratio(f"chip/{layer}", lambda: fit.observe(first), bare, at_most=1.05, pairs=pairs)


def _precision(figures: Figures, model: jxp.Model, layer: str) -> None:
    """On an accelerator: images a second in float32 and bfloat16, and what bfloat16 changes."""
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), model.params)
        own = jxp.Model(**{**vars(model), "params": params})
        options = Options(GATES, 0.5, None, "fresh", 100, 256, None)
        images = jnp.asarray(pictures(model, 64), dtype)
        fit = Run(
            own, Stream([images], own), (layer,), options, jax.random.key(0), check_mesh(None), True
        )
        batch = fit.next_batch()
        assert batch is not None
        seen = fit.observe(batch)
        times = [seconds(lambda fit=fit, batch=batch: fit.observe(batch)) for _ in range(5)]
        figures.add(f"chip/accelerator/{dtype.__name__}/images_per_second", 64 / min(times))
        found[dtype] = np.asarray(seen.layers[layer].corr)
    error = (
        np.abs(found[jnp.bfloat16] - found[jnp.float32]).max() / np.abs(found[jnp.float32]).max()
    )
    figures.add("chip/accelerator/bfloat16/error", error)


def _peak(name: str, layer: str, images: int) -> None:
    """In a process of its own: fit a stream of so many images and print the peak memory."""
    model = load(name)

    def stream() -> Iterator[np.ndarray]:
        for number in range(images // 8):
            yield pictures(model, 8, seed=number)

    jxp.chip.gather(model, stream(), layer, key=jax.random.key(0), num_gates=20, chunk=16)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _devices(name: str, layer: str, batch: int) -> None:
    """In a process with eight devices: compare them with one of them and print what was found."""
    flowers = jxp.load_model("an8flower-single-6c")
    meshes = data_mesh(jax.devices()[:1]), data_mesh()
    results = []
    for mesh in meshes:
        stream, key = [pictures(flowers, 24)], jax.random.key(0)
        found = jxp.chip.gather(flowers, stream, "conv4", key=key, num_gates=20, mesh=mesh)["conv4"]
        results.append(np.concatenate([found.packed.ravel(), found.corr.ravel()]))
    error = np.abs(results[1] - results[0]).max() / np.abs(results[0]).max()
    model = load(name)
    flops = []
    for mesh in meshes:
        fit, first = prepared(model, layer, batch, GATES, mesh=mesh)
        plan, _, placed = fit.observe.args
        lowered = engine.observe.lower(plan, mesh, *placed[:2], first, placed[2])
        flops.append(lowered.compile().cost_analysis()["flops"])
    print(json.dumps({"error": float(error), "work": flops[1] / flops[0]}))


def _elsewhere(call: str, devices: int = 1) -> str:
    """Run a function of this script in another process and return its last line."""
    flags = f"{tune()} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", f"import chip; chip.{call}"]
    folder = Path(__file__).parent
    made = subprocess.run(
        command, check=True, env=environment, cwd=folder, capture_output=True, text=True
    )
    return made.stdout.splitlines()[-1]


def main(figures: Figures) -> None:
    """CHIP: time over bare forwards, memory over length, work over devices.

    VGG-16; VGG-11 and the flowers if quick.
    """
    name, last = ("vgg11", "conv5_2") if figures.quick else ("vgg16", "conv5_3")
    model = load(name)
    _last_layer(figures, model, last)
    _first_layer(figures, model, "conv1_1")
    if jax.default_backend() != "cpu":
        _precision(figures, model, last)
    if figures.quick:
        name, last = "an8flower-single-6c", "conv4"
    few, many = (int(_elsewhere(f"_peak({name!r}, {last!r}, {n})")) for n in (32, 320))
    figures.add("chip/memory/ten_times_the_images", many / few, at_most=1.05)
    told = json.loads(_elsewhere(f"_devices({name!r}, {last!r}, 8)", devices=8))
    figures.add("chip/eight_devices/difference", told["error"], at_most=1e-5)
    figures.add("chip/eight_devices/work_times_eight", 8 * told["work"], at_most=1.05)


if __name__ == "__main__":
    run(main)
