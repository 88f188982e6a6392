"""Fine-tuning: a trained network gets a new head for other classes, and learns them.

Guided Feature Inversion (Du et al. 2018, https://arxiv.org/abs/1804.00506) explains VGG-19 on
PASCAL VOC 2007 after this: its last dense layer is replaced by one of 20 outputs, trained by the
binary cross-entropy of their sigmoids with Adam at 1e-4 and 64 pictures a step, while all other
parameters stay. That is `FineTuning(model="vgg19", data="tfds:voc/2007", head="multilabel",
batch_size=64, learning_rate=1e-4)`; that the learning rate and the weights decay is ours.

What stays is computed once a picture (`jaxplain.training.inputs`), so that a CPU is enough.

Example:
    >>> tuning = FineTuning(model="vgg19", data="folder:flowers", freeze="convolutions")
    >>> tuning.head, tuning.learning_rate
    ('softmax', 0.0001)
"""

import dataclasses
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxplain.checkpoints import Checkpoints
from jaxplain.data import SPLITS
from jaxplain.data.labelled import YES, Data, Pictures, checksum
from jaxplain.model import Model
from jaxplain.models import find_architecture, load_model
from jaxplain.models.weights.store import Weights
from jaxplain.names import unknown
from jaxplain.training.fit import TrainResult
from jaxplain.training.inputs import MEMORY, Store, chunks_of, in_chunks
from jaxplain.training.learners import (
    FREEZE,
    Augmentation,
    Behind,
    Whole,
    cut_of,
    frozen_part,
    with_new_head,
)
from jaxplain.training.loop import Loop, Progress, Schedule, best_epoch
from jaxplain.training.objectives import Objective, check_labels, find_objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Schedule):
    """How to fine-tune a network. It goes into the metadata of the weights.

    How long and how fast is said as in `Schedule`, but a learning rate of 0 stands for 1e-3 where
    the features stay, else for 1e-4.

    Attributes:
        model: a network of `MODELS`.
        data: what is learned: see `open_data`.
        head: "softmax", where each picture has one class, or "multilabel", where it may have
            several or none: a sigmoid each.
        weights: where to begin: as in `load_model`.
        freeze: what stays as it is: "features", all but the last layer, as in the paper;
            "convolutions", all but the dense layers (of VGG, AlexNet and VGG-F; the others have but
            one); "none". Batch norm that stays keeps its statistics.
        image_size: side of the pictures; None for the network's own.
        shift: each training picture is moved by up to so many pixels along each axis.
        flip: half of the training pictures are mirrored.

    Raises:
        ValueError: a value that is none of these.
    """

    model: str
    data: str
    head: str = "softmax"
    weights: str = "imagenet"
    freeze: str = "features"
    image_size: int | None = None
    epochs: int = 100
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 0.0
    warmup: int = 10
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        find_architecture(self.model)
        find_objective(self.head)
        if self.freeze not in FREEZE:
            raise ValueError(unknown("freeze", self.freeze, FREEZE))
        if self.learning_rate == 0:
            object.__setattr__(self, "learning_rate", 1e-3 if self.freeze == "features" else 1e-4)
        super().__post_init__()
        self.check_least(shift=0)


def fine_tune(
    tuning: FineTuning,
    data: Data,
    *,
    weights: Any = None,
    seed: int = 0,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    progress: Callable[[Progress], None] | None = None,
    preparing: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Train a new head for a network, or with it more of the network.

    The same arguments give the same weights, on the same machine, whether or not the run was
    interrupted and gone on with from its checkpoints.

    Args:
        tuning: how.
        data: pictures of any size, and their labels: what `open_data` returns for `tuning.data`.
        weights: where to begin, as `load_model` takes it; None for `tuning.weights`.
        seed: of the head's first weights, the order of the pictures and what is random in a step.
        checkpoint_dir: folder of the checkpoints, and of what the frozen part says of the pictures;
            None to keep neither.
        memory: bytes of that to keep in memory; what is larger goes to a temporary folder.
        progress: called every few steps.
        preparing: called with (done, all) pictures while they are read and the frozen part runs.

    Returns:
        The weights of the best epoch, with the class names, the preprocessing, the recipe and what
        they reach on the test pictures.

    Raises:
        ValueError: labels that do not fit the head, splits that do not show a class, weights that
            do not fit the network, checkpoints of another training, or a loss that is not finite.
        OSError: pictures or weights cannot be read, or checkpoints cannot be written.
    """
    began = time.perf_counter()
    objective = find_objective(tuning.head)
    _check(data, objective)
    source = tuning.weights if weights is None else weights
    loaded = load_model(tuning.model, source, image_size=tuning.image_size)
    model = with_new_head(loaded, len(data.class_names), seed)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    recipe = {**dataclasses.asdict(tuning), "seed": seed, "weights": _named(source)}
    with Store(folder and folder / "inputs", memory) as store:
        work = recipe | {"class_names": list(data.class_names)}
        if folder is not None:
            work["pictures"] = [_fingerprint(part) for part in data[:3]]
            work["parameters"] = _parameters_checksum(loaded)
        learner = _learner(tuning, objective, model, data, store, work, preparing)
        loop = Loop(learner, tuning, seed, progress or (lambda _: None))
        if folder is None:
            state, history = loop.run(None)
        else:
            with Checkpoints(folder, work) as checkpoints:
                state, history = loop.run(checkpoints)
        _, score = learner.judge(state.best, "test")
    figure = objective.figure
    trained = Weights(
        variables=jax.tree.map(np.asarray, learner.merged(state.best)),
        architecture=tuning.model,
        num_classes=len(data.class_names),
        preprocessing=model.preprocessing,
        class_names=data.class_names,
        recipe=recipe
        | {"pictures": [len(part.labels) for part in data[:3]], "epochs_run": len(history)},
        figures={
            f"test_{figure}": score,
            f"validation_{figure}": history[best_epoch(history)].validation_score,
            "test_pictures": len(data.test.labels),
        },
        multilabel=objective.multilabel,
    )
    return TrainResult(trained, history, score, time.perf_counter() - began)


def _learner(
    tuning: FineTuning,
    objective: Objective,
    model: Model,
    data: Data,
    store: Store,
    work: dict[str, Any],
    preparing: Callable[[int, int], None] | None,
) -> Behind | Whole:
    """Prepare the pictures, and return what is to be trained on them."""
    assert model.preprocessing is not None
    preprocessing = model.preprocessing
    augmentation = Augmentation(tuning.shift, tuning.flip, preprocessing)
    if tuning.freeze == "none":
        last, trained, run, made = "pictures", frozenset(), None, preprocessing.input_shape
    else:
        last, trained = cut_of(model, tuning.freeze)
        made, run = frozen_part(model, last)
    parts = dict(zip(SPLITS, data[:3], strict=True))
    total, done = sum(len(part.labels) for part in parts.values()), 0

    def ticked(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            if preparing is not None:
                preparing(done, total)

    inputs = {}
    for split, part in parts.items():
        if run is None or (augmentation and split == "train"):
            # What is changed in each epoch, or wholly trained on, is kept as pictures.
            kind, shape, dtype = "pictures", preprocessing.input_shape, np.dtype(np.uint8)
            chunks = chunks_of(part.images, preprocessing.cut)
        else:
            kind, shape, dtype = last, made, np.dtype(np.float32)
            chunks = in_chunks(run, chunks_of(part.images, preprocessing))
        said = [kind, preprocessing.to_json(), work.get("parameters"), work.get("pictures"), split]
        key = zlib.crc32(repr(said).encode())
        inputs[split] = store.keep(split, key, (len(part.labels), *shape), dtype, ticked(chunks))
    labels = {split: part.labels for split, part in parts.items()}
    if run is None:
        return Whole(model, objective, augmentation, inputs, labels)
    return Behind(model, last, trained, objective, augmentation, inputs, labels)


def _check(data: Data, objective: Objective) -> None:
    """Raise ValueError if the data cannot be learned from."""
    classes = len(data.class_names)
    for split, part in zip(SPLITS, data[:3], strict=True):
        if len(part.labels) != len(part.images) or len(part.labels) == 0:
            raise ValueError(f"{split} has {len(part.images)} pictures, {len(part.labels)} labels")
        check_labels(part.labels, classes, objective, split)
        if objective.multilabel and not (part.labels == YES).any():
            raise ValueError(f"no picture for {split} shows any of the {classes} classes")
    labels = data.train.labels
    shown = (labels == YES).any(0) if objective.multilabel else np.isin(range(classes), labels)
    absent = [name for name, seen in zip(data.class_names, shown, strict=True) if not seen]
    if absent:
        raise ValueError(f"no training picture shows: {', '.join(absent)}")


def _named(weights: Any) -> str:
    """What the recipe says of the weights to begin with: the name, of a file without its folder."""
    if isinstance(weights, str | os.PathLike):
        return Path(weights).name if Path(weights).exists() else str(weights)
    return "a mapping of arrays"


def _fingerprint(part: Pictures) -> int:
    """A checksum of pictures and labels."""
    return zlib.crc32(np.ascontiguousarray(part.labels, np.int64).data, checksum(part.images))


def _parameters_checksum(model: Model) -> int:
    total = 0
    for leaf in jax.tree.leaves(model.params):
        total = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, total)
    return total
