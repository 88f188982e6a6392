"""Fitting CHIP: from a stream of images to the importance of every channel for every class."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxplain.methods.chip.importance import ChipImportance
from jaxplain.methods.chip.options import Gates, Options
from jaxplain.methods.chip.run import Run
from jaxplain.methods.chip.solve import ChipStatistics, check_penalty, solve
from jaxplain.methods.streaming import Keeper, Progress, Stream
from jaxplain.model import Model, check_differentiable
from jaxplain.sharding import check_mesh


def fit(
    model: Model,
    batches: Iterable[Any],
    layers: str | Sequence[str],
    *,
    key: jax.Array,
    num_gates: int = 100,
    keep: float = 0.5,
    sigma: float | None = None,
    penalty: float = 0.01,
    gates: Gates = "fresh",
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    every: int = 100,
    chunk: int = 64,
    rows: int | None = None,
    linear: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, ChipImportance]:
    """Fit how important each channel of some layers is for each class.

    Cui, Wang and Wang 2019, arXiv:1902.02497, eqs. (1)–(16). Every image runs through the network
    once, and what follows each layer runs once for each of its gate vectors. Nothing is kept of
    that but the statistics of the lasso problems, of constant size, so a stream may be of any
    length. All layers are fitted in the same pass, each by gates of its own.

    Args:
        model: any model with layers.
        batches: an iterable of image batches (b, H, W, C): floats, or uint8 pictures of the model's
            own size, which are then normalised as its preprocessing says; or of mappings with the
            entry "image", as `jaxplain.data.loaders.batches` gives them. With several processes,
            process p of P gives the images p, p + P, ... of the whole.
        layers: one name or several. Each must separate the images from the logits.
        key: of the gates.
        num_gates: N, gate vectors an image.
        keep: probability of an open gate.
        sigma: width of the proximity h (7) in units of √K, so that it means the same in every
            layer: h = exp(-share of closed channels / sigma²), and the paper's σ² is sigma² · K.
            None is √(1 - keep), at which a typical gate vector weighs 1/e.
        penalty: λ as a share of the largest one at which a weight is not zero. With the default, a
            class whose probability is a sum over some channels gets exactly those. Where it bends
            with them, as a softmax near 0 or 1 does, a sum cannot follow: other channels make up
            for it with up to a few hundredths of the largest weight, in any number of images. 0.03
            leaves no such in a planted network that saturates.
        gates: "fresh" draws gates for every image, as §IV-A of the paper counts its perturbed
            networks. "shared" draws one set for all, as §III-A writes it; channels that happen to
            be open together in it then share their importance, and more images do not mend that.
        mesh: with the one axis "data", along which images are sharded (see `jaxplain.sharding`);
            None for one device. The result does not depend on it.
        checkpoint: folder; the same call goes on from there, to the same result bit for bit. Only
            process 0 needs it.
        every: chunks between two checkpoints.
        chunk: images whose moments are added to the sums at once.
        rows: gated copies that run through the rest of the network at once; None to choose.
        linear: where the gates enter a dense layer linearly, compute the contributions of the
            channels once an image. Found and checked automatically; `ChipImportance.path` says
            where it was.
        progress: called after every chunk.

    Returns:
        {layer: importance}.

    Raises:
        TypeError: batches of something else than images.
        ValueError: no images, images of another size midway or that are not finite, a layer that is
            unknown or does not separate, a number out of range, logits that are not finite, or a
            checkpoint of other work.
        OSError: a checkpoint cannot be written.

    Example:
        >>> from jaxplain.models import load_model
        >>> from jaxplain.data.digits import digits
        >>> pictures = digits("train").images[:4]
        >>> model, key = load_model("digits"), jax.random.key(0)
        >>> found = fit(model, [pictures], "conv3", key=key, num_gates=4)
        >>> found["conv3"].weights.shape, found["conv3"].path
        ((10, 500), 'linear in the gates up to logits')
    """
    check_penalty(penalty)
    found = gather(
        model,
        batches,
        layers,
        key=key,
        num_gates=num_gates,
        keep=keep,
        sigma=sigma,
        gates=gates,
        mesh=mesh,
        checkpoint=checkpoint,
        every=every,
        chunk=chunk,
        rows=rows,
        linear=linear,
        progress=progress,
    )
    return {layer: solve(statistics, penalty=penalty) for layer, statistics in found.items()}


def gather(
    model: Model,
    batches: Iterable[Any],
    layers: str | Sequence[str],
    *,
    key: jax.Array,
    num_gates: int = 100,
    keep: float = 0.5,
    sigma: float | None = None,
    gates: Gates = "fresh",
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    every: int = 100,
    chunk: int = 64,
    rows: int | None = None,
    linear: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, ChipStatistics]:
    """Return the statistics of the layers, to be solved with any penalty: see `fit`.

    Example:
        >>> from jaxplain.models import load_model
        >>> batch = jax.numpy.zeros((2, 28, 28, 1))
        >>> model, key = load_model("digits"), jax.random.key(0)
        >>> found = gather(model, [batch], "pool2", key=key, num_gates=3)
        >>> found["pool2"].gram([0]).shape, solve(found["pool2"], penalty=0.1).weights.shape
        ((1, 50, 50), (10, 50))
    """
    options = Options(num_gates, keep, sigma, gates, every, chunk, rows)
    check_differentiable(model, "chip")
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    run = Run(model, Stream(batches, model), names, options, key, check_mesh(mesh), linear)
    with contextlib.ExitStack() as stack:
        keeper = None
        if checkpoint is not None:
            keeper = stack.enter_context(Keeper(checkpoint, run.work(), run.feed.processes))
        run.to_the_end(keeper, progress or (lambda _: None))
    return run.statistics()
