"""Training of a masking network for a frozen classifier: `jaxplain.methods.masker`.

The masks explain what the classifier says, so its own answers are what is asked for, and pictures
need no labels. A recipe for ImageNet is in docs/scaling.md.
"""

import dataclasses
import functools
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.checkpoints import Checkpoints
from jaxplain.data import SPLITS
from jaxplain.data.labelled import Data, PictureSource, checksum
from jaxplain.methods.fingerprint import fingerprint
from jaxplain.methods.masker import (
    Masker,
    Weights,
    apply_masker,
    first,
    masking_loss,
    others,
    terms,
    under,
)
from jaxplain.methods.masker.losses import DEFAULT
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing
from jaxplain.scores import score_fn
from jaxplain.trace import capture
from jaxplain.training.inputs import MEMORY, Store, chunks_of
from jaxplain.training.loop import Epoch, Loop, Progress, Schedule
from jaxplain.training.predict import normalise

_MEASURED = 64
"""Pictures that are measured together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskerRecipe(Schedule):
    """How to train a masking network; it goes into the metadata of the masker.

    How long and how fast is said as in `Schedule`.

    Attributes:
        absent: share of the pictures that are asked for a class they do not show.
        blurred: share of the pictures that are blurred where the mask is closed; others show a
            colour near grey. Where colour is what decides, a blur hides little: then 0.
        sigma: of the blur, as a share of the picture's shorter side.
        weights: of the loss.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int = 8
    patience: int = 4
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: int = 20
    absent: float = 0.3
    blurred: float = 0.5
    sigma: float = 0.1
    weights: Weights = DEFAULT

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("absent", "blurred"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        self.check_above_zero("sigma")


class MaskerResult(NamedTuple):
    """A trained masker.

    Attributes:
        masker: ready for `masker.save`; the recipe and the figures are in it.
        history: its epochs; accuracy is the share of pictures that the classifier still recognises
            under their masks, and the score of the validation pictures the negative loss.
        figures: means over the test pictures: the area of the masks, the probability of the class
            in what they show and in what they leave, and the loss.
        seconds: of this run, without what was resumed.
    """

    masker: Masker
    history: tuple[Epoch, ...]
    figures: dict[str, float]
    seconds: float


def train_masker(
    model: Model,
    data: Data,
    recipe: MaskerRecipe,
    *,
    source: str = "own pictures",
    seed: int = 0,
    checkpoint_dir: str | Path | None = None,
    memory: int = MEMORY,
    progress: Callable[[Progress], None] | None = None,
) -> MaskerResult:
    """Train a masking network for a classifier, which stays as it is.

    The same arguments give the same masker, on the same machine, whether or not the run was
    interrupted and gone on with from its checkpoints.

    Args:
        model: the classifier, with preprocessing.
        data: pictures; their labels are not looked at.
        recipe: how.
        source: what the masker's metadata call the pictures.
        seed: of the first parameters, the order of the pictures and what is random in a step.
        checkpoint_dir: folder of the checkpoints, and of the pictures at the network's size; None
            to keep neither.
        memory: bytes of pictures to keep in memory; what is larger goes to a temporary folder.
        progress: called every few steps.

    Returns:
        The masker of the best epoch.

    Raises:
        ValueError: a model that no masking network can read, no pictures in a split, checkpoints of
            another training, or a loss that is not finite any more.
        OSError: the checkpoints cannot be written.
    """
    began = time.perf_counter()
    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read pictures")
    for name, part in zip(SPLITS, data[:3], strict=True):
        if len(part.images) == 0:
            raise ValueError(f"data have no pictures in the split {name!r}; expected some")
    told = {
        **dataclasses.asdict(recipe),
        "weights": recipe.weights._asdict(),
        "data": source,
        "seed": seed,
        "pictures": [len(part.images) for part in data[:3]],
    }
    begun = first(model, jax.random.key(seed))
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with Store(folder and folder / "inputs", memory) as store:
        images = [
            _kept(store, name, model.preprocessing, part.images)
            for name, part in zip(SPLITS, data[:3], strict=True)
        ]
        learner = _Masking(model, begun, recipe, images)
        loop = Loop(learner, recipe, seed, progress or (lambda _: None))
        if folder is None:
            state, history = loop.run(None)
        else:
            sums = [checksum(part.images) for part in data[:3]]
            work = {**told, "model": model.name, "parameters": fingerprint(model), "images": sums}
            with Checkpoints(folder, work) as checkpoints:
                state, history = loop.run(checkpoints)
        params = jax.tree.map(np.asarray, state.best["params"])
        figures = learner.figures(params, 2)
    told |= {"epochs_run": len(history), "figures": figures}
    trained = dataclasses.replace(begun, params=params, recipe=json.dumps(told))
    return MaskerResult(trained, history, figures, time.perf_counter() - began)


def _kept(
    store: Store, name: str, preprocessing: Preprocessing, images: PictureSource
) -> np.ndarray:
    """A split's pictures as the network takes them, uint8."""
    key = zlib.crc32(f"{preprocessing.to_json()} {checksum(images)}".encode())
    shape = (len(images), *preprocessing.input_shape)
    return store.keep(name, key, shape, np.dtype(np.uint8), chunks_of(images, preprocessing.cut))


class _Answers(NamedTuple):
    """What becomes of a batch of pictures.

    Attributes:
        masks: (B, H, W).
        presence: (B,) log odds of the class, as the feature filter has them.
        kept: (B, classes) logits of what the masks show.
        left: (B, classes) logits of what they leave.
    """

    masks: jax.Array
    presence: jax.Array
    kept: jax.Array
    left: jax.Array


@dataclasses.dataclass(frozen=True)
class _Masking:
    """What the loop trains: a masking network, the classifier frozen.

    Attributes:
        model: the classifier.
        begun: the masker before the first step.
        recipe: how.
        images: uint8 pictures to learn, choose and test by.
    """

    model: Model
    begun: Masker
    recipe: MaskerRecipe
    images: list[np.ndarray]

    @property
    def frozen(self) -> Model:
        return self.model

    def __len__(self) -> int:
        return len(self.images[0])

    def first(self) -> dict[str, Any]:
        """Return the variables before the first step."""
        return {"params": self.begun.params, "batch_stats": {}}

    def fetch(self, rows: np.ndarray) -> tuple[jax.Array, tuple[()]]:
        """Return some of the training pictures, which need no labels."""
        return jnp.asarray(self.images[0][rows]), ()

    def loss(
        self, params: Any, statistics: Any, frozen: Model, inputs: Any, labels: Any, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """Return the loss of a batch, and (statistics, share recognised under their mask)."""
        del labels
        images = self._read(frozen, inputs)
        which, where, fill = jax.random.split(key, 3)
        said = frozen(images).argmax(-1)
        classes = self.begun.classes
        step = jax.random.randint(where, said.shape, 1, max(classes, 2))
        absent = jax.random.bernoulli(which, self.recipe.absent, said.shape)
        asked = jnp.where(absent, (said + step) % classes, said)
        answers = self._answers(params, frozen, images, asked, fill)
        losses, _, _ = self._losses(answers, asked, said)
        shown = asked == said
        right = ((answers.kept.argmax(-1) == said) & shown).sum() / jnp.maximum(shown.sum(), 1)
        return losses.mean(), (statistics, right)

    def _read(self, model: Model, inputs: jax.Array) -> jax.Array:
        assert model.preprocessing is not None
        return normalise(inputs, model.preprocessing)

    def _answers(
        self, params: Any, frozen: Model, images: jax.Array, asked: jax.Array, key: jax.Array
    ) -> _Answers:
        assert frozen.preprocessing is not None
        size = (images.shape[1], images.shape[2])
        found = capture(frozen, images, self.begun.layers)
        features = [found[layer] for layer in self.begun.layers]
        masks, presence = apply_masker(self.begun.network, params, features, asked, size)
        black, white = (jnp.asarray(bound) for bound in frozen.preprocessing.bounds())
        other = others(
            images,
            key,
            low=black,
            high=white,
            blurred=self.recipe.blurred,
            sigma=self.recipe.sigma * min(size),
        )
        both = [under(images, masks, other), under(images, 1 - masks, other)]
        kept, left = jnp.split(frozen(jnp.concatenate(both)), 2)
        return _Answers(masks, presence, kept, left)

    def _losses(
        self, answers: _Answers, asked: jax.Array, said: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The loss of each picture, and the log probability of its class in both halves."""
        measure = score_fn("log_probability", multilabel=self.model.multilabel)
        kept, left = measure(answers.kept, asked), measure(answers.left, asked)
        weights = self.recipe.weights
        found = terms(answers.masks, answers.presence, kept, left, weights.power)
        return masking_loss(found, asked == said, weights), kept, left

    @functools.cached_property
    def _measured(self) -> Callable[..., dict[str, jax.Array]]:
        @jax.jit
        def run(params: Any, frozen: Model, inputs: Any) -> dict[str, jax.Array]:
            images = self._read(frozen, inputs)
            said = frozen(images).argmax(-1)
            # The same colours for every epoch: what changes is the masks.
            answers = self._answers(params, frozen, images, said, jax.random.key(0))
            losses, kept, left = self._losses(answers, said, said)
            return {
                "loss": losses,
                "area": answers.masks.mean((1, 2)),
                "preserved": jnp.exp(kept),
                "destroyed": jnp.exp(left),
            }

        return run

    def figures(self, params: Any, part: int) -> dict[str, float]:
        """Return means over the pictures of a split."""
        images = self.images[part]
        size = min(_MEASURED, len(images))
        sums: dict[str, float] = {}
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            kept = min(size, len(images) - start)
            found = self._measured(params, self.model, jnp.asarray(images[rows]))
            for name, values in found.items():
                sums[name] = sums.get(name, 0.0) + float(np.asarray(values)[:kept].sum())
        return {name: total / len(images) for name, total in sums.items()}

    def measure(self, variables: Any) -> tuple[float, float]:
        """Return the loss of the validation pictures, and its negative: less is better."""
        loss = self.figures(variables["params"], 1)["loss"]
        return loss, -loss
