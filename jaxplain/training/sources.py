"""What a user calls data: a folder, a prepared data set, or what this package renders and ships."""

import numpy as np

from jaxplain.data import SPLITS
from jaxplain.data.labelled import TEST, VALIDATION, Chosen, Data, Pictures, several
from jaxplain.names import unknown
from jaxplain.preprocessing import Preprocessing
from jaxplain.training.recipes import RECIPES, load_data

FOLDER, PREPARED = "folder:", "tfds:"
_SHARES = dict(zip(SPLITS, (1 - VALIDATION - TEST, VALIDATION, TEST), strict=True))


def open_data(
    source: str, *, multilabel: bool = False, pictures: int | None = None, seed: int = 0
) -> Data:
    """Return the pictures and labels that a user means.

    Args:
        source: "folder:PATH" (`jaxplain.data.folder`), "tfds:NAME" (`jaxplain.data.prepared`),
            "an8flower/single_6c", "an8flower/double_12c" or "digits".
        multilabel: labels are (n, classes), and a picture may have several or none.
        pictures: use only so many: 65 % to train on, 15 % to choose by, 20 % held out.
        seed: of the choice, and of sharing out what has no splits.

    Raises:
        ValueError: unknown data, or `pictures` are too few.
        FileNotFoundError: there is no such folder or data set.

    Example:
        >>> data = open_data("digits", pictures=100)
        >>> [len(part.labels) for part in data[:3]], data.class_names[:2]
        ([65, 15, 20], ('0', '1'))
    """
    if pictures is not None and pictures < 10:
        raise ValueError(f"pictures is {pictures}; expected at least 10")
    counts = {split: round(share * (pictures or 0)) for split, share in _SHARES.items()}
    if source.startswith(FOLDER):
        from jaxplain.data.folder import read_folder

        data = read_folder(source.removeprefix(FOLDER), multilabel=multilabel, seed=seed)
    elif source.startswith(PREPARED):
        from jaxplain.data.prepared import read_prepared

        data = read_prepared(source.removeprefix(PREPARED), multilabel=multilabel, seed=seed)
    else:
        recipes = {recipe.data: recipe for recipe in RECIPES.values()}
        if source not in recipes:
            known = (f"{FOLDER}PATH", f"{PREPARED}NAME", *recipes)
            raise ValueError(unknown("data", source, known))
        asked = None if pictures is None else tuple(counts.values())
        data = _labelled(load_data(recipes[source], asked), multilabel)
    return data if pictures is None else _fewer(data, counts, seed)


def in_memory(data: Data, preprocessing: Preprocessing) -> Data:
    """Return data whose pictures are read, and cut to what a network sees: (n, H, W, C) uint8.

    Raises:
        OSError, ValueError: a picture cannot be read.

    Example:
        >>> from jaxplain.models import find_architecture
        >>> takes = find_architecture("digits").preprocessing
        >>> data = in_memory(open_data("digits", pictures=20), takes)
        >>> data.test.images.shape, data.test.images.dtype
        ((4, 28, 28, 1), dtype('uint8'))
    """

    def read(part: Pictures) -> Pictures:
        found = np.empty((len(part.images), *preprocessing.input_shape), np.uint8)
        for index in range(len(found)):
            found[index] = preprocessing.cut(part.images[index])
        return Pictures(found, part.labels)

    return Data(*(read(part) for part in data[:3]), class_names=data.class_names)


def _labelled(data: Data, multilabel: bool) -> Data:
    """Data of one class a picture, with the labels that are wanted."""
    if not multilabel:
        return data
    classes = len(data.class_names)
    parts = (Pictures(part.images, several(part.labels, classes)) for part in data[:3])
    return Data(*parts, class_names=data.class_names)


def _fewer(data: Data, counts: dict[str, int], seed: int) -> Data:
    """Some of the pictures of each split, drawn at random."""
    parts = []
    for split, part in zip(SPLITS, data[:3], strict=True):
        random = np.random.Generator(np.random.PCG64([seed, counts[split]]))
        if len(part.labels) > counts[split]:
            rows = np.sort(random.permutation(len(part.labels))[: counts[split]])
            part = Pictures(Chosen(part.images, rows), part.labels[rows])
        parts.append(part)
    return Data(*parts, class_names=data.class_names)
