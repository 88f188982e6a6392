"""The user's own pictures with labels: a folder a class, or a table that names files and labels.

    flowers/rose/1.jpg            flowers/labels.csv:   file,label
    flowers/rose/2.jpg                                  a.jpg,rose
    flowers/tulip/1.jpg                                 b.jpg,rose,tulip

Where the folder has `train` and `test` in it, and perhaps `validation`, each of them holds the
folders of the classes; the table says the same in a column `split`. Otherwise the pictures are
shared out, the same way every time.
"""

import csv
import dataclasses
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from jaxplain.data import SPLITS
from jaxplain.data.labelled import (
    TEST,
    VALIDATION,
    YES,
    Data,
    Pictures,
    single,
    split_rows,
)
from jaxplain.names import unknown

TABLE = "labels.csv"
SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("png", "jpg", "jpeg", "webp", "avif", "gif", "tif", "tiff"),
        *("bmp", "ppm", "pgm", "jp2", "tga", "qoi"),
    )
)
_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Files:
    """Pictures in files, read when they are asked for.

    Attributes:
        paths: the files.
    """

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> UInt8[np.ndarray, "h w 3"]:
        """Read one: see `jaxplain.data.images.load_image`."""
        from jaxplain.data.images import load_image

        return load_image(self.paths[index])

    def checksum(self, start: int) -> int:
        """Return `start` continued over the bytes of the files."""
        for path in self.paths:
            start = zlib.crc32(path.read_bytes(), start)
        return start


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A picture: its file, its classes, and its split if that is said."""

    path: Path
    classes: tuple[str, ...]
    split: str | None


def read_folder(path: str | Path, *, multilabel: bool = False, seed: int = 0) -> Data:
    """Return the pictures of a folder, which are read when they are used.

    Args:
        path: the folder.
        multilabel: a picture may have several classes, or none; otherwise exactly one.
        seed: of sharing out where the folder does not.

    Returns:
        The splits, and the classes in alphabetical order; labels are (n, classes) if `multilabel`.

    Raises:
        FileNotFoundError: there is no such folder, or files of the table are missing.
        NotADirectoryError: it is a file.
        ValueError: no pictures, fewer than two classes (one, if `multilabel`), or a table that
            cannot be understood; the message says where.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     for number in range(12):
        ...         file = Path(folder) / ("dark", "light")[number % 2] / f"{number}.png"
        ...         file.parent.mkdir(exist_ok=True)
        ...         Image.new("L", (9, 9), number * 20).save(file)
        ...     data = read_folder(folder)
        ...     print(data.class_names, *(part.labels.tolist() for part in data[:3]))
        ...     print(data.train.images[0].shape)
        ('dark', 'light') [0, 0, 0, 0, 1, 1, 1, 1] [0, 1] [0, 1]
        (9, 9, 3)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {str(path)!r}")
    if not path.is_dir():
        raise NotADirectoryError(f"{str(path)!r} is a file; expected a folder of pictures")
    table = path / TABLE
    entries = _from_table(table) if table.is_file() else list(_from_folders(path))
    names = tuple(sorted({name for entry in entries for name in entry.classes}))
    if not entries:
        raise ValueError(
            f"{str(path)!r} holds no pictures; expected a folder a class, or a table {TABLE}"
        )
    if len(names) < (1 if multilabel else 2):
        listed = ", ".join(names) or "none"
        raise ValueError(f"{str(path)!r} has too few classes to tell apart: {listed}")
    return _data(entries, names, multilabel=multilabel, seed=seed)


def _data(
    entries: Sequence[_Entry], names: tuple[str, ...], *, multilabel: bool, seed: int
) -> Data:
    """Put the entries into their splits."""
    labels = np.zeros((len(entries), len(names)), np.int8)
    for row, entry in enumerate(entries):
        labels[row, [names.index(name) for name in entry.classes]] = YES
    if not multilabel:
        labels = single(labels, [str(entry.path) for entry in entries])
    said = np.array([entry.split or "" for entry in entries])
    rows = _rows(said, labels, seed)
    for split in SPLITS:
        if len(rows[split]) == 0:
            raise ValueError(f"there are no pictures for {split}; at least three of a class do")

    def part(split: str) -> Pictures:
        files = Files(tuple(entries[row].path for row in rows[split]))
        return Pictures(files, labels[rows[split]])

    return Data(part("train"), part("validation"), part("test"), names)


def _rows(
    said: np.ndarray, labels: Int[np.ndarray, "n *classes"], seed: int
) -> dict[str, np.ndarray]:
    """Which pictures each split has; a split that nobody is said to be in gets its share."""
    rows = {split: np.flatnonzero(said == split) for split in SPLITS}
    shares = {
        split: 0.0 if len(rows[split]) else share
        for split, share in (("validation", VALIDATION), ("test", TEST))
    }
    # What is for training, or is not said to be for anything, is there to be shared out.
    free = np.flatnonzero((said == "train") | (said == ""))
    shared = split_rows(labels[free], **shares, seed=seed)
    for split in shares:
        if len(rows[split]) == 0:
            rows[split] = free[shared[split]]
    rows["train"] = free[shared["train"]]
    return rows


def _from_folders(path: Path) -> Iterator[_Entry]:
    """Pictures of folders named like their class, within folders named like splits or not."""
    parts = {child: _FOLDERS[child.name] for child in _children(path) if child.name in _FOLDERS}
    if parts and "train" in parts.values():
        strange = [child.name for child in _children(path) if child not in parts]
        if strange:
            raise ValueError(
                f"{str(path)!r} holds splits ({', '.join(child.name for child in parts)}), and "
                f"beside them {', '.join(strange[:_SHOWN])}; expected the one or the other"
            )
    else:
        parts = {path: None}
    for folder, split in parts.items():
        for child in _children(folder):
            files = sorted(file for file in child.iterdir() if _is_picture(file))
            if not files:
                raise ValueError(f"{str(child)!r} holds no pictures; expected those of a class")
            yield from (_Entry(file, (child.name,), split) for file in files)


def _children(folder: Path) -> list[Path]:
    return sorted(c for c in folder.iterdir() if c.is_dir() and not c.name.startswith("."))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _from_table(table: Path) -> list[_Entry]:
    """Pictures of a table; its first row says `file`, perhaps `split`, and then labels follow."""
    try:
        text = table.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not text in UTF-8: {error}") from error
    try:
        # By what ends a line of a table alone: a name may hold others of Unicode's line breaks.
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{table} is no table: {error}") from error
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "file" not in head:
        raise ValueError(f"{table}: the first row is {', '.join(head)!r}; expected file,label")
    found: dict[Path, _Entry] = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        entry = _entry(table, number, head, cells)
        before = found.get(entry.path)
        if before is not None:  # several rows may each give one of its labels
            if before.split != entry.split:
                raise ValueError(f"{table}, row {number}: {cells[0]} is in two splits")
            entry = dataclasses.replace(entry, classes=before.classes + entry.classes)
        found[entry.path] = entry
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise FileNotFoundError(
            f"{table} names files that are not there: {', '.join(missing[:_SHOWN])}{more}"
        )
    return list(found.values())


def _entry(table: Path, number: int, head: Sequence[str], cells: Sequence[str]) -> _Entry:
    """One row of a table."""
    places: Mapping[str, int] = {
        name: head.index(name) for name in ("file", "split") if name in head
    }
    said = {name: cells[place] if place < len(cells) else "" for name, place in places.items()}
    if not said["file"]:
        raise ValueError(f"{table}, row {number}: no file is named")
    split = said.get("split") or None
    if split is not None and split not in _FOLDERS:
        raise ValueError(f"{table}, row {number}: {unknown('split', split, SPLITS)}")
    labels = [c for place, c in enumerate(cells) if place not in places.values() and c]
    return _Entry(
        table.parent / said["file"], tuple(dict.fromkeys(labels)), split and _FOLDERS[split]
    )
