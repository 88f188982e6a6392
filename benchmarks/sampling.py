"""What LIME and MINT cost over the forward runs they need, and how many they need.

- Time over the bare forward runs of as many images, in batches of the same size: VGG-16 and
  Inception-V3 with random weights, which change no time. Masking, drawing and solving are counted;
  the segmentation, which is made once whatever the number of samples, is told apart.
- Forward runs for the same standard error, against independent samples: the ratio of the mean
  squared standard errors at one number of samples, on the shipped classifier and on VGG-16. For the
  shipped one also the ratio of LIME's true errors: from the weights of all states, over many keys.
- Memory of the compiled program, 4096 samples over 256.

Run `python benchmarks/sampling.py`; XLA gets the flags that the command line gives it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, seconds, time_ratio

import jaxplain as jxp
from jaxplain import superpixels
from jaxplain.cli.compilation import tune
from jaxplain.data import an8flower
from jaxplain.methods.scene import look, make_scene
from jaxplain.trace.layers import logits

FLOWERS = "an8flower-single-6c"
KEY = jax.random.key(0)


def main(figures: Figures) -> None:
    """LIME and MINT: time over the forward runs they need, and how many these are."""
    tune()
    flowers = jxp.load_model(FLOWERS)
    fewer_forwards(figures, "an8flower", flowers, pictures(flowers, 2 if figures.quick else 8))
    if figures.quick:
        overhead(figures, "an8flower", flowers, samples=512, chunk=32, pairs=3)
        return
    true_errors(figures, flowers)
    memory(figures, flowers)
    for name in ("vgg16", "inception_v3"):
        model = jxp.load_model(name, weights="random")
        overhead(figures, name, model, samples=160, chunk=16, pairs=3)
    vgg = jxp.load_model("vgg16", weights="random")
    fewer_forwards(figures, "vgg16", vgg, pictures(vgg, 1))


def pictures(model: jxp.Model, count: int) -> jax.Array:
    """Test flowers for the classifier that knows them; else a photograph of scikit-image's."""
    from skimage.data import astronaut

    assert model.preprocessing is not None
    if model.name != FLOWERS:
        return jnp.asarray(model.preprocessing.batch([astronaut()] * count))
    flowers = an8flower.dataset_arrays("single_6c", "test", count, start=7)
    return jnp.asarray(model.preprocessing.batch(flowers.images))


def predicted(model: jxp.Model, images: jax.Array) -> jax.Array:
    """The class that the network finds likeliest."""
    return jax.jit(lambda m, x: m(x))(model, images).argmax(-1)


def nest(model: jxp.Model, images: jax.Array, targets: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """MINT's superpixels."""
    heat = np.asarray(jxp.grad_cam(model, images, targets))
    found = [
        superpixels.nested(superpixels.picture(image, model), of)
        for image, of in zip(images, heat, strict=True)
    ]
    return np.stack([f.coarse for f in found]), np.stack([f.fine for f in found])


@functools.partial(jax.jit, static_argnames=("rounds", "chunk"))
def forwards(model: jxp.Model, images: jax.Array, *, rounds: int, chunk: int) -> jax.Array:
    """Run `rounds` batches of `chunk` different copies of an image, and the image itself.

    As the methods do: on a CPU that is sooner than `model(images)`.
    """
    copies = jnp.tile(images, (chunk, 1, 1, 1))
    shifts = jnp.arange(rounds, dtype=images.dtype)
    _, answers = jax.lax.scan(lambda c, s: (c, logits(model, copies + s)), 0, shifts)
    return answers.sum() + logits(model, images).sum()


def overhead(
    figures: Figures, label: str, model: jxp.Model, *, samples: int, chunk: int, pairs: int
) -> None:
    """Time over the bare forward runs of the same number of images."""
    images = pictures(model, 1)
    targets = predicted(model, images)
    segments = superpixels.segment(images, model=model)
    nested = nest(model, images, targets)
    options = {"key": KEY, "num_samples": samples, "chunk": chunk}
    methods: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "lime": (
            lambda: jxp.lime.explain(model, images, targets, segments, **options),
            lambda: superpixels.segment(images, model=model),
        ),
        "mint": (
            lambda: jxp.mint.explain(model, images, targets, nested, **options),
            lambda: nest(model, images, targets),
        ),
    }

    def bare() -> Any:
        return forwards(model, images, rounds=samples // chunk, chunk=chunk)

    # The classifier of flowers is so small that anything else shows: no target is for it.
    limit = None if model.name == FLOWERS else 1.05
    for name, (explain, segment) in methods.items():
        ratio = time_ratio(explain, bare, pairs=pairs)
        figures.add(f"sampling/{label}/{name}/over_forwards", ratio, at_most=limit)
        ratio = seconds(segment) / seconds(bare)
        figures.add(f"sampling/{label}/{name}/segmentation_over_forwards", ratio)


def fewer_forwards(figures: Figures, label: str, model: jxp.Model, images: jax.Array) -> None:
    """Forward runs for the same standard error, over those of independent samples."""
    targets = predicted(model, images)
    segments = superpixels.segment(images, model=model)
    nested = nest(model, images, targets)
    options: dict[str, Any] = {"key": KEY, "num_samples": 256, "chunk": 16}

    def lime(**more: Any) -> jax.Array:
        found = jxp.lime.explain(model, images, targets, segments, **options, **more)
        return found.coefficient_stderr

    def mint(**more: Any) -> jax.Array:
        found = jxp.mint.explain(model, images, targets, nested, **options, **more)
        return found.fine_stderr

    for name, explain in {"lime": lime, "mint": mint}.items():
        alone, both = (
            (np.asarray(explain(**ways), float) ** 2).sum(-1) for ways in (jxp.lime.PLAIN, {})
        )
        ratio = float((both / alone).mean())
        figures.add(f"sampling/{label}/{name}/forwards_for_same_error", ratio, at_most=0.7)


def true_errors(figures: Figures, model: jxp.Model) -> None:
    """Mean squared errors of LIME from the weights of all states, over independent samples'."""
    images = pictures(model, 1)
    targets = predicted(model, images)
    segments = superpixels.segment(images, model=model, most=10)
    size = int(segments.max()) + 1
    states = np.array(list(itertools.product([0.0, 1.0], repeat=size)), np.float32)
    scene = make_scene(images, targets[:, None], jnp.asarray(segments), "mean", size)
    seen = jax.jit(lambda s: look(model, scene, s, "probability"))
    y = np.concatenate([seen(part)[:, 0] for part in np.split(states, 16)])
    # The instance goes first; there is no ridge to speak of, which would pull towards zero.
    truth = jxp.lime.fit(jnp.asarray(states[::-1]), jnp.asarray(y[::-1]), alpha=1e-6)
    keys = jax.random.split(KEY, 24)

    def mean_square(**ways: Any) -> float:
        options = {"num_samples": 256, "alpha": 1e-6, **ways}
        errors = [
            jxp.lime.explain(model, images, targets, segments, key=key, **options).coefficients
            for key in keys
        ]
        return float(np.mean((np.stack(errors)[:, 0, :size] - truth.coefficients) ** 2))

    ratio = mean_square() / mean_square(**jxp.lime.PLAIN)
    figures.add("sampling/an8flower/lime/true_squared_error", ratio, at_most=0.7)


def memory(figures: Figures, model: jxp.Model) -> None:
    """Temporary memory of the compiled program, many samples over few."""
    images = pictures(model, 1)
    targets = predicted(model, images)
    segments = jnp.asarray(superpixels.segment(images, model=model))
    methods: dict[str, Callable[..., Any]] = {
        "lime": functools.partial(jxp.lime.explain, segments=segments),
        "mint": functools.partial(jxp.mint.explain, segments=(segments, segments)),
    }
    for name, explain in methods.items():

        def temporary(samples: int, explain: Callable[..., Any] = explain) -> int:
            def heatmap(images: jax.Array) -> jax.Array:
                return explain(model, images, targets, key=KEY, num_samples=samples).heatmap

            analysis = jax.jit(heatmap).lower(images).compile().memory_analysis()
            assert analysis is not None
            return analysis.temp_size_in_bytes

        ratio = temporary(4096) / temporary(256)
        figures.add(f"sampling/an8flower/{name}/memory_of_more_samples", ratio, at_most=1.01)


if __name__ == "__main__":
    run(main)
