"""ILSVRC 2012's validation pictures with their boxes, for weakly supervised localisation.

The pictures come from TensorFlow Datasets (`imagenet2012`, prepared on disk as array_record files);
it has no boxes, so they are read from the challenge's own folder of annotations, `CLS-LOC/val`, one
XML file a picture, matched by `file_name`.
"""

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxplain.preprocessing import Preprocessing

LARGEST = 1_000_000
"""Bytes of an annotation: more than any has, and too few for a file to fill the memory."""


class Example(NamedTuple):
    """A picture and where its class is.

    Attributes:
        picture: (h, w, 3) uint8.
        label: class, in the order of the synsets' names, which is torchvision's, too.
        boxes: (M, 4) of the class: top, left, bottom, right in pixels of the picture, bottom and
            right exclusive.
        name: of the file.
    """

    picture: np.ndarray
    label: int
    boxes: Int[np.ndarray, "m 4"]
    name: str


@dataclasses.dataclass(frozen=True)
class Ilsvrc:
    """Validation pictures with boxes, in the data set's order.

    Attributes:
        source: examples with "image", "label" and "file_name", such as
            `tfds.data_source("imagenet2012", split="validation")`.
        annotations: the folder that holds `ILSVRC2012_val_00000001.xml` and the others.
        synsets: name of each class (`n01440764`, …), in the order of the labels.

    Example:
        >>> import tempfile
        >>> example = {"image": np.zeros((9, 9, 3), np.uint8), "label": 0, "file_name": "a.JPEG"}
        >>> text = '''<annotation><object><name>n01</name><bndbox><xmin>1</xmin><ymin>2</ymin>
        ... <xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>'''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.xml").write_text(text)
        ...     Ilsvrc([example], Path(folder), ("n01",))[0].boxes.tolist()
        [[2, 1, 5, 4]]
    """

    source: Sequence[Any]
    annotations: Path
    synsets: Sequence[str]

    def __post_init__(self) -> None:
        if not Path(self.annotations).is_dir():
            raise FileNotFoundError(f"annotations={str(self.annotations)!r} is no folder")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Example:
        """Read one.

        Raises:
            FileNotFoundError: it has no annotation.
            ValueError: the annotation cannot be read, or has no box of the picture's class.
        """
        found = self.source[index]
        name, label = found["file_name"], int(found["label"])
        if isinstance(name, bytes):
            name = name.decode()
        # The last part alone, so that no name leads out of the folder.
        path = Path(self.annotations) / f"{PurePosixPath(name).stem}.xml"
        return Example(found["image"], label, read_boxes(path, self.synsets[label]), name)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))


def read_boxes(path: Path, synset: str) -> Int[np.ndarray, "m 4"]:
    """Return the boxes of a class in an annotation of ILSVRC.

    The file's coordinates are those of the first and last pixel inside.

    Args:
        path: of the XML file.
        synset: name of the class, such as "n01440764".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or has no box of the class.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has more than {LARGEST} bytes: this is no annotation")
    try:
        # Python's parser loads nothing from outside, and refuses entities that explode.
        objects = ET.parse(path).getroot().findall("object")  # noqa: S314
        boxes = [
            [
                int(float(_text(found, f"bndbox/{side}")))
                for side in ("ymin", "xmin", "ymax", "xmax")
            ]
            for found in objects
            if _text(found, "name") == synset
        ]
    except (ET.ParseError, ValueError, OverflowError) as error:
        raise ValueError(f"{path.name} is no annotation of ILSVRC: {error}") from None
    if not boxes:
        raise ValueError(f"{path.name} has no box of {synset}")
    corners = np.array(boxes, np.int32)
    corners[:, 2:] += 1
    return corners


def _text(element: ET.Element, place: str) -> str:
    found = element.findtext(place)
    if found is None:
        raise ValueError(f"{place} is missing")
    return found.strip()


def seen_boxes(
    boxes: Int[np.ndarray, "m 4"], picture_hw: tuple[int, int], preprocessing: Preprocessing
) -> Float[np.ndarray, "m 4"]:
    """Return boxes of a picture in pixels of the network's input, where heat maps are.

    What lies outside the network's crop stays: it counts as missed.

    Args:
        boxes: (M, 4) in pixels of the picture.
        picture_hw: (height, width) of the picture.
        preprocessing: how the network takes pictures.

    Example:
        >>> half = Preprocessing((50, 50), (0.5,) * 3, (0.5,) * 3)
        >>> seen_boxes(np.array([[0, 20, 100, 60]]), (100, 200), half).tolist()
        [[0.0, 5.0, 50.0, 15.0]]
    """
    top, left, height, width = preprocessing.region(picture_hw)
    scale = np.array([preprocessing.size[0] / height, preprocessing.size[1] / width] * 2)
    return (boxes - np.array([top, left] * 2)) * scale
