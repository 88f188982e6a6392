"""The flowers as a TensorFlow Datasets builder: on disk, once; TensorFlow itself is not needed.

`build` renders a data set into a folder, and `flowers` reads it, at random and in any number of
processes. The records are array_record files, and `tfds.data_source("an8flower/single_6c", ...)`
reads them as well once this module is imported.

Data lies in the folder that the environment variable JAXPLAIN_DATA names, else in the user's data
folder (`~/.local/share/jaxplain` on Linux), unless a call names another.
"""

import contextlib
import dataclasses
import fcntl
import inspect
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import platformdirs
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from jaxplain.data import SPLITS
from jaxplain.data.an8flower import PARTS, VARIANTS, Flower, find_variant, render, render_many
from jaxplain.names import unknown
from jaxplain.outputs import check_writable

PER_CLASS = (700, 100, 200)
"""Pictures of each class for training, validation and test: 1000 in all."""

_INFO = "dataset_info.json"  # written last: a folder that has it is a data set


@dataclasses.dataclass(eq=False)
class FlowerConfig(tfds.core.BuilderConfig):
    """Which flowers: `render`'s arguments, and how many of each class in each split."""

    variant: str = "single_6c"
    size: int = 112
    seed: int = 0
    per_class: tuple[int, int, int] = PER_CLASS


class An8flower(tfds.core.GeneratorBasedBuilder):
    """Rendered flowers with known evidence, see `jaxplain.data.an8flower`.

    Each example has

    - image: (H, W, 3) uint8, RGB;
    - mask: (H, W, 1) uint8, 255 where the discriminative part is;
    - box: (4,) int32, (y0, x0, y1, x1) of the mask in pixels, y1 and x1 exclusive;
    - label: the class; part: the discriminative part;
    - id: "<split>-<index>", the arguments of `render`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 - as TFDS declares it
    BUILDER_CONFIGS = [  # noqa: RUF012
        FlowerConfig(name=name, variant=name) for name in VARIANTS
    ]

    workers = 1
    progress: Callable[[int, int], None] | None = None

    def _flowers(self) -> FlowerConfig:
        assert isinstance(self.builder_config, FlowerConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._flowers()
        size, features = config.size, tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(An8flower),
            homepage="https://arxiv.org/abs/1712.06302",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(size, size, 3), encoding_format="png"),
                    "mask": features.Image(shape=(size, size, 1), encoding_format="png"),
                    "box": features.Tensor(shape=(4,), dtype=np.int32),
                    "label": features.ClassLabel(names=find_variant(config.variant).class_names),
                    "part": features.ClassLabel(names=PARTS),
                    "id": features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        config = self._flowers()
        counts = _counts(config)
        done = sum(counts[: SPLITS.index(split)])
        indices = range(counts[SPLITS.index(split)])
        rendered = render_many(
            indices,
            variant=config.variant,
            split=split,
            seed=config.seed,
            size=config.size,
            workers=self.workers,
        )
        for index, flower in zip(indices, rendered, strict=True):
            key = f"{split}-{index:06d}"
            yield key, _example(key, flower)
            if self.progress is not None:
                self.progress(done + index + 1, sum(counts))


def _example(key: str, flower: Flower) -> dict[str, Any]:
    return {
        "image": _png(flower.image[..., ::-1]),
        "mask": _png(flower.mask * np.uint8(255)),
        "box": np.array(flower.box, np.int32),
        "label": flower.label,
        "part": flower.part,
        "id": key,
    }


def _png(picture: np.ndarray) -> io.BytesIO:
    """A PNG file in memory of grey or BGR pixels; TFDS itself could only encode with TensorFlow."""
    _, encoded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return io.BytesIO(encoded.tobytes())


def _counts(config: FlowerConfig) -> list[int]:
    """Pictures in each split."""
    classes = len(find_variant(config.variant).class_names)
    return [classes * number for number in config.per_class]


def data_folder() -> Path:
    """The folder for data sets: $JAXPLAIN_DATA, or `jaxplain` in the user's data folder.

    Example:
        >>> data_folder().is_absolute()
        True
    """
    chosen = os.environ.get("JAXPLAIN_DATA")
    return Path(chosen).absolute() if chosen else platformdirs.user_data_path("jaxplain")


def build(
    variant: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    size: int = 112,
    seed: int = 0,
    per_class: tuple[int, int, int] = PER_CLASS,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders a data set to disk, unless it is there already.

    It appears whole or not at all: it is made in a folder beside its own, which is then renamed, or
    removed if the building fails or is interrupted. What a killed process left behind is removed by
    the next. Two that build the same wait for each other, and the second finds it done.

    Args:
        variant: "single_6c" or "double_12c".
        data_dir: where data sets live; `data_folder()` if None.
        size: height and width in pixels.
        seed: another seed is another data set.
        per_class: pictures of each class for training, validation and test.
        workers: how many processes render; the data does not depend on it. With more than one, a
            script needs the usual `if __name__ == "__main__":`.
        progress: called after each picture with how many are done and how many there will be.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: an argument is out of range; or the data set is there but damaged, in which case
            the message says what to delete.
        OSError: the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = build("single_6c", folder, size=32, per_class=(2, 1, 1))
        ...     train = flowers(path, "train")
        ...     print(path.relative_to(folder), len(train), train[0]["image"].shape)
        an8flower/single_6c-32px-seed0-2-1-1/1.0.0 12 (32, 32, 3)
    """
    if min(per_class) < 1:
        raise ValueError(f"per_class must be three numbers of at least 1, got {per_class}")
    # Other bad arguments are found by rendering one picture, before there is a folder.
    render_many([], variant=variant, workers=workers)
    render(0, variant=variant, size=size, seed=seed)
    config = _config(variant, size=size, seed=seed, per_class=per_class)
    folder = data_folder() if data_dir is None else Path(data_dir).absolute()
    name = config if isinstance(config, str) else config.name
    path = folder / An8flower.name / name / str(An8flower.VERSION)
    if not path.exists():
        check_writable(path / _INFO)
    with _alone(path.parent), TemporaryDirectory() as nothing, _quiet():
        if not path.exists():
            builder = An8flower(data_dir=folder, config=config, file_format="array_record")
            builder.workers, builder.progress = workers, progress
            builder.download_and_prepare(download_dir=nothing)
        elif not (path / _INFO).exists():
            raise ValueError(_damaged(path))
    for split in SPLITS:
        flowers(path, split)
    return path


def _config(
    variant: str, *, size: int, seed: int, per_class: tuple[int, int, int]
) -> FlowerConfig | str:
    """The configuration of these arguments, by its name if it is one of the builder's own."""
    if (size, seed, per_class) == (112, 0, PER_CLASS):
        return variant
    counts = "-".join(map(str, per_class))
    return FlowerConfig(
        name=f"{variant}-{size}px-seed{seed}-{counts}",
        variant=variant,
        size=size,
        seed=seed,
        per_class=per_class,
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process builds in `folder`, and clears away what killed ones left."""
    folder.mkdir(parents=True, exist_ok=True)
    # The lock ends with the process that holds it, however that ends; the file may stay.
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for abandoned in folder.glob("incomplete.*"):
            shutil.rmtree(abandoned)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from telling of downloads and of configurations, neither of which concerns us."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


class FlowerSource:
    """The flowers of one split on disk, read at random.

    Each is a dict of image (H, W, 3) uint8, mask (H, W) bool, box (4,) int32 as in `Flower`, label
    int32, part int32 (0 petals, 1 stem) and id, a string.
    """

    def __init__(self, source: Any, class_names: tuple[str, ...]):
        """Wraps a TFDS data source."""
        self._source = source
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return {
            "image": example["image"],
            "mask": example["mask"][..., 0] > 0,
            "box": example["box"],
            "label": np.int32(example["label"]),
            "part": np.int32(example["part"]),
            "id": example["id"].decode(),
        }

    def __repr__(self) -> str:
        return f"FlowerSource({len(self)} pictures of {len(self.class_names)} classes)"


def flowers(path: str | os.PathLike[str], split: str) -> FlowerSource:
    """Opens one split of a data set that `build` made.

    Args:
        path: the folder that `build` returned.
        split: "train", "validation" or "test".

    Returns:
        A sequence of examples, see `FlowerSource`.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: it is damaged, or there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    path = Path(path)
    if not (path / _INFO).is_file():
        raise FileNotFoundError(f"no data set in {str(path)!r}; `jaxplain data build` makes one")
    try:
        for metadata in (_INFO, "features.json"):
            json.loads((path / metadata).read_bytes())  # a cut one; TFDS's own error is protobuf's
        builder: Any = tfds.builder_from_directory(path)
        info = builder.info.splits[split]
        records = sum(_records(file) for file in info.filepaths)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(_damaged(path)) from error
    if records != info.num_examples:  # which TFDS itself would only find on reading
        raise ValueError(_damaged(path))
    names = tuple(builder.info.features["label"].names)
    return FlowerSource(builder.as_data_source(split=split), names)


def _records(file: os.PathLike[str]) -> int:
    """Records in a file; none if it is cut off or missing."""
    reader = ArrayRecordReader(os.fspath(file))
    count = reader.num_records()
    reader.close()
    return count


def _damaged(path: Path) -> str:
    return f"the data set in {str(path)!r} is damaged; delete the folder and build it again"
