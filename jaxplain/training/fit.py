"""Training: one jitted step, a loop on the host around it, checkpoints, early stopping.

The loop is on the host because XLA's CPU backend compiles the weight gradient of a convolution
inside `lax.scan` to something two orders of magnitude slower than outside (measured, JAX 0.10.2).
Steps are long enough for it not to matter; the host looks at a loss only every `SYNC` steps.

Convolutions are trained with batch norm, which is then folded into them: the network that comes out
has none, and is the same function.
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from jaxplain.models import find_architecture, load_model
from jaxplain.models.lenet import LeNet, fold_batch_norm
from jaxplain.models.weights.store import Weights
from jaxplain.preprocessing import Preprocessing
from jaxplain.checkpoints import Checkpoints
from jaxplain.training.evidence import find_evidence
from jaxplain.training.predict import normalise, predict
from jaxplain.training.recipes import Data, Recipe, find_recipe, load_data

SYNC = 10
"""Steps between two looks at the loss."""

SAVE = 50
"""Steps between two checkpoints."""


class Epoch(NamedTuple):
    """One pass over the training pictures.

    Attributes:
        loss: mean cross-entropy while training, in nats.
        accuracy: share of the training pictures that were right when they came.
        validation_loss: mean cross-entropy of the validation pictures, in nats.
        validation_accuracy: share of them that is right.
    """

    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: steps done.
        steps: steps at most.
        loss: mean cross-entropy of the last few steps.
        history: the epochs done.
    """

    step: int
    steps: int
    loss: float
    history: tuple[Epoch, ...]


class TrainResult(NamedTuple):
    """A trained network.

    Attributes:
        weights: ready for `save`; recipe and accuracy are in it.
        history: its epochs.
        accuracy: share of the test pictures that is right.
        seconds: of this run, without what was resumed.
    """

    weights: Weights
    history: tuple[Epoch, ...]
    accuracy: float
    seconds: float


class State(NamedTuple):
    """What training changes: arrays only.

    Attributes:
        variables: of the network with batch norm.
        optimiser: state of AdamW.
        best: variables of the best epoch so far.
        totals: (2,) sums of losses and of right answers in this epoch.
    """

    variables: Any
    optimiser: Any
    best: Any
    totals: Float[Array, "2"]


def train(
    name: str,
    *,
    data: Data | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    checkpoint_dir: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train a network that ships with the package, from the beginning.

    The same arguments give the same weights, on the same machine, whether or not the run was
    interrupted and gone on with from its checkpoints.

    Args:
        name: a recipe: "an8flower-single-6c", "an8flower-double-12c" or "digits".
        data: pictures instead of the recipe's.
        seed: of the first weights and the order of the pictures.
        epochs: passes over the training pictures, at most; None for the recipe's.
        batch_size: pictures a step; None for the recipe's.
        learning_rate: highest; None for the recipe's.
        checkpoint_dir: folder of the checkpoints; None to keep none.
        progress: called every few steps.

    Returns:
        The weights of the best epoch and what they reach. Of rendered flowers, where that is
        known, their figures also say what the network goes by: see `Evidence`.

    Raises:
        ValueError: an unknown recipe, a setting out of range, pictures that do not fit the network,
            checkpoints of another training, or a loss that is not finite any more.
        OSError: the checkpoints cannot be written.
    """
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    recipe = dataclasses.replace(
        find_recipe(name), **{key: value for key, value in given.items() if value is not None}
    )
    own = load_data(recipe) if data is None else data
    result = fit(recipe, own, seed=seed, checkpoint_dir=checkpoint_dir, progress=progress)
    kind, _, variant = recipe.data.partition("/")
    if data is not None or kind != "an8flower":
        return result
    model = load_model(name, result.weights.variables, num_classes=result.weights.num_classes)
    evidence = find_evidence(model, variant)._asdict()
    found = {f"evidence_{key}": value for key, value in evidence.items()}
    figures = {**result.weights.figures, **found}
    return result._replace(weights=dataclasses.replace(result.weights, figures=figures))


def fit(
    recipe: Recipe,
    data: Data,
    *,
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train by a recipe: see `train`."""
    began = time.perf_counter()
    architecture = find_architecture(recipe.name)
    preprocessing = architecture.preprocessing
    _check(data, preprocessing, recipe)
    network = architecture.build(len(data.class_names)).clone(batch_norm=True)
    loop = _Loop(network, recipe, preprocessing, data, seed, progress or (lambda _: None))
    if checkpoint_dir is None:
        state, history = loop.run(None)
    else:
        work = {**dataclasses.asdict(recipe), "seed": seed, "pictures": _fingerprint(data)}
        with Checkpoints(checkpoint_dir, work) as checkpoints:
            state, history = loop.run(checkpoints)
    variables = jax.tree.map(np.asarray, fold_batch_norm(state.best))
    logits = predict(network.clone(batch_norm=False), variables, data.test, preprocessing)
    accuracy = float(np.mean(logits.argmax(-1) == data.test.labels))
    best = history[_best_epoch(history)]
    figures = {"test_accuracy": accuracy, "validation_accuracy": best.validation_accuracy}
    weights = Weights(
        variables=variables,
        architecture=recipe.name,
        num_classes=len(data.class_names),
        preprocessing=preprocessing,
        class_names=data.class_names,
        recipe={
            **dataclasses.asdict(recipe),
            "seed": seed,
            "pictures": [len(part.labels) for part in (data.train, data.validation, data.test)],
            "epochs_run": len(history),
        },
        figures={**figures, "test_pictures": len(data.test.labels)},
    )
    return TrainResult(weights, history, accuracy, time.perf_counter() - began)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The host loop."""

    network: LeNet
    recipe: Recipe
    preprocessing: Preprocessing
    data: Data
    seed: int
    progress: Callable[[Progress], None]

    @property
    def steps_per_epoch(self) -> int:
        # A last, smaller batch would be another program; these pictures come next time.
        return len(self.data.train.labels) // self.recipe.batch_size

    @functools.cached_property
    def optimiser(self) -> optax.GradientTransformation:
        rate = optax.warmup_cosine_decay_schedule(
            0.0,
            self.recipe.learning_rate,
            self.recipe.warmup,
            max(self.steps_per_epoch * self.recipe.epochs, self.recipe.warmup + 1),
            self.recipe.learning_rate / 100,
        )
        decayed = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
        return optax.adamw(rate, weight_decay=self.recipe.weight_decay, mask=decayed)

    def first(self) -> State:
        """Return the state before the first step."""
        key = jax.random.fold_in(jax.random.key(self.seed), 0)
        images = jnp.zeros((1, *self.preprocessing.input_shape))
        variables = jax.jit(self.network.init)(key, images)
        optimiser = jax.jit(self.optimiser.init)(variables["params"])
        return State(variables, optimiser, variables, jnp.zeros(2))

    @functools.cached_property
    def step(self) -> Callable[[State, jax.Array, jax.Array, jax.Array], State]:
        """One step: (state, key, pictures, labels) -> state."""

        def loss(params: Any, statistics: Any, inputs: jax.Array, labels: jax.Array) -> Any:
            logits, changed = self.network.apply(
                {"params": params, "batch_stats": statistics},
                inputs,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (changed["batch_stats"], (logits.argmax(-1) == labels).mean())

        @jax.jit
        def step(state: State, key: jax.Array, images: jax.Array, labels: jax.Array) -> State:
            shift, noise = jax.random.split(key)
            images = shifted(shift, images, self.recipe.shift)
            inputs = normalise(images, self.preprocessing)
            inputs = noisy(noise, inputs, self.recipe.noise, self.preprocessing)
            params, statistics = state.variables["params"], state.variables["batch_stats"]
            (value, (statistics, right)), slope = jax.value_and_grad(loss, has_aux=True)(
                params, statistics, inputs, labels
            )
            updates, optimiser = self.optimiser.update(slope, state.optimiser, params)
            params = optax.apply_updates(params, updates)
            variables = {"params": params, "batch_stats": statistics}
            totals = state.totals + jnp.stack([value, right])
            return State(variables, optimiser, state.best, totals)

        return step

    def run(self, checkpoints: Checkpoints | None) -> tuple[State, tuple[Epoch, ...]]:
        """Train to the end; return the last state and the epochs."""
        state, done, history = self.first(), 0, ()
        if checkpoints is not None and (found := checkpoints.resume(state)) is not None:
            done, kept, notes = found
            state = jax.tree.map(jnp.asarray, kept)
            history = tuple(Epoch(*values) for values in notes["history"])
        steps, key = self.steps_per_epoch, jax.random.fold_in(jax.random.key(self.seed), 1)
        total = steps * self.recipe.epochs
        looked, before = done, float(state.totals[0])
        while len(history) < self.recipe.epochs and not self.stalled(history):
            epoch = len(history)
            order = self.order(epoch)
            while done < (epoch + 1) * steps:
                rows = order[done - epoch * steps]
                pictures = jnp.asarray(self.data.train.images[rows])
                labels = jnp.asarray(self.data.train.labels[rows])
                state = self.step(state, jax.random.fold_in(key, done), pictures, labels)
                done += 1
                if done % SYNC == 0 or done == (epoch + 1) * steps:
                    now = float(state.totals[0])
                    loss = (now - before) / (done - looked)
                    looked, before = done, now
                    self.progress(Progress(done, total, loss, history))
                if checkpoints is not None and done % SAVE == 0 and done < (epoch + 1) * steps:
                    checkpoints.save(done, state, {"history": [list(e) for e in history]})
            state, history = self.end_epoch(state, history)
            before = 0.0
            if checkpoints is not None:
                checkpoints.save(done, state, {"history": [list(e) for e in history]})
            self.progress(Progress(done, total, history[-1].loss, history))
        return state, history

    def order(self, epoch: int) -> np.ndarray:
        """Return which pictures each step of an epoch takes, (steps, batch)."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = random.permutation(len(self.data.train.labels))
        return order[: self.steps_per_epoch * self.recipe.batch_size].reshape(
            self.steps_per_epoch, self.recipe.batch_size
        )

    def end_epoch(
        self, state: State, history: tuple[Epoch, ...]
    ) -> tuple[State, tuple[Epoch, ...]]:
        """Look at the validation pictures, and keep the variables if they are the best so far."""
        means = np.asarray(state.totals) / self.steps_per_epoch
        if not np.isfinite(means).all():
            raise ValueError(
                f"the loss is {means[0]} in epoch {len(history) + 1}; expected a finite one: lower "
                f"the learning rate, {self.recipe.learning_rate}"
            )
        validation = self.data.validation
        logits = predict(self.network, state.variables, validation, self.preprocessing)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(logits), jnp.asarray(validation.labels)
        )
        right = np.mean(logits.argmax(-1) == validation.labels)
        epoch = Epoch(float(means[0]), float(means[1]), float(losses.mean()), float(right))
        history = (*history, epoch)
        best = state.variables if _best_epoch(history) == len(history) - 1 else state.best
        return state._replace(best=best, totals=jnp.zeros(2)), history

    def stalled(self, history: tuple[Epoch, ...]) -> bool:
        """Say whether to stop early."""
        return bool(history) and len(history) - 1 - _best_epoch(history) >= self.recipe.patience


def shifted(
    key: jax.Array, images: UInt8[Array, "b h w c"], furthest: int
) -> UInt8[Array, "b h w c"]:
    """Return pictures moved by up to `furthest` pixels along each axis, edges repeated."""
    if furthest == 0:
        return images
    batch, height, width, channels = images.shape
    wide = jnp.pad(images, ((0, 0), (furthest, furthest), (furthest, furthest), (0, 0)), "edge")
    corners = jax.random.randint(key, (batch, 2), 0, 2 * furthest + 1)

    def cut(image: jax.Array, corner: Int[Array, "2"]) -> jax.Array:
        shape = (height, width, channels)
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)

    return jax.vmap(cut)(wide, corners)


def noisy(
    key: jax.Array, inputs: Float[Array, "b h w c"], levels: float, preprocessing: Preprocessing
) -> Float[Array, "b h w c"]:
    """Return inputs with normal noise of so many grey levels of 255."""
    if levels == 0:
        return inputs
    black, white = preprocessing.bounds()
    deviation = jnp.asarray((white - black) * levels / 255).reshape(1, 1, 1, -1)
    return inputs + deviation * jax.random.normal(key, inputs.shape)


def _best_epoch(history: tuple[Epoch, ...]) -> int:
    """The number of the epoch with the most right, or of these that with the least loss."""
    scores = [(-epoch.validation_accuracy, epoch.validation_loss) for epoch in history]
    return scores.index(min(scores))


def _check(data: Data, preprocessing: Preprocessing, recipe: Recipe) -> None:
    classes = len(data.class_names)
    for split, part in zip(Data._fields, data[:3], strict=False):
        shape, labels = part.images.shape, part.labels
        if part.images.dtype != np.uint8 or shape[1:] != preprocessing.input_shape:
            raise ValueError(
                f"{split} pictures are {part.images.dtype} {shape}; "
                f"expected uint8 (n, {', '.join(map(str, preprocessing.input_shape))})"
            )
        if len(labels) != shape[0] or len(labels) == 0:
            raise ValueError(f"{split} has {shape[0]} pictures and {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"{split} has labels {labels.min()} to {labels.max()}; expected 0 to {classes - 1}"
            )
    if recipe.batch_size > len(data.train.labels):
        raise ValueError(
            f"batch_size is {recipe.batch_size}; expected at most the {len(data.train.labels)} "
            f"training pictures"
        )


def _fingerprint(data: Data) -> int:
    """A checksum of all that is learned from."""
    checksum = zlib.crc32("\0".join(data.class_names).encode())
    for part in (data.train, data.validation):
        for array in (part.images, part.labels.astype(np.int64)):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum
