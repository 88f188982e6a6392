"""What optimised and sampled masks cost over the passes through the network that they need.

- Time over the bare passes, which are plain JAX called from Python. An iteration of Guided Feature
  Inversion needs a forward and backward pass: in stage one of one image, as far as the inversion
  layer; in stage two of two images; before them, a forward pass tells the activations. An iteration
  of a meaningful perturbation needs a pass of one image, of an extremal perturbation a pass of an
  image for every area. Everything else is the method's own cost: masks, blurs, areas, Adam. There
  are fewer iterations than usual, in the method as in the passes.
- Where torch and torchvision are installed (`pip install '.[bench]'`), extremal perturbations over
  as many iterations of TorchRay's algorithm in torch (Fong et al. 2019), written anew.
- RISE and occlusion over as many forward passes, in batches of the same size.
- The masks that RISE needs for one standard error, in pairs of opposites, and the memory of its
  compiled program for 128 and for 8192 masks.
- A batch of eight images over one image.

With `--quick`, times are those of the shipped flower network, otherwise of ResNet-18, VGG-16 and
VGG-19 with random weights, which change no time. XLA gets the flags that the command line gives it.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run

import jaxplain as jxp
from jaxplain.cli.compilation import tune
from jaxplain.data.an8flower import dataset_arrays
from jaxplain.data.digits import digits
from jaxplain.methods.descent import gaussian_blur
from jaxplain.methods.inversion import inversion_layers
from jaxplain.methods.smooth_masks import grid_of, kernel

PAIRS = 3
AREAS = (0.1, 0.2)
WITH_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def _key() -> jax.Array:
    # No constant: it is a computation, and the first must come after `tune`.
    return jax.random.key(0)


@jax.jit
def _forward_backward(model: jxp.Model, images: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.grad(lambda x: jnp.take_along_axis(model(x), targets[:, None], 1).sum())(images)


@jax.jit
def _forward(model: jxp.Model, images: jax.Array) -> jax.Array:
    return model(images)


@functools.partial(jax.jit, static_argnames="layer")
def _forward_backward_before(model: jxp.Model, images: jax.Array, layer: str) -> jax.Array:
    return jax.grad(lambda x: (jxp.capture(model, x, [layer])[layer] ** 2).sum())(images)


@functools.partial(jax.jit, static_argnames=("rounds", "chunk"))
def _forwards(model: jxp.Model, images: jax.Array, *, rounds: int, chunk: int) -> jax.Array:
    copies = jnp.tile(images, (chunk, 1, 1, 1))
    shifted = jnp.arange(rounds, dtype=images.dtype)
    return jax.lax.scan(lambda c, s: (c, model(copies + s)), 0, shifted)[1]


def _inputs(model: jxp.Model, batch: int) -> tuple[jax.Array, jax.Array]:
    assert model.input_shape is not None
    images = jax.random.uniform(jax.random.key(1), (batch, *model.input_shape), minval=-1.0)
    return images, jnp.arange(batch) % 5


def _optimised(figures: Figures, label: str, model: jxp.Model, steps: int) -> None:
    """Time the methods that descend, `steps` iterations of each."""
    images, targets = _inputs(model, 1)
    _, inner = inversion_layers(model, images)
    early = max(steps // 4, 1)

    def passes(copies: int, count: int) -> list[jax.Array]:
        shown, classes = jnp.repeat(images, copies, 0), jnp.repeat(targets, copies)
        return [_forward_backward(model, shown, classes) for _ in range(count)]

    def inversion_passes() -> Any:
        before = [_forward_backward_before(model, images, layer=inner) for _ in range(early)]
        return _forward(model, images), before, passes(2, steps)

    def compare(name: str, method: Callable[..., Any], baseline: Callable[[], Any]) -> None:
        figures.ratio(
            f"masks/{label}/{name}",
            lambda: method(model, images, targets),
            baseline,
            at_most=1.10,
            pairs=PAIRS,
        )

    compare(
        "guided_feature_inversion",
        functools.partial(jxp.guided_feature_inversion, inversion_steps=early, steps=steps),
        inversion_passes,
    )
    compare(
        "meaningful_perturbation",
        functools.partial(jxp.meaningful_perturbation, key=_key(), steps=steps, initial="flat"),
        lambda: passes(1, steps),
    )
    compare(
        "extremal_perturbation",
        functools.partial(jxp.extremal_perturbation, areas=AREAS, steps=steps),
        lambda: passes(len(AREAS), steps),
    )


def _over_torch(figures: Figures, label: str, model: jxp.Model, steps: int) -> None:
    images, targets = _inputs(model, 1)
    figures.ratio(
        f"masks/{label}/extremal_perturbation/over_torch",
        lambda: jxp.extremal_perturbation(model, images, targets, areas=AREAS, steps=steps),
        _torch_extremal(label, images, steps),
        at_most=1.1,
        pairs=PAIRS,
    )


def _torch_extremal(name: str, images: jax.Array, steps: int) -> Callable[[], Any]:
    """What torch does for the masks of `AREAS` of one image: a loop over steps."""
    import torch
    from torch.nn import functional
    from torchvision import models

    network = getattr(models, name)(weights=None).eval().requires_grad_(False)
    cell, sigma, levels = 7, 21, 8
    grid = grid_of(224, cell, sigma)
    near, whole = 2 * (grid.padding - (grid.blocks - grid.parameters) // 2) + 1, grid.blocks
    shape = torch.from_numpy(kernel(cell, sigma)).reshape(1, near**2, 1, 1, cell, cell)
    pyramid = torch.stack(
        [
            torch.from_numpy(
                np.array(gaussian_blur(images, 20 * (1 - n / (levels - 1)), zeros=True))
            )[0].permute(2, 0, 1)
            for n in range(levels)
        ]
    )

    def masks(parameters: Any) -> Any:
        around = functional.unfold(parameters, near, padding=grid.padding)
        v = around.reshape(-1, near**2, whole, whole, 1, 1) * shape
        m = ((20 * v).softmax(1) * v).sum(1).permute(0, 1, 3, 2, 4)
        return m.reshape(-1, 1, whole * cell, whole * cell)[..., : 1 - cell, : 1 - cell]

    def shown(m: Any) -> Any:
        height = m * (levels - 1)
        below = height.detach().floor()
        some = pyramid[:, None].expand(-1, len(m), -1, -1, -1)
        index = below.long().expand(-1, 3, -1, -1)[None]
        low, high = some.gather(0, index)[0], some.gather(0, (index + 1).clamp(max=levels - 1))[0]
        return low + (height - below) * (high - low)

    def descend() -> Any:
        parameters = torch.ones(len(AREAS), 1, grid.parameters, grid.parameters, requires_grad=True)
        optimiser = torch.optim.SGD([parameters], lr=0.01, momentum=0.9, dampening=0.9)
        for step in range(steps):
            m = masks(parameters)
            inside = m[..., sigma : sigma + 224, sigma : sigma + 224]
            seen = shown(inside)
            ordered = m.flatten(1).sort(1).values
            wanted = torch.zeros_like(ordered)
            for row, area in zip(wanted, AREAS, strict=True):
                row[int(len(row) * (1 - area)) :] = 1
            score = network(seen.flip(3) if step % 2 == 0 else seen)[:, 0]
            area = 300 * 1.0035**step * ((ordered - wanted) ** 2).mean(1)
            optimiser.zero_grad()
            (area - score).sum().backward()
            optimiser.step()
            with torch.no_grad():
                parameters.clamp_(0, 1)
        return masks(parameters).detach()

    return descend


def _sampled(figures: Figures, label: str, model: jxp.Model, rounds: int, chunk: int) -> None:
    """Time the methods that only look, `rounds` batches of `chunk` images of each."""
    assert model.input_shape is not None
    images, targets = _inputs(model, 1)
    windows = 4
    side = model.input_shape[0] // windows
    methods = {
        "rise": (
            functools.partial(jxp.rise, key=_key(), samples=rounds * chunk, chunk=chunk),
            rounds,
        ),
        "occlusion": (
            functools.partial(jxp.occlusion, window=side, stride=side, chunk=chunk),
            windows**2 // chunk,
        ),
    }
    for name, (method, needed) in methods.items():
        figures.ratio(
            f"masks/{label}/{name}",
            lambda method=method: method(model, images, targets),
            lambda needed=needed: (
                _forwards(model, images, rounds=needed, chunk=chunk),
                _forward(model, images),
            ),
            at_most=1.05,
            pairs=PAIRS,
        )


def _batch(figures: Figures, label: str, model: jxp.Model, steps: int) -> None:
    method = functools.partial(
        jxp.guided_feature_inversion, inversion_steps=max(steps // 4, 1), steps=steps
    )
    one, eight = _inputs(model, 1), _inputs(model, 8)
    figures.ratio(
        f"masks/{label}/guided_feature_inversion/batch_of_eight",
        lambda: method(model, *eight),
        lambda: method(model, *one),
        at_most=8.2,
        pairs=PAIRS,
    )


def _memory(figures: Figures, model: jxp.Model) -> None:
    images, targets = _inputs(model, 1)

    def temporary(samples: int) -> int:
        explain = jax.jit(lambda m, x, t: jxp.rise(m, x, t, key=_key(), samples=samples))
        found = explain.lower(model, images, targets).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    figures.add(
        "masks/rise/memory_of_64_times_the_masks", temporary(8192) / temporary(128), at_most=1.01
    )


def _forwards_for_one_error(figures: Figures) -> None:
    """Tell how many masks in pairs have the error of as many that are drawn alone."""
    digit, flower = digits("test"), dataset_arrays("single_6c", "test", 8)
    for label, name, images, labels, count in (
        ("digits", "digits", digit.images[:8], digit.labels[:8], 1000),
        ("flowers", "an8flower-single-6c", flower.images[:8], flower.labels[:8], 400),
    ):
        model = jxp.load_model(name)
        assert model.preprocessing is not None
        shown = jnp.asarray(model.preprocessing.batch(list(images)))
        single, paired = (
            jxp.rise(
                model, shown, jnp.asarray(labels), key=_key(), samples=count, antithetic=pairs
            ).stderr
            for pairs in (False, True)
        )
        # The square of the error falls as one over the number of masks.
        share = float((paired**2).mean() / (single**2).mean())
        figures.add(f"masks/rise/{label}/forwards_for_equal_error", share, at_most=0.5)


def main(figures: Figures) -> None:
    """Measure masks against the passes that they need."""
    tune()
    _memory(figures, jxp.load_model("digits"))
    _forwards_for_one_error(figures)
    if figures.quick:
        flowers = jxp.load_model("an8flower-single-6c")
        _optimised(figures, "flowers", flowers, steps=8)
        _sampled(figures, "flowers", flowers, rounds=4, chunk=16)
        _batch(figures, "flowers", flowers, steps=8)
        return
    # Few iterations of the large networks: an image of VGG-16 takes a second there and back.
    for name, steps in (("resnet18", 8), ("vgg16", 4), ("vgg19", 4)):
        model = jxp.load_model(name, "random")
        _optimised(figures, name, model, steps)
        if name == "vgg19":
            continue
        _sampled(figures, name, model, rounds=3, chunk=8)
        _batch(figures, name, model, steps=2)
        if WITH_TORCH:
            _over_torch(figures, name, model, steps)


if __name__ == "__main__":
    run(main)
