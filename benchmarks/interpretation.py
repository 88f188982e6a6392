"""What interpreting a network costs and finds: time over forwards, memory, grids, flowers.

Networks of ILSVRC have random weights, which changes no time. The flowers' figures are findings;
areas of feedback at unit stride have those of the paper (Oramas et al. 2019, Fig. 8) as targets.
docs/visual-explanation.md says what they mean.
"""

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, time_ratio

import jaxplain as jxp
from jaxplain.data.an8flower import dataset_arrays
from jaxplain.evaluation import (
    PAPER_AREAS,
    box_occlusion,
    evaluate,
    feedback_methods,
    grid_energy,
    random_maps,
)
from jaxplain.methods import interpretation
from jaxplain.methods.interpretation import (
    Block,
    FeatureStatistics,
    RelevantFeatures,
    Settings,
    engine,
)
from jaxplain.methods.streaming import Feed, Stream
from jaxplain.sharding import check_mesh
from jaxplain.solvers.gram import Accumulator
from jaxplain.trace.backward import Seed, Sweep
from jaxplain.trace.rules import GUIDED_BACKPROP, unit_stride

KEY = jax.random.key(0)
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "/both_signs_of_five": {"signs": "both", "top": 5},
    "/blurred": {"smoothing": 2.0},
}
"""How maps are made: as in the authors' code; what the paper leaves open, chosen on the validation
split; blurred, which the paper does not do."""
SHOWN = ("activation", "guided", "unit_stride_pooling")
"""On networks without strided convolutions "unit_stride" is "guided", bit for bit."""
CHUNK = 256
"""Images whose descriptors `gather` adds to the sums at once, unless told otherwise."""


def pictures(model: jxp.Model, count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=(count, *model.input_shape)).astype(np.float32)


@jax.jit
def _forward(model: jxp.Model, images: jax.Array) -> jax.Array:
    return model(images)


@jax.jit
def _gradient(model: jxp.Model, images: jax.Array, targets: jax.Array) -> jax.Array:
    def score(images: jax.Array) -> jax.Array:
        return jnp.take_along_axis(model(images), targets[:, None], 1).sum()

    return jax.grad(score)(images)


def drawn(model: jxp.Model) -> RelevantFeatures:
    """Positive weights of all channels, for times."""
    blocks = interpretation.blocks(model)
    count = sum(block.channels for block in blocks)
    weights = jax.random.uniform(KEY, (1000, count))
    one = jnp.ones(1000)
    settings = Settings("", 0, 1, 1.0, "true", "all", False, False, count, 0, count, 0)
    return RelevantFeatures(weights, one, one, one > 0, one.astype(int), blocks, settings)


def _descriptors(figures: Figures, name: str, batch: int, several: int) -> None:
    """Time of observing images, and of adding their descriptors to the sums, over forwards."""
    model = jxp.load_model(name, weights=None if "flower" in name else "random")
    # Without what is no layer of features in the paper: the last two.
    blocks = interpretation.blocks(model, skip_last=2)
    count = sum(block.channels for block in blocks)
    mesh = check_mesh(None)
    rows = several * batch
    images, labels = pictures(model, rows), np.zeros(rows, int)
    batches = [
        {"image": images[i : i + batch], "label": labels[i : i + batch]}
        for i in range(0, rows, batch)
    ]
    feed = Feed(Stream(batches, model, labels=True), mesh)
    placed = feed.everywhere(model)
    ready = [feed.next_batch() for _ in range(several)]

    def forwards() -> Any:
        return [_forward(placed, known.images) for known in ready]

    def observed() -> Any:
        return [engine.observe(blocks, False, mesh, placed, known) for known in ready]

    pairs = 5 if figures.quick else 9
    seen = time_ratio(observed, forwards, pairs=pairs)
    figures.add(f"descriptors/{name}/observed", seen)
    # A chunk of images is added to the sums at once, whatever the size of batches.
    empty = engine.zeros(count, 2 * feed.classes + 1, mesh, np.float32)
    chunk = jax.tree.map(lambda x: jnp.resize(x, (CHUNK, *x.shape[1:])), observed()[0])
    sums = [jax.tree.map(jnp.asarray, Accumulator(empty, empty))]

    def absorbed() -> Any:
        sums[0] = engine.absorb(mesh, sums[0], [chunk])
        return sums[0]

    added = time_ratio(absorbed, forwards, pairs=pairs) * rows / CHUNK
    figures.add(f"descriptors/{name}/added", added)
    figures.add(f"descriptors/{name}", seen + added, at_most=1.05)


def _explanations(figures: Figures, name: str, batch: int) -> None:
    model = jxp.load_model(name, weights=None if "flower" in name else "random")
    images, targets = jnp.asarray(pictures(model, batch)), jnp.zeros(batch, int)
    features = interpretation.shipped(model) if "flower" in name else drawn(model)
    explained = functools.partial(
        interpretation.explain, model, images, targets, importance=features, top=3
    )

    def three() -> Any:
        return [_gradient(model, images, targets) for _ in range(3)]

    pairs = 3 if figures.quick else 5
    figures.ratio(f"explain/{name}/three_features", explained, three, at_most=1.1, pairs=pairs)


def _peak(classes: int, features: int) -> None:
    """In a process of its own: select features, and print the memory beyond the statistics."""
    random = np.random.default_rng(0)
    gram, corr = np.zeros((features, features)), np.zeros((classes, features))
    counts = np.zeros(classes, int)
    for _ in range(8):
        rows = random.uniform(size=(features // 4, features))
        rows /= rows.sum(1, keepdims=True)
        labels = random.integers(0, classes, len(rows))
        gram += rows.T @ rows
        np.add.at(corr, labels, rows)
        counts += np.bincount(labels, minlength=classes)
    both = np.concatenate([corr, corr, corr.sum(0, keepdims=True)])
    del rows, corr
    statistics = FeatureStatistics(
        gram, both, np.stack([counts] * 2), int(counts.sum()), (Block("fc", "dense", features),),
        True, False, "", 0,
    )  # fmt: skip
    # The compiler's own memory is not counted: nor is what the allocator kept of it.
    interpretation.select(statistics, mu=1.0, max_steps=4)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    interpretation.select(statistics, mu=1.0, max_steps=4)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print((peak - before) / gram.nbytes)


def _memory(figures: Figures) -> None:
    classes, features = (200, 2000) if figures.quick else (1000, 4000)
    command = [sys.executable, "-c", f"import interpretation as i; i._peak({classes}, {features})"]
    folder = Path(__file__).parent
    made = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
    ratio = float(made.stdout.splitlines()[-1])
    figures.add(f"select/{classes}x{features}/memory_over_gram", ratio, at_most=2.0)


@functools.partial(jax.jit, static_argnames=("layer", "stride"))
def _grids(model: jxp.Model, images: jax.Array, *, layer: str, stride: int) -> jax.Array:
    """Return the median over channels of the grid's energy by guided backprop over ours."""
    sweep = Sweep(model, images)
    activation = sweep.activation(layer)
    marks = jnp.eye(activation.shape[-1])[:8]

    def energies(mark: jax.Array) -> jax.Array:
        seed = Seed(activation * mark[None, None, None])
        found = []
        for rules in (GUIDED_BACKPROP, unit_stride()):
            back = sweep.pull(rules, {layer: seed}, ["input"], strict=False)["input"].value
            # The border, where windows are cut off, has a frame of its own.
            heat = jnp.linalg.norm(jnp.maximum(back, 0), axis=-1)[:, 16:-16, 16:-16]
            found.append(grid_energy(heat, stride))
        return found[0] / found[1]

    return jnp.median(jax.lax.map(energies, marks))


def _grid(figures: Figures) -> None:
    for name in ("alexnet", "vgg_f"):
        model = jxp.load_model(name, weights="random")
        rough = jax.random.normal(KEY, (1, 14, 14, 3))
        images = jax.image.resize(rough, (1, *model.input_shape), "cubic")
        fall = _grids(model, images, layer="conv1", stride=4)
        figures.add(f"grid/{name}/conv1/guided_over_unit_stride", float(fall), at_least=50)


def _flowers(figures: Figures, variant: str) -> None:
    model = jxp.load_model(f"an8flower-{variant.replace('_', '-')}")
    features = interpretation.shipped(model)
    figures.add(f"{variant}/gap", float(features.gap.max()), at_most=1e-6)
    count = 48 if figures.quick else 600
    test = dataset_arrays(variant, "test", count)
    images = np.asarray(model.preprocessing.batch(list(test.images)))
    _areas(figures, variant, model, images, test)
    few = slice(0, 24 if figures.quick else 120)
    _occlusion(figures, variant, model, images[few], test.labels[few])


def _areas(figures: Figures, variant: str, model: jxp.Model, images: np.ndarray, test: Any) -> None:
    """Tell the areas under the IoU curve with their intervals, for each of `SETTINGS`."""
    features = interpretation.shipped(model)
    for setting, options in SETTINGS.items():
        found = evaluate(
            model,
            feedback_methods(features, feedback=SHOWN, **options),
            images,
            test.labels,
            test.masks,
            key=KEY,
            batch_size=24,
        )
        for result in found.results:
            if result.baseline:
                continue
            area = result.scores["iou_area"].mean
            name = f"{variant}/area/{result.name}{setting}"
            own = result.name.startswith("unit_stride")
            paper = PAPER_AREAS[variant]["unit_stride"] if own else None
            figures.add(name, area.value, at_least=paper)
            figures.add(f"{name}/low", area.low)
            figures.add(f"{name}/high", area.high)


def _occlusion(
    figures: Figures, variant: str, model: jxp.Model, images: np.ndarray, labels: np.ndarray
) -> None:
    """Tell how far confidence falls, and by how much more than with guided backprop."""
    features = interpretation.shipped(model)
    falls = {"random": _covered(model, images, labels, random_maps(KEY, *images.shape[:3]))}
    for setting, options in SETTINGS.items():
        for method in feedback_methods(features, feedback=SHOWN, **options):
            maps = [
                method.explain(model, images[i : i + 12], labels[i : i + 12]).heatmap
                for i in range(0, len(images), 12)
            ]
            name = f"{method.name}{setting}"
            falls[name] = _covered(model, images, labels, np.concatenate(maps))
    for name, fall in falls.items():
        beyond = fall - falls["guided"]
        figures.add(f"{variant}/occlusion/{name}", fall.mean())
        error = beyond.std() / np.sqrt(len(beyond))
        figures.add(f"{variant}/occlusion/{name}/beyond_guided", beyond.mean())
        figures.add(f"{variant}/occlusion/{name}/beyond_guided/standard_error", error)


def _covered(model: jxp.Model, images: np.ndarray, labels: np.ndarray, maps: Any) -> np.ndarray:
    return box_occlusion(model, images, labels, np.asarray(maps), key=KEY, batch_size=12).falls


def main(figures: Figures) -> None:
    """Interpretation: descriptors, explanations, selection, grids, and the flowers."""
    large, batch = ("vgg11", 2) if figures.quick else ("vgg16", 4)
    flowers = "an8flower-single-6c"
    _descriptors(figures, large, batch, 2)
    _descriptors(figures, flowers, 32, 4)
    _explanations(figures, large, batch)
    _explanations(figures, flowers, 8)
    _memory(figures)
    _grid(figures)
    for variant in ("single_6c",) if figures.quick else ("single_6c", "double_12c"):
        _flowers(figures, variant)


if __name__ == "__main__":
    run(main)
