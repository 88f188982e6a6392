"""Training of the networks that ship with the package, from the beginning.

Convolutions are trained with batch norm, which is then folded into them: the network that comes out
has none, and is the same function. The loop is that of `jaxplain.training.loop`.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxplain.checkpoints import Checkpoints
from jaxplain.data.labelled import Data
from jaxplain.models import find_architecture, load_model
from jaxplain.models.lenet import LeNet, fold_batch_norm
from jaxplain.models.weights.store import Weights
from jaxplain.preprocessing import Preprocessing
from jaxplain.training.evidence import find_evidence
from jaxplain.training.loop import Epoch, Loop, Progress, best_epoch
from jaxplain.training.objectives import OBJECTIVES, check_labels
from jaxplain.training.predict import normalise, predict
from jaxplain.training.recipes import Recipe, find_recipe, load_data

_OBJECTIVE = OBJECTIVES["softmax"]


class TrainResult(NamedTuple):
    """A trained network.

    Attributes:
        weights: ready for `save`; recipe and accuracy are in it.
        history: its epochs.
        score: of the test pictures: the share that is right, or the mean average precision where
            pictures have several classes.
        seconds: of this run, without what was resumed.
    """

    weights: Weights
    history: tuple[Epoch, ...]
    score: float
    seconds: float


def train(
    name: str,
    *,
    data: Data | None = None,
    source: str = "own pictures",
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
        source: what the weights' metadata call them.
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
    if data is None:
        own = load_data(recipe)
    else:
        own, recipe = data, dataclasses.replace(recipe, data=source)
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
    learner = _Whole(network, recipe, preprocessing, data, seed)
    loop = Loop(learner, recipe, seed, progress or (lambda _: None))
    if checkpoint_dir is None:
        state, history = loop.run(None)
    else:
        work = {**dataclasses.asdict(recipe), "seed": seed, "pictures": _fingerprint(data)}
        with Checkpoints(checkpoint_dir, work) as checkpoints:
            state, history = loop.run(checkpoints)
    variables = jax.tree.map(np.asarray, fold_batch_norm(state.best))
    logits = predict(network.clone(batch_norm=False), variables, data.test, preprocessing)
    accuracy = _OBJECTIVE.score(logits, data.test.labels)
    best = history[best_epoch(history)]
    figures = {"test_accuracy": accuracy, "validation_accuracy": best.validation_score}
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
class _Whole:
    """A network with batch norm, all of which is trained."""

    network: LeNet
    recipe: Recipe
    preprocessing: Preprocessing
    data: Data
    seed: int
    frozen: Any = None

    def __len__(self) -> int:
        return len(self.data.train.labels)

    def first(self) -> dict[str, Any]:
        """Return random variables."""
        key = jax.random.fold_in(jax.random.key(self.seed), 0)
        return dict(
            jax.jit(self.network.init)(key, jnp.zeros((1, *self.preprocessing.input_shape)))
        )

    def fetch(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Return some of the pictures and labels."""
        images: Any = self.data.train.images
        return jnp.asarray(images[rows]), jnp.asarray(self.data.train.labels[rows])

    def loss(
        self, params: Any, statistics: Any, frozen: Any, inputs: Any, labels: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """Return the loss of moved, noisy pictures, and (statistics, share that is right)."""
        del frozen
        shift, noise = jax.random.split(key)
        inputs = normalise(shifted(shift, inputs, self.recipe.shift), self.preprocessing)
        inputs = noisy(noise, inputs, self.recipe.noise, self.preprocessing)
        logits, changed = self.network.apply(
            {"params": params, "batch_stats": statistics},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        right = _OBJECTIVE.right(logits, labels)
        return _OBJECTIVE.loss(logits, labels), (changed["batch_stats"], right)

    def measure(self, variables: Any) -> tuple[float, float]:
        """Return loss and accuracy of the validation pictures."""
        validation = self.data.validation
        logits = predict(self.network, variables, validation, self.preprocessing)
        loss = _OBJECTIVE.loss(jnp.asarray(logits), jnp.asarray(validation.labels))
        return float(loss), _OBJECTIVE.score(logits, validation.labels)


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


def _check(data: Data, preprocessing: Preprocessing, recipe: Recipe) -> None:
    classes = len(data.class_names)
    for split, part in zip(Data._fields, data[:3], strict=False):
        images, labels = np.asarray(part.images), part.labels
        shape = images.shape
        if images.dtype != np.uint8 or shape[1:] != preprocessing.input_shape:
            raise ValueError(
                f"{split} pictures are {images.dtype} {shape}; "
                f"expected uint8 (n, {', '.join(map(str, preprocessing.input_shape))})"
            )
        if len(labels) != shape[0] or len(labels) == 0:
            raise ValueError(f"{split} has {shape[0]} pictures and {len(labels)} labels")
        check_labels(labels, classes, _OBJECTIVE, split)
    if recipe.batch_size > len(data.train.labels):
        raise ValueError(
            f"batch_size is {recipe.batch_size}; expected at most the {len(data.train.labels)} "
            f"training pictures"
        )


def _fingerprint(data: Data) -> int:
    """A checksum of all that is learned from."""
    checksum = zlib.crc32("\0".join(data.class_names).encode())
    for part in (data.train, data.validation):
        for array in (np.asarray(part.images), part.labels.astype(np.int64)):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum
