"""Messages for names that do not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is unknown and which known names are nearest.

    Example:
        >>> unknown("layer", "conv9_1", ["conv5_1", "pool5"])
        "unknown layer 'conv9_1'; nearest: conv5_1"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {what} {name!r}; {hint}"
