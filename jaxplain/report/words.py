"""Numbers, places and lists as people read them."""

from collections.abc import Sequence

import numpy as np


def percent(value: float) -> str:
    """Return a share as a percentage that never claims certainty.

    Example:
        >>> percent(0.99996), percent(0.5), percent(0.0321), percent(0.00001)
        ('> 99.9 %', '50 %', '3.2 %', '< 0.1 %')
    """
    hundred = 100 * value
    if 0 < hundred < 0.1:
        return "< 0.1 %"
    if 99.9 < hundred < 100:
        return "> 99.9 %"
    return (
        f"{hundred:.1f} %" if (hundred < 10 or hundred > 99) and hundred % 1 else f"{hundred:.0f} %"
    )


def duration(seconds: float | None) -> str:
    """Return seconds as people read them.

    Example:
        >>> duration(0.00042), duration(0.0046), duration(0.0123), duration(2.345)
        ('0.4 ms', '4.6 ms', '12 ms', '2.3 s')
    """
    if seconds is None:
        return "–"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def digits(value: float) -> str:
    """Return a score in 0..1 with two digits.

    Example:
        >>> digits(0.4567)
        '0.46'
    """
    return f"{value:.2f}"


def listed(items: Sequence[str]) -> str:
    """Return a list with "and" before its last item.

    Example:
        >>> listed(["red"]), listed(["red", "green", "blue"])
        ('red', 'red, green and blue')
    """
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def place(heatmap: np.ndarray) -> str:
    """Return where a map is strongest, for those who do not see it.

    Example:
        >>> place(np.eye(9)[::-1]), place(np.zeros((3, 3)))
        ('strongest in the upper right', 'zero everywhere')
    """
    heatmap = np.asarray(heatmap)
    if not np.any(heatmap):
        return "zero everywhere"
    row, column = np.unravel_index(np.argmax(heatmap), heatmap.shape)
    words = (
        ("upper", "middle", "lower")[min(2, 3 * int(row) // heatmap.shape[0])],
        ("left", "centre", "right")[min(2, 3 * int(column) // heatmap.shape[1])],
    )
    return "strongest in the " + ("centre" if words == ("middle", "centre") else " ".join(words))
