"""Messages for names that do not exist."""

import difflib
from collections.abc import Iterable

LISTED = 24
"""Known names in a message, at most: a network may have a thousand classes."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are like `name`, the likest first; capitals count little.

    Example:
        >>> nearest("Grad_Cm", ["gradient", "grad_cam", "occlusion"])
        ['grad_cam', 'gradient']
    """
    folded: dict[str, list[str]] = {}
    for each in known:
        folded.setdefault(each.casefold(), []).append(each)
    near = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.4)
    return [each for match in near for each in dict.fromkeys(folded[match])][:3]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is unknown and which known names are nearest.

    Example:
        >>> unknown("layer", "conv9_1", ["conv5_1", "pool5"])
        "unknown layer 'conv9_1'; nearest: conv5_1"
    """
    names = list(known)
    near = nearest(name, names)
    if near:
        return f"unknown {what} {name!r}; nearest: {', '.join(near)}"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"unknown {what} {name!r}; known: {', '.join(names[:LISTED]) or 'none'}{more}"
