"""What LIME and MINT cost over the forward runs they need, and how many they need.

- Time over the bare forward runs of as many images, in batches of the same size: VGG-16 and
  Inception-V3 with random weights, which change no time. Masking, drawing and solving are counted;
  the segmentation, which is made once whatever the number of samples, is told apart.
- Where they are installed (`pip install jaxplain[bench]`), the time of ours over that of the
  packages `lime` and `captum`, on the same networks, superpixels, batches and number of samples, in
  the same rounds; and how far the weights that `lime` finds are from ours of its states and
  answers.
- Forward runs for the same standard error, against independent samples: the ratio of the mean
  squared standard errors at one number of samples, on the shipped classifier and on VGG-16. For the
  shipped one also the ratio of true errors, over many keys, and how far the errors that are told
  are from the true ones.
- Memory of the compiled program, 4096 samples over 256.

Run `python benchmarks/sampling.py`, which takes a quarter of an hour or more, or with
`--quick` for the shipped classifier alone; XLA gets the flags that the command line gives it.
"""

import functools
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, seconds

import jaxplain as jxp
from jaxplain import superpixels
from jaxplain.cli.compilation import tune
from jaxplain.data import an8flower
from jaxplain.methods.scene import look, make_scene
from jaxplain.trace.layers import logits

FLOWERS = "an8flower-single-6c"
KEY = jax.random.key(0)
PACKAGES = ("lime", "captum")

MOST = 48
"""Superpixels of an image: with more, a few hundred samples would tell little."""


def main(figures: Figures) -> None:
    """LIME and MINT: time over the forward runs they need, and how many these are."""
    tune()
    for package in PACKAGES:
        if not importlib.util.find_spec(package):
            print(f"# {package} is not installed: no figures against it", flush=True)
    flowers = jxp.load_model(FLOWERS)
    images = pictures(flowers, 2 if figures.quick else 8)
    fewer_forwards(figures, "an8flower", flowers, images)
    times(figures, "an8flower", flowers, samples=256 if figures.quick else 960, chunk=32)
    if figures.quick:
        return
    memory(figures, flowers)
    for name in ("vgg16", "inception_v3"):
        model = jxp.load_model(name, weights="random")
        times(figures, name, model, samples=96, chunk=16)
    vgg = jxp.load_model("vgg16", weights="random")
    fewer_forwards(figures, "vgg16", vgg, pictures(vgg, 1))
    true_errors(figures, flowers)


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
        superpixels.nested(superpixels.picture(image, model), of, most_fine=MOST)
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


def times(
    figures: Figures, label: str, model: jxp.Model, *, samples: int, chunk: int, rounds: int = 3
) -> None:
    """Time over the bare forward runs of the same number of images, and over the packages'."""
    images = pictures(model, 1)
    targets = predicted(model, images)
    segments = superpixels.segment(images, model=model, most=MOST)
    nested = nest(model, images, targets)
    options = {"key": KEY, "num_samples": samples, "chunk": chunk}
    answer = jax.jit(lambda m, x: jax.nn.softmax(logits(m, x)))
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: forwards(model, images, rounds=samples // chunk, chunk=chunk),
        "lime": lambda: jxp.lime.explain(model, images, targets, segments, **options),
        "mint": lambda: jxp.mint.explain(model, images, targets, nested, **options),
    }
    box = Box(functools.partial(answer, model), images, segments, targets, samples, chunk)
    for package, prepare in (("lime", lime_package), ("captum", captum_lime)):
        if importlib.util.find_spec(package):
            calls[f"package {package}"] = prepare(box)
    taken = in_rounds(calls, rounds)
    # The classifier of flowers is so small that anything else shows: no target is for it.
    limit = None if model.name == FLOWERS else 1.05
    for method, cut in {
        "lime": lambda: superpixels.segment(images, model=model, most=MOST),
        "mint": lambda: nest(model, images, targets),
    }.items():
        over = statistics.median(np.divide(taken[method], taken["bare"]))
        figures.add(f"sampling/{label}/{method}/over_forwards", over, at_most=limit)
        apart = seconds(cut) / statistics.median(taken["bare"])
        figures.add(f"sampling/{label}/{method}/segmentation_over_forwards", apart)
    for package in PACKAGES:
        if f"package {package}" in taken:
            over = statistics.median(np.divide(taken["lime"], taken[f"package {package}"]))
            figures.add(f"sampling/{label}/lime/time_over_{package}", over, at_most=1)
    if "package lime" in taken:
        difference(figures, f"sampling/{label}/lime/difference_from_lime", box)


def in_rounds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in rounds that have each once, and every second one backwards."""
    for call in calls.values():
        seconds(call)  # compiles
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            taken[name].append(seconds(calls[name]))
    return taken


def fewer_forwards(figures: Figures, label: str, model: jxp.Model, images: jax.Array) -> None:
    """Forward runs for the same standard error, over those of independent samples."""
    targets = predicted(model, images)
    segments = superpixels.segment(images, model=model, most=MOST)
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
    """Mean squared errors over those of independent samples, where the truth is known.

    A flower of ten superpixels has 1024 states, whose answers are looked up instead of computed: so
    the weights can be told that samples without number would give, and tried with many keys.
    """
    images = pictures(model, 1)
    targets = predicted(model, images)
    segments = superpixels.segment(images, model=model, most=10)
    size = int(segments.max()) + 1
    states = np.array(list(itertools.product([0.0, 1.0], repeat=size)), np.float32)
    scene = make_scene(images, targets[:, None], jnp.asarray(segments), "mean", size)
    seen = jax.jit(lambda s: look(model, scene, s, "probability"))
    y = np.concatenate([seen(part)[:, 0, 0] for part in np.split(states, 16)])
    y = np.clip(y, 1e-6, 1 - 1e-6)
    table = jnp.asarray(np.log(np.stack([y, 1 - y], 1)))
    digits = jnp.asarray(2 ** np.arange(size)[::-1])
    looked_up = jxp.Model.from_function(
        lambda table, x: table[((x[:, 0, :, 0] > 0) * digits).sum(1)], table
    )
    row = np.arange(size, dtype=np.int32)[None]
    one, label = jnp.ones((1, 1, size, 1)), jnp.array([0])
    # There is no ridge to speak of, which would pull towards zero.
    ridge, plain = {"alpha": 1e-6, "hide": 0.0}, {"features": "none"}

    def lime(**options: Any) -> tuple[jax.Array, jax.Array]:
        found = jxp.lime.explain(looked_up, one, label, row, **ridge, **options)
        return found.coefficients, found.coefficient_stderr

    def mint(**options: Any) -> tuple[jax.Array, jax.Array]:
        found = jxp.mint.explain(looked_up, one, label, (row // 2, row), **plain, **options)
        return found.fine_importances, found.fine_stderr

    keys = jax.random.split(KEY, 16)
    for name, explain in {"lime": lime, "mint": mint}.items():
        own = {"key": jax.random.key(1), "num_samples": 2**15, "chunk": 4096, **jxp.lime.PLAIN}
        truth, _ = explain(**own)

        def errors(
            explain: Callable[..., tuple[jax.Array, jax.Array]] = explain,
            truth: jax.Array = truth,
            **ways: Any,
        ) -> tuple[float, float]:
            more = {"num_samples": 256, "chunk": 256, **ways}
            found, told = jax.vmap(lambda key: explain(key=key, **more))(keys)
            return float(((found - truth) ** 2).mean()), float((told**2).mean())

        (alone, _), (both, told) = errors(**jxp.lime.PLAIN), errors()
        title = f"sampling/an8flower/{name}"
        figures.add(f"{title}/true_squared_error", both / alone, at_most=0.7)
        off = (told / both) ** 0.5
        figures.add(f"{title}/told_and_true_error_differ_by", max(off, 1 / off), at_most=4 / 3)


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


class Box(NamedTuple):
    """What a package is asked to explain.

    Attributes:
        answer: images -> probabilities.
        images: one image (1, H, W, C).
        segments: its superpixels.
        targets: its class.
        samples: how many copies.
        chunk: how many at a time.
    """

    answer: Callable[[Any], Any]
    images: jax.Array
    segments: np.ndarray
    targets: jax.Array
    samples: int
    chunk: int


def difference(figures: Figures, name: str, box: Box) -> None:
    """How far the package `lime` is from our fit of its own states and answers."""
    seen: list[Any] = []
    theirs = lime_package(box, seen)()
    states, answers = (jnp.asarray(rows, jnp.float32) for rows in seen)
    own = jxp.lime.fit(states, answers[:, box.targets])
    figures.add(
        name,
        max(
            abs(float(own.coefficients[0, superpixel]) - weight)
            for superpixel, weight in theirs.local_exp[int(box.targets[0])]
        ),
        at_most=1e-4,
    )


def lime_package(box: Box, seen: list[Any] | None = None) -> Callable[[], Any]:
    """The call of the package `lime`; it leaves its states and answers in `seen`."""
    from lime.lime_image import LimeImageExplainer

    class Explainer(LimeImageExplainer):
        """The package, which keeps the states that it draws and the answers."""

        def data_labels(self, *data: Any, **options: Any) -> Any:
            found = super().data_labels(*data, **options)
            if seen is not None:
                seen[:] = found
            return found

    def classify(batch: Any) -> Any:
        return np.asarray(box.answer(jnp.asarray(np.stack(batch), jnp.float32)), np.float64)

    def explain() -> Any:
        return Explainer(random_state=0).explain_instance(
            np.asarray(box.images[0], np.float64),
            classify,
            labels=(int(box.targets[0]),),
            top_labels=None,
            num_features=int(box.segments.max()) + 1,
            num_samples=box.samples,
            batch_size=box.chunk,
            segmentation_fn=lambda _: box.segments[0],
        )

    return explain


def captum_lime(box: Box) -> Callable[[], Any]:
    """The call of Captum's Lime."""
    import torch
    from captum.attr import Lime

    def forward(batch: torch.Tensor) -> torch.Tensor:
        images = jnp.asarray(batch.permute(0, 2, 3, 1).numpy())
        return torch.from_numpy(np.array(box.answer(images)))

    image = torch.from_numpy(np.array(box.images.transpose(0, 3, 1, 2)))
    mask = torch.from_numpy(box.segments.astype(np.int64))[:, None].expand(-1, 3, -1, -1)

    def explain() -> Any:
        return Lime(forward).attribute(
            image,
            target=int(box.targets[0]),
            feature_mask=mask,
            n_samples=box.samples,
            perturbations_per_eval=box.chunk,
        )

    return explain


if __name__ == "__main__":
    run(main)
