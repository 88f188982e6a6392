"""Data sets that TensorFlow Datasets has prepared on disk, such as PASCAL VOC 2007, to train on.

TensorFlow is not needed, and nothing is downloaded: the data set lies in the folder that the
environment variable TFDS_DATA_DIR names, else in `~/tensorflow_datasets`, as array_record files
(`file_format="array_record"`), which can be read at random.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from tensorflow_datasets.core.read_only_builder import builder_from_files

from jaxplain.data import SPLITS
from jaxplain.data.labelled import (
    NO,
    TEST,
    UNCOUNTED,
    VALIDATION,
    YES,
    Chosen,
    Data,
    Pictures,
    single,
    split_rows,
)

FOLDER_VARIABLE = "TFDS_DATA_DIR"
IMAGE = "image"


@dataclasses.dataclass(frozen=True)
class PreparedPictures:
    """The pictures of one split of a data set.

    Attributes:
        source: its examples, a TFDS data source.
        name: of the data set, its version and the split.
    """

    source: Any
    name: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Read one: uint8 (h, w, c)."""
        return self.source[index][IMAGE]

    def checksum(self, start: int) -> int:
        """Return `start` continued over the name: a version of a data set never changes."""
        return zlib.crc32(f"{self.name}, {len(self)} pictures".encode(), start)


def read_prepared(
    name: str,
    *,
    multilabel: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Data:
    """Return the pictures and labels of a prepared data set; pictures are read when used.

    Labels are the feature "label"; where there is none, "labels", or those of "objects". Classes of
    "labels" that are not in "labels_no_difficult", and classes all of whose objects are difficult,
    count for nothing, as in the VOC challenge (Everingham et al. 2010,
    https://doi.org/10.1007/s11263-009-0275-4).

    Args:
        name: as TFDS calls it, such as "voc/2007".
        multilabel: a picture may have several classes, or none; otherwise exactly one.
        data_dir: where data sets live; None for TFDS's own choice.
        seed: of sharing out where there is no split for validation or test.

    Raises:
        FileNotFoundError: it has not been prepared there.
        ValueError: it has no pictures, labels or classes with names, it cannot be read at random,
            or pictures have several classes and not `multilabel`.
    """
    builder = find_prepared(name, data_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict) or IMAGE not in features:
        raise ValueError(f"data set {name!r} has no feature {IMAGE!r}")
    names = _class_names(name, features)
    parts = {
        split: _labelled(builder, split, len(names))
        for split in SPLITS
        if split in builder.info.splits
    }
    if "train" not in parts:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"data set {name!r} has no split 'train'; it has {known}")
    missing = {
        split: 0.0 if split in parts else share
        for split, share in (("validation", VALIDATION), ("test", TEST))
    }
    train = parts["train"]
    rows = split_rows(train.labels, **missing, seed=seed)
    for split in ("train", *(split for split, share in missing.items() if share)):
        parts[split] = Pictures(Chosen(train.images, rows[split]), train.labels[rows[split]])
    if not multilabel:
        parts = {split: Pictures(p.images, single(p.labels)) for split, p in parts.items()}
    return Data(parts["train"], parts["validation"], parts["test"], names)


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """Return TFDS's builder of a prepared data set.

    Args:
        name: as TFDS calls it.
        data_dir: as in `read_prepared`.

    Raises:
        FileNotFoundError: it has not been prepared there.
    """
    folder = data_dir or os.environ.get(FOLDER_VARIABLE)
    options = {} if folder is None else {"data_dir": os.fspath(folder)}
    try:
        return builder_from_files(name, **options)
    except tfds.core.DatasetNotFoundError as error:
        where = folder or "~/tensorflow_datasets"
        raise FileNotFoundError(
            f"data set {name!r} is not in {str(where)!r}; prepare it there with "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare(), or name "
            f"its folder in ${FOLDER_VARIABLE}"
        ) from error


def read_at_random(builder: Any, split: str) -> tuple[Any, Any]:
    """Return the examples of a split by number, and the same with pictures left undecoded.

    Raises:
        ValueError: it was prepared in files that cannot be read at random.
    """
    try:
        source = builder.as_data_source(split=split)
        undecoded = {IMAGE: tfds.decode.SkipDecoding()}
        return source, builder.as_data_source(split=split, decoders=undecoded)
    except NotImplementedError as error:
        raise ValueError(
            f"data set {builder.info.full_name!r} cannot be read at random ({error}); prepare it "
            f"with file_format='array_record'"
        ) from error


def _class_names(name: str, features: Any) -> tuple[str, ...]:
    for candidate in (
        lambda: features["label"],
        lambda: features["labels"].feature,
        lambda: features["objects"].feature["label"],
    ):
        try:
            return tuple(candidate().names)
        except (KeyError, AttributeError, TypeError):
            continue
    raise ValueError(
        f"data set {name!r} has no classes with names; expected a feature label, labels or objects"
    )


def _labelled(builder: Any, split: str, classes: int) -> Pictures:
    """One split: pictures still to be read, and labels (n, classes)."""
    name = f"{builder.info.full_name} {split}"
    source, examples = read_at_random(builder, split)
    read = functools.partial(_labels, classes=classes)
    labels = np.stack([read(examples[index]) for index in range(len(examples))])
    return Pictures(PreparedPictures(source, name), labels)


def _labels(example: Mapping[str, Any], classes: int) -> Int[np.ndarray, " classes"]:
    """The labels of one example: 1, 0 or -1 a class."""
    if "label" in example:
        present = sure = np.atleast_1d(example["label"])
    elif "labels" in example:
        present = np.asarray(example["labels"])
        sure = np.asarray(example.get("labels_no_difficult", present))
    else:
        objects = example["objects"]
        present = np.asarray(objects["label"])
        difficult = np.asarray(objects.get("is_difficult", np.zeros(len(present))), bool)
        sure = present[~difficult]
    labels = np.full(classes, NO, np.int8)
    labels[present.astype(int)] = UNCOUNTED
    labels[sure.astype(int)] = YES
    return labels
