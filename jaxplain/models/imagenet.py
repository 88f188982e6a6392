"""The thousand classes of ImageNet (ILSVRC 2012), and classes by name.

The list has a short name for each class, in the order of the published weights, one line a class.
"""

import functools
import re
from collections.abc import Sequence
from importlib import resources

from jaxplain.names import unknown


@functools.cache
def class_names() -> tuple[str, ...]:
    """Return the names of ImageNet's classes.

    Example:
        >>> len(class_names()), class_names()[340]
        (1000, 'zebra')
    """
    text = resources.files("jaxplain.models").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def find_class(names: Sequence[str], wanted: str) -> int:
    """Return the index of the class that `wanted` means.

    The name itself is looked for first, then the name in any case, then an index, then names in
    which the words of `wanted` occur.

    Args:
        names: the names of the classes.
        wanted: a name, a part of one, or an index.

    Raises:
        ValueError: nothing is meant (nearest names are told), or several classes are (they are
            listed).

    Example:
        >>> find_class(class_names(), "zebra")
        340
        >>> find_class(class_names(), "hammerhead shark")
        Traceback (most recent call last):
        ...
        ValueError: unknown class 'hammerhead shark'; nearest: hammerhead, ...
        >>> find_class(class_names(), "retriever")
        Traceback (most recent call last):
        ...
        ValueError: class 'retriever' is ambiguous: flat-coated retriever (205), ...
    """
    text = wanted.strip()
    folded = text.casefold()
    words = re.compile(rf"\b{re.escape(folded)}\b")
    attempts = (
        [index for index, name in enumerate(names) if name == text],
        [index for index, name in enumerate(names) if name.casefold() == folded],
        [int(text)] if text.isascii() and text.isdigit() and int(text) < len(names) else [],
        [i for i, name in enumerate(names) if folded and words.search(name.casefold())],
    )
    for found in attempts:
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{names[index]} ({index})" for index in found[:20])
            more = f", and {len(found) - 20} more" if len(found) > 20 else ""
            raise ValueError(f"class {wanted!r} is ambiguous: {listed}{more}")
    raise ValueError(unknown("class", wanted, names))
