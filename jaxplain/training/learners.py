"""What fine-tuning trains: the part of a network behind a layer, or all of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxplain.adapters import LinenApply
from jaxplain.model import Model
from jaxplain.models.network import Network
from jaxplain.preprocessing import Preprocessing
from jaxplain.trace.layers import split
from jaxplain.training.fit import shifted
from jaxplain.training.inputs import CHUNK, in_chunks, pieces
from jaxplain.training.objectives import Objective
from jaxplain.training.predict import normalise

FREEZE = ("features", "convolutions", "none")
SPREAD = 0.01
"""Deviation of the numbers that a new head begins with."""

CONVOLUTIONS_END = "avgpool"
"""The layer that the dense layers of every network of this package read."""

# Vectors that go through the dense layers at once.
_VECTORS = 256


def with_new_head(model: Model, classes: int, seed: int) -> Model:
    """Return a model of this package with another last layer: small random numbers.

    Example:
        >>> from jaxplain.models import load_model
        >>> model = with_new_head(load_model("digits"), 3, seed=0)
        >>> model(jnp.zeros((1, 28, 28, 1))).shape
        (1, 3)
    """
    network = network_of(model)
    old = model.params["params"][network.head]["kernel"]
    key = jax.random.fold_in(jax.random.key(seed), 0)
    head = {
        "kernel": SPREAD * jax.random.normal(key, (old.shape[0], classes)),
        "bias": jnp.zeros(classes),
    }
    params = {**model.params["params"], network.head: head}
    return dataclasses.replace(
        model,
        params={**model.params, "params": params},
        apply=LinenApply(network.clone(num_classes=classes)),
        class_names=(),
    )


def network_of(model: Model) -> Network:
    """Return the network of a model that `load_model` made."""
    assert isinstance(model.apply, LinenApply)
    assert isinstance(model.apply.module, Network)
    return model.apply.module


def cut_of(model: Model, freeze: str) -> tuple[str, frozenset[str]]:
    """Return the last layer that stays, and the names of those that are trained.

    Example:
        >>> from jaxplain.models import outline
        >>> cut_of(outline("vgg11"), "features")
        ('fc7', frozenset({'logits'}))
        >>> last, trained = cut_of(outline("vgg11"), "convolutions")
        >>> last, sorted(trained)
        ('avgpool', ['fc6', 'fc7', 'logits'])
    """
    head, params = network_of(model).head, model.params["params"]
    names = [layer.name for layer in model.layers()]
    if freeze == "features":
        return names[names.index(head) - 1], frozenset({head})
    dense = (
        name for name, layer in params.items() if "kernel" in layer and layer["kernel"].ndim == 2
    )
    return CONVOLUTIONS_END, frozenset(dense)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are changed, anew in each epoch: see `FineTuning`."""

    shift: int
    flip: bool
    preprocessing: Preprocessing

    def __bool__(self) -> bool:
        return self.flip or self.shift > 0

    def __call__(self, key: jax.Array, images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the network's inputs of changed pictures."""
        moved, mirrored = jax.random.split(key)
        images = shifted(moved, images, self.shift)
        if self.flip:
            chosen = jax.random.bernoulli(mirrored, 0.5, (len(images), 1, 1, 1))
            images = jnp.where(chosen, images[:, :, ::-1], images)
        return normalise(images, self.preprocessing)


@dataclasses.dataclass(frozen=True)
class _Training:
    """A network in training, as the `apply` of a model: it drops units, and needs a key for it."""

    network: Network

    def __call__(self, params: Mapping[str, Any], images: jax.Array) -> jax.Array:
        rngs = {"dropout": params["key"]}
        logits, _ = self.network.apply(
            params["variables"], images, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return logits


@dataclasses.dataclass(frozen=True)
class Behind:
    """The part of a network behind a layer, which is all that is trained.

    Attributes:
        model: the network with its new head.
        last: the last layer that stays.
        trained: names of the layers that do not.
        objective: of the head.
        augmentation: of the training pictures; if there is any, they are kept as pictures.
        inputs: split -> what `last` is for each picture; or the pictures.
        labels: split -> their labels.
    """

    model: Model
    last: str
    trained: frozenset[str]
    objective: Objective
    augmentation: Augmentation
    inputs: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.labels["train"])

    @functools.cached_property
    def frozen(self) -> dict[str, Any]:
        """The variables that stay."""
        params = self.model.params["params"]
        return {
            **self.model.params,
            "params": {name: layer for name, layer in params.items() if name not in self.trained},
        }

    def first(self) -> dict[str, Any]:
        """Return the variables that do not, before the first step."""
        params = self.model.params["params"]
        return {"params": {name: params[name] for name in sorted(self.trained)}, "batch_stats": {}}

    def merged(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables of the whole network."""
        return _merged(variables["params"], self.frozen)

    def fetch(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Return the inputs and labels of some of the training pictures."""
        return jnp.asarray(self.inputs["train"][rows]), jnp.asarray(self.labels["train"][rows])

    @functools.cached_property
    def _halves(self) -> tuple[Model, Model]:
        return split(self.model, self.last)

    @functools.cached_property
    def _suffix_in_training(self) -> Model:
        params = {"variables": self.model.params, "key": jax.random.key(0)}
        whole = Model.from_function(
            _Training(network_of(self.model)), params, input_shape=self.model.input_shape
        )
        return split(whole, self.last)[1]

    def loss(
        self, params: Any, statistics: Any, frozen: Any, inputs: Any, labels: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """Return the loss of a batch, and (statistics, share of right answers)."""
        drop, change = jax.random.split(key)
        variables = _merged(params, frozen)
        if self.augmentation:
            inputs = self._halves[0].apply(variables, self.augmentation(change, inputs))
        logits = self._suffix_in_training.apply({"variables": variables, "key": drop}, inputs)
        right = self.objective.right(logits, labels)
        return self.objective.loss(logits, labels), (statistics, right)

    @functools.cached_property
    def _logits(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda p, frozen, x: self._halves[1].apply(_merged(p, frozen), x))

    def measure(self, variables: Any) -> tuple[float, float]:
        """Return the loss and the score of the validation pictures."""
        return self.judge(variables, "validation")

    def judge(self, variables: Any, part: str) -> tuple[float, float]:
        """Return the loss and the score of the pictures of a split other than the first."""
        inputs = self.inputs[part]
        chunk = min(_VECTORS, len(inputs))
        run = functools.partial(self._logits, variables["params"], self.frozen)
        logits = np.concatenate(list(in_chunks(run, pieces(inputs, chunk), chunk)))
        return _judged(self.objective, logits, self.labels[part])


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of a network.

    Attributes:
        model: the network with its new head.
        objective: of the head.
        augmentation: of the training pictures.
        inputs: split -> pictures of the network's size, uint8.
        labels: split -> their labels.
    """

    model: Model
    objective: Objective
    augmentation: Augmentation
    inputs: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    frozen: Any = None

    def __len__(self) -> int:
        return len(self.labels["train"])

    def first(self) -> dict[str, Any]:
        """Return the variables before the first step."""
        return {"batch_stats": {}, **self.model.params}

    def merged(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables of the whole network."""
        return {kind: variables[kind] for kind in self.model.params}

    def fetch(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Return some of the training pictures and labels."""
        return jnp.asarray(self.inputs["train"][rows]), jnp.asarray(self.labels["train"][rows])

    def loss(
        self, params: Any, statistics: Any, frozen: Any, inputs: Any, labels: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """Return the loss of a batch, and (new statistics, share of right answers)."""
        del frozen
        drop, change = jax.random.split(key)
        logits, changed = network_of(self.model).apply(
            {"params": params, "batch_stats": statistics},
            self.augmentation(change, inputs),
            train=True,
            rngs={"dropout": drop},
            mutable=["batch_stats"],
        )
        right = self.objective.right(logits, labels)
        statistics = changed.get("batch_stats", statistics)
        return self.objective.loss(logits, labels), (statistics, right)

    @functools.cached_property
    def _logits(self) -> Callable[..., jax.Array]:
        preprocessing = self.augmentation.preprocessing
        return jax.jit(lambda v, images: self.model.apply(v, normalise(images, preprocessing)))

    def measure(self, variables: Any) -> tuple[float, float]:
        """Return the loss and the score of the validation pictures."""
        return self.judge(variables, "validation")

    def judge(self, variables: Any, part: str) -> tuple[float, float]:
        """Return the loss and the score of the pictures of a split."""
        run = functools.partial(self._logits, self.merged(variables))
        chunks = in_chunks(run, pieces(self.inputs[part], CHUNK))
        return _judged(self.objective, np.concatenate(list(chunks)), self.labels[part])


def _merged(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    return {**frozen, "params": {**frozen["params"], **trained}}


def _judged(objective: Objective, logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    loss = objective.loss(jnp.asarray(logits), jnp.asarray(labels))
    return float(loss), objective.score(logits, labels)


def frozen_part(model: Model, last: str) -> tuple[tuple[int, ...], Callable[[Any], jax.Array]]:
    """Return the shape of a layer, and a function from inputs of the network to it, in inference.

    Example:
        >>> from jaxplain.models import load_model
        >>> frozen_part(load_model("digits"), "avgpool")[0]
        (500,)
    """
    prefix, _ = split(model, last)
    run = functools.partial(jax.jit(prefix.apply), model.params)
    one = jax.ShapeDtypeStruct((1, *(model.input_shape or ())), jnp.float32)
    return jax.eval_shape(run, one).shape[1:], run
