"""ILSVRC 2012's validation pictures with their boxes, for weakly supervised localisation.

The pictures come from TensorFlow Datasets (`imagenet2012`, prepared on disk as array_record files)
or are the challenge's own files in a folder. Boxes are in neither: they are read from the
challenge's folder of annotations, `Annotations/CLS-LOC/val`, one XML file a picture of that name.
"""

import dataclasses
import functools
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jaxplain.names import unknown
from jaxplain.preprocessing import Preprocessing

LARGEST = 1_000_000
"""Bytes of an annotation: more than any has, and too few for a file to fill the memory."""

SUFFIXES = frozenset((".jpeg", ".jpg", ".png"))
PREPARED, FOLDER = "tfds:", "folder:"
SPLIT = "validation"

_SYNSET = re.compile(r"n\d{8}")


@runtime_checkable
class Examples(Protocol):
    """Examples by number: mappings, as TFDS's data sources give them."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """One of them."""
        ...


class Entry(NamedTuple):
    """What is known of a picture besides its pixels.

    Attributes:
        name: of its file.
        label: class, in the order of the synsets.
        boxes: (M, 4) of the class: top, left, bottom, right in pixels of the picture, bottom and
            right exclusive.
    """

    name: str
    label: int
    boxes: Int[np.ndarray, "m 4"]


class Example(NamedTuple):
    """A picture and where its class is.

    Attributes:
        picture: (h, w, 3) uint8.
        label: class, in the order of the synsets.
        boxes: as in `Entry`.
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
        source: examples with "image" and "file_name", such as
            `tfds.data_source("imagenet2012", split="validation")`; and with "label", or with
            "synset", or with neither if their annotations name one synset alone.
        annotations: the folder that holds `ILSVRC2012_val_00000001.xml` and the others.
        synsets: name of each class (`n01440764`, …), in the network's order.
        names: synset of each label of the source; None where labels are in the order of `synsets`.
        undecoded: the same examples, whose "image" nobody reads; None for `source` itself.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a synset is named twice.

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

    source: Examples
    annotations: Path
    synsets: Sequence[str]
    names: Sequence[str] | None = None
    undecoded: Examples | None = None

    def __post_init__(self) -> None:
        if not Path(self.annotations).is_dir():
            raise FileNotFoundError(f"annotations={str(self.annotations)!r} is no folder")
        if len(set(self.synsets)) != len(self.synsets):
            twice = sorted({s for s in self.synsets if list(self.synsets).count(s) > 1})
            raise ValueError(f"synsets name {', '.join(twice[:3])} twice")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Example:
        """Read one.

        Raises:
            FileNotFoundError: it has no annotation.
            ValueError: the annotation cannot be read, or has no box of the picture's class, or the
                class is not among the synsets.
        """
        found = self.source[index]
        name, label, boxes = self._entry(found)
        return Example(found["image"], label, boxes, name)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def entry(self, index: int) -> Entry:
        """Return what is known of one besides its pixels, which are not decoded.

        Raises:
            FileNotFoundError, ValueError: as for the example.
        """
        return self._entry((self.source if self.undecoded is None else self.undecoded)[index])

    def picture(self, index: int) -> np.ndarray:
        """Return the pixels of one."""
        return self.source[index]["image"]

    def _entry(self, found: Any) -> Entry:
        name = found["file_name"]
        if isinstance(name, bytes):
            name = name.decode()
        # The last part alone, so that no name leads out of the folder.
        path = Path(self.annotations) / f"{PurePosixPath(name).stem}.xml"
        synset = self._said(found)
        objects = read_objects(path)
        if synset is None:
            if len(objects) != 1:
                raise ValueError(
                    f"{path.name} has boxes of {', '.join(objects) or 'nothing'}: which is the "
                    "class? Put the pictures of each class into a folder named like its synset"
                )
            (synset,) = objects
        if synset not in self._classes:
            raise ValueError(f"{name}: {unknown('synset', synset, self.synsets)}")
        if synset not in objects:
            raise ValueError(f"{path.name} has no box of {synset}")
        return Entry(name, self._classes[synset], objects[synset])

    def _said(self, found: Any) -> str | None:
        """Return the synset that an example says it is one of."""
        if found.get("synset") is not None:
            return found["synset"]
        if "label" not in found:
            return None
        return (self.synsets if self.names is None else self.names)[int(found["label"])]

    @functools.cached_property
    def _classes(self) -> dict[str, int]:
        return {synset: number for number, synset in enumerate(self.synsets)}


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples that are files.

    Attributes:
        paths: the pictures; those in a folder named like a synset are of that class.
        decoded: whether to read pixels.
    """

    paths: tuple[Path, ...]
    decoded: bool = True

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Return one."""
        from jaxplain.data.images import load_image

        path = self.paths[index]
        found: dict[str, Any] = {"file_name": path.name}
        if _SYNSET.fullmatch(path.parent.name):
            found["synset"] = path.parent.name
        if self.decoded:
            found["image"] = load_image(path)
        return found


def open_ilsvrc(
    data: str,
    annotations: Path,
    synsets: Sequence[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> Ilsvrc:
    """Return the validation pictures that a user means.

    Args:
        data: "tfds:imagenet2012", or "folder:PATH" with the pictures, or with a folder of them for
            each synset.
        annotations: the folder of XML files.
        synsets: of the network's classes, in their order; None for ILSVRC's thousand.
        data_dir: where data sets of TFDS live; None for `$TFDS_DATA_DIR`, or TFDS's own choice.

    Raises:
        FileNotFoundError: there is no such folder or data set.
        ValueError: other data, no pictures, or a data set without files' names and labels.
    """
    own = ilsvrc_synsets() if synsets is None else tuple(synsets)
    if data.startswith(FOLDER):
        paths = _pictures(Path(data.removeprefix(FOLDER)))
        return Ilsvrc(Files(paths), annotations, own, undecoded=Files(paths, decoded=False))
    if not data.startswith(PREPARED):
        raise ValueError(
            f"data is {data!r}; expected tfds:imagenet2012, or folder:PATH with ILSVRC's "
            "validation pictures"
        )
    from jaxplain.data.prepared import find_prepared, read_at_random

    name = data.removeprefix(PREPARED)
    builder = find_prepared(name, data_dir)
    features = builder.info.features
    missing = [key for key in ("image", "label", "file_name") if key not in features]
    if missing or SPLIT not in builder.info.splits:
        what = f"feature {missing[0]!r}" if missing else f"split {SPLIT!r}"
        raise ValueError(f"data set {name!r} has no {what}: it is not ILSVRC")
    source, undecoded = read_at_random(builder, SPLIT)
    return Ilsvrc(source, annotations, own, tuple(features["label"].names), undecoded)


@functools.cache
def ilsvrc_synsets() -> tuple[str, ...]:
    """Return the synsets of ILSVRC's thousand classes, in the order of the published weights.

    They are WordNet's numbers in alphabetical order.

    Example:
        >>> len(ilsvrc_synsets()), ilsvrc_synsets()[340]
        (1000, 'n02391049')
    """
    text = resources.files("jaxplain.data").joinpath("ilsvrc_synsets.txt").read_text("utf-8")
    return tuple(text.split())


def read_synsets(path: Path) -> tuple[str, ...]:
    r"""Return the synsets of a file: the first word of each line, as in `LOC_synset_mapping.txt`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text, or has none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "synsets.txt")
        ...     _ = path.write_text("n01440764 tench, Tinca tinca\n\nn01443537 goldfish\n")
        ...     read_synsets(path)
        ('n01440764', 'n01443537')
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    found = tuple(line.split()[0] for line in lines if line.strip())
    if not found:
        raise ValueError(f"{path} names no synset; expected one a line")
    return found


def read_boxes(path: Path, synset: str) -> Int[np.ndarray, "m 4"]:
    """Return the boxes of a class in an annotation of ILSVRC.

    Args:
        path: of the XML file.
        synset: name of the class, such as "n01440764".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or has no box of the class.
    """
    objects = read_objects(path)
    if synset not in objects:
        raise ValueError(f"{path.name} has no box of {synset}")
    return objects[synset]


def read_objects(path: Path) -> dict[str, Int[np.ndarray, "m 4"]]:
    """Return the boxes in an annotation of ILSVRC, by synset.

    The file's coordinates are those of the first and last pixel inside. No document type is read:
    annotations have none, and what it may declare (entities) can fill the memory.

    Args:
        path: of the XML file.

    Returns:
        Synset -> boxes as in `Entry`, in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has more than {LARGEST} bytes: this is no annotation")
    found: dict[str, list[list[int]]] = {}
    try:
        parser = ET.XMLParser(target=_Plain())  # noqa: S314
        for one in ET.parse(path, parser).getroot().findall("object"):  # noqa: S314
            top, left, bottom, right = (
                int(float(_text(one, f"bndbox/{side}")))
                for side in ("ymin", "xmin", "ymax", "xmax")
            )
            if bottom < top or right < left:
                raise ValueError(f"a box ends before it begins: {[top, left, bottom, right]}")
            found.setdefault(_text(one, "name"), []).append([top, left, bottom + 1, right + 1])
        return {synset: np.array(boxes, np.int32) for synset, boxes in found.items()}
    except (ET.ParseError, ValueError, OverflowError) as error:
        raise ValueError(f"{path.name} is no annotation of ILSVRC: {error}") from None


class _Plain(ET.TreeBuilder):
    """A tree without a document type."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares a document type ({name})")


def _text(element: ET.Element, place: str) -> str:
    found = element.findtext(place)
    if found is None:
        raise ValueError(f"{place} is missing")
    return found.strip()


def _pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures of a folder and of the folders in it that are named like synsets."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {str(folder)!r}")
    inner = [child for child in folder.iterdir() if _SYNSET.fullmatch(child.name)]
    found = [
        path
        for place in (folder, *inner)
        for path in place.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise ValueError(
            f"{str(folder)!r} holds no pictures; expected ILSVRC2012_val_00000001.JPEG and others"
        )
    return tuple(sorted(found, key=lambda path: path.name))


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
