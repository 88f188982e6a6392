"""Heat maps as pictures: colours, overlays, curves, figures. The only file with matplotlib.

Two colour maps, both legible to colour-blind readers: "inferno", perceptually uniform from black to
pale yellow, for maps without a sign; "RdBu" reversed, centred on zero, red for evidence in favour
and blue for evidence against, for maps with one.

Every map is divided by its own scale before it is coloured: the 99.5th percentile of its absolute
values, so that a few extreme pixels do not darken all others. What lies beyond is clipped. Maps
made visible this way can be compared in *where* they point, never in how strong they are.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILE = 99.5
"""Of the absolute values of a map, the percentile that is shown in the strongest colour."""

COLOURS = {False: "inferno", True: "RdBu_r"}
"""matplotlib's colour map of maps without a sign (False) and with one (True)."""

KIND_COLOURS = {
    "convolution": "#2a7f3f",
    "pooling": "#3465a4",
    "dense": "#c2378a",
    "other": "#555555",
}
"""Of the kinds of layers; green and pink as in Fig. 1 of Oramas et al. 2019."""

Picture = UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]


def scale(heatmap: Any, *, percentile: float | int = PERCENTILE) -> float:
    """Return the value of a map that is shown in the strongest colour.

    The percentile of its absolute values; their maximum where that percentile is zero (a map of a
    few pixels); one where the map is zero everywhere.

    Args:
        heatmap: (H, W) finite numbers.
        percentile: 0 < percentile ≤ 100.

    Raises:
        ValueError: not (H, W), not finite, or a percentile out of range.

    Example:
        >>> scale(np.array([[0.0, -4.0], [2.0, 1.0]]), percentile=100)
        4.0
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; expected a number above 0, up to 100")
    size = np.abs(_heatmap(heatmap))
    robust = float(np.percentile(size, percentile))
    return robust or float(size.max()) or 1.0


def levels(
    heatmap: Any, *, signed: bool, percentile: float | int = PERCENTILE
) -> Float[np.ndarray, "h w"]:
    """Return a map divided by its `scale` and clipped: to 0..1, or to -1..1 if signed.

    Without a sign, negative values count as zero.

    Example:
        >>> levels(np.array([[-2.0, 4.0]]), signed=True, percentile=100)
        array([[-0.5,  1. ]], dtype=float32)
    """
    values = _heatmap(heatmap)
    if not signed:
        values = np.maximum(values, 0)
    return np.clip(values / scale(values, percentile=percentile), -1 if signed else 0, 1).astype(
        np.float32
    )


def heatmap_rgb(
    heatmap: Any, *, signed: bool = False, percentile: float | int = PERCENTILE
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a map in colours.

    Args:
        heatmap: (H, W) finite numbers.
        signed: whether negative values mean evidence against; if not, they count as zero.
        percentile: see `scale`.

    Raises:
        ValueError: as `scale`.

    Example:
        >>> heatmap_rgb(np.zeros((1, 1)), signed=True)  # zero is almost white
        array([[[247, 246, 246]]], dtype=uint8)
    """
    return palette(signed=signed)[
        _index(levels(heatmap, signed=signed, percentile=percentile), signed)
    ]


def overlay(
    picture: Picture,
    heatmap: Any,
    *,
    signed: bool = False,
    strength: float | int = 0.85,
    percentile: float | int = PERCENTILE,
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a map in colours over its picture, turned grey: every colour is the map's.

    The stronger the value, the less of the picture shows through: zero leaves it as it is.

    Args:
        picture: uint8 (h, w, 3) or (h, w).
        heatmap: (H, W) finite numbers; enlarged bilinearly to the picture.
        signed: see `heatmap_rgb`.
        strength: opacity of the strongest colour, 0..1.
        percentile: see `scale`.

    Raises:
        TypeError: the picture is not uint8.
        ValueError: another shape, or a strength out of range.

    Example:
        >>> overlay(np.full((4, 4), 100, np.uint8), np.zeros((2, 2)))[0, 0]
        array([100, 100, 100], dtype=uint8)
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; expected 0 to 1")
    grey = _grey(picture)
    values = _resize(
        levels(heatmap, signed=signed, percentile=percentile), (grey.shape[0], grey.shape[1])
    )
    alpha = strength * opacity(values)[..., None]
    colours = palette(signed=signed)[_index(values, signed)]
    return np.round(alpha * colours + (1 - alpha) * grey[..., None]).astype(np.uint8)


def cutout(picture: Picture, mask: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Return what a mask shows of a picture, all else light grey: an explanation by superpixels.

    Args:
        picture: uint8 (h, w, 3) or (h, w).
        mask: (H, W) booleans; enlarged to the picture, nearest.

    Raises:
        TypeError: the picture is not uint8, or the mask not booleans.
        ValueError: another shape.

    Example:
        >>> cutout(np.zeros((2, 2), np.uint8), np.eye(2, dtype=bool))[0, :, 0]
        array([  0, 225], dtype=uint8)
    """
    shown = _rgb(picture)
    inside = np.asarray(mask)
    if inside.dtype != bool:
        raise TypeError(f"mask has dtype {inside.dtype}; expected booleans")
    if inside.ndim != 2 or inside.size == 0:
        raise ValueError(f"mask has shape {inside.shape}; expected (height, width)")
    rows, columns = (
        np.arange(length) * side // length
        for length, side in zip(shown.shape[:2], inside.shape, strict=True)
    )
    return np.where(inside[rows][:, columns, None], shown, np.uint8(225))


def opacity(values: Any) -> Float[np.ndarray, "..."]:
    """Return how opaque `levels` are drawn over a picture: zero at 0, one from 0.6, smooth between.

    Example:
        >>> opacity(np.array([0.0, -0.6, 1.0], np.float32))
        array([0., 1., 1.], dtype=float32)
    """
    t = np.clip(np.abs(np.asarray(values, np.float32)) / np.float32(0.6), 0, 1)
    return t * (2 - t)


def palette(*, signed: bool, size: int = 256) -> UInt8[np.ndarray, "n 3"]:
    """Return the colours of `size` evenly spaced levels, from the lowest (0, or -1 if signed) to 1.

    Example:
        >>> palette(signed=False, size=2)
        array([[  0,   0,   3],
               [252, 254, 164]], dtype=uint8)
    """
    import matplotlib as mpl

    return mpl.colormaps[COLOURS[signed]](np.linspace(0, 1, size), bytes=True)[:, :3]


def colour_bar(
    *, signed: bool = False, length: int = 256, thickness: int = 12
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the colours from the lowest level (left) to the highest: (thickness, length, 3).

    Example:
        >>> colour_bar(length=64, thickness=4).shape
        (4, 64, 3)
    """
    return np.broadcast_to(palette(signed=signed, size=length), (thickness, length, 3)).copy()


def iou_curves(
    curves: Mapping[str, Any],
    thresholds: Any,
    *,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
) -> "Figure":
    """Draw the mean IoU of each method's thresholded maps with the mask, a small chart a method.

    Every chart repeats the others' curves in grey, so that twenty methods can be told apart without
    twenty colours.

    Args:
        curves: method name -> (T,) mean IoU.
        thresholds: (T,) thresholds.
        bands: method name -> (lower, upper), (T,) each: an interval to shade.

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Raises:
        ValueError: no curves, or a curve of another length than the thresholds.
    """
    x = np.asarray(thresholds)
    if not curves:
        raise ValueError("curves is empty; expected one curve a method")
    for name, curve in curves.items():
        if np.shape(curve) != x.shape:
            raise ValueError(
                f"curves[{name!r}] has shape {np.shape(curve)}; expected {x.shape}, "
                "one value a threshold"
            )
    columns = min(5, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = _subplots(
        rows, columns, size=(2.1 * columns, 1.75 * rows), sharex=True, sharey=True
    )
    for axis, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        for other in curves.values():
            axis.plot(x, other, color="0.85", linewidth=0.8)
        if bands and name in bands:
            axis.fill_between(x, *bands[name], color="#b5451f", alpha=0.2, linewidth=0)
        axis.plot(x, curve, color="#b5451f", linewidth=1.8)
        axis.set_title(f"{name}  {np.trapezoid(curve, x) / np.ptp(x):.2f}", fontsize=8, loc="left")
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    figure.supxlabel("threshold", fontsize=8)
    figure.supylabel("IoU with the mask", fontsize=8)
    return figure


def show(picture: Picture, heatmap: Any, *, signed: bool = False, title: str = "") -> "Figure":
    """Draw a picture, its heat map and both together, with the colour bar.

    Args:
        picture: uint8 (h, w, 3) or (h, w).
        heatmap: (H, W) finite numbers.
        signed: see `heatmap_rgb`.
        title: above the map.

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Example:
        >>> figure = show(np.zeros((8, 8), np.uint8), np.eye(8))
        >>> len(figure.axes)  # picture, map, overlay, colour bar
        4
    """
    figure, axes = _subplots(1, 3, size=(8.2, 2.9))
    panels = (
        _rgb(picture),
        heatmap_rgb(heatmap, signed=signed),
        overlay(picture, heatmap, signed=signed),
    )
    names = ("picture", title or "map", "overlay")
    for axis, panel, name in zip(axes.flat, panels, names, strict=True):
        _panel(axis, panel, name)
    _bar(figure, list(axes.flat), signed=signed)
    return figure


def grid(
    pictures: Sequence[Picture],
    heatmaps: Mapping[str, Any],
    *,
    signed: Sequence[str] = (),
    titles: Sequence[str] = (),
) -> "Figure":
    """Draw pictures (rows) with the overlays of several methods (columns).

    Args:
        pictures: N pictures, uint8 (h, w, 3) or (h, w).
        heatmaps: method name -> (N, H, W) maps; or booleans, of which the `cutout` is drawn, as in
            the figures of LIME and MINT.
        signed: the names of the methods whose maps have a sign.
        titles: N row titles, or none.

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Raises:
        ValueError: numbers of pictures, maps or titles that differ, or a signed name without maps.

    Example:
        >>> maps = {"gradient": np.ones((2, 4, 4))}
        >>> figure = grid([np.zeros((8, 8), np.uint8)] * 2, maps, signed=["gradient"])
        >>> len(figure.axes)
        5
    """
    for name, maps in heatmaps.items():
        if np.ndim(maps) != 3 or len(maps) != len(pictures):
            raise ValueError(
                f"heatmaps[{name!r}] has shape {np.shape(maps)}; expected "
                f"({len(pictures)}, height, width), one map a picture"
            )
    missing = sorted(set(signed) - set(heatmaps))
    if missing:
        raise ValueError(f"signed names {missing}, which have no maps; maps: {sorted(heatmaps)}")
    if titles and len(titles) != len(pictures):
        raise ValueError(
            f"titles has {len(titles)} entries; expected {len(pictures)}, one a picture"
        )
    if len(pictures) == 0:
        raise ValueError("pictures is empty; expected at least one")
    masks = {name for name, maps in heatmaps.items() if np.asarray(maps).dtype == bool}
    columns = 1 + len(heatmaps)
    figure, axes = _subplots(
        len(pictures), columns, size=(1.6 * columns + 0.4, 1.65 * len(pictures) + 0.2)
    )
    for row, picture in enumerate(pictures):
        _panel(axes[row, 0], _rgb(picture), "picture" if row == 0 else "")
        if titles:
            axes[row, 0].set_ylabel(titles[row], fontsize=8)
        for column, (name, maps) in enumerate(heatmaps.items(), start=1):
            if name in masks:
                panel = cutout(picture, maps[row])
            else:
                panel = overlay(picture, maps[row], signed=name in signed)
            _panel(axes[row, column], panel, name if row == 0 else "")
    for kind in (False, True):
        if any((name in signed) is kind for name in heatmaps if name not in masks):
            _bar(figure, list(axes.flat), signed=kind)
    return figure


def channels(
    weights: Any, class_names: Sequence[str], *, most: int = 60, title: str = "channel"
) -> "Figure":
    """Draw how important channels are for classes: a row a channel, a column a class.

    Weights of each class are divided by its largest, so that classes can be compared. The channels
    that matter most to any class are shown, in their own order.

    Args:
        weights: (classes, K).
        class_names: one a class.
        most: channels to show.
        title: of the axis of the channels.

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Raises:
        ValueError: another shape, or another number of names.

    Example:
        >>> figure = channels(np.eye(3, 5), ["a", "b", "c"], most=4)
        >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
        ['a', 'b', 'c']
    """
    values = _named(weights, class_names, "weights")
    relative = values / np.maximum(np.abs(values).max(1, keepdims=True), np.finfo(np.float32).tiny)
    strongest = np.argsort(-np.abs(relative).max(0), kind="stable")[:most]
    shown = np.sort(strongest)
    size = (1.2 + 0.45 * len(values), 0.8 + 0.12 * len(shown))
    figure, axes = _subplots(1, 1, size=size)
    axis = axes[0, 0]
    axis.imshow(
        palette(signed=True)[_index(relative[:, shown].T, signed=True)],
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_xticks(range(len(values)), class_names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(shown)), [str(k) for k in shown], fontsize=5)
    axis.set_ylabel(f"{title} ({len(shown)} of {values.shape[1]})", fontsize=8)
    _bar(figure, [axis], signed=True)
    return figure


def shared(counts: Mapping[str, Any], class_names: Sequence[str]) -> "Figure":
    """Draw how many things classes have in common, as one square of numbers for each way to count.

    Args:
        counts: way to count -> (n, n) integers; the diagonal is how many a class has itself.
        class_names: one a class.

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Raises:
        ValueError: nothing to draw, another shape, or another number of names.

    Example:
        >>> figure = shared({"top 10": np.array([[10, 2], [2, 10]])}, ["red", "blue"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['10', '2', '2', '10']
    """
    if not counts:
        raise ValueError("counts is empty; expected at least one square of numbers")
    squares = {
        name: _named(square, class_names, f"counts[{name!r}]") for name, square in counts.items()
    }
    side = 1.0 + 0.32 * len(class_names)
    figure, axes = _subplots(1, len(squares), size=(side * len(squares), side + 0.3))
    for axis, (name, square) in zip(axes.flat, squares.items(), strict=True):
        own = np.maximum(square.diagonal()[:, None], 1)
        axis.imshow(palette(signed=False)[_index(np.clip(square / own, 0, 1), signed=False)])
        for (row, column), count in np.ndenumerate(square):
            ink = "black" if count > 0.6 * own[row, 0] else "white"
            place = {"ha": "center", "va": "center", "fontsize": 6}
            axis.text(column, row, f"{count:.0f}", color=ink, **place)
        axis.set_title(name, fontsize=8)
        axis.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(class_names)), class_names, fontsize=7)
    return figure


def explained(
    picture: Picture, answer: str, maps: Any, features: Sequence[tuple[str, str, int, float]]
) -> "Figure":
    """Draw a picture with what the network answers, and a map for each feature it rests on.

    Over every map stand the feature's layer and channel, in the colour of the layer's kind: green
    for convolutions, blue for pooling, pink for dense layers.

    Args:
        picture: uint8 (h, w, 3) or (h, w).
        answer: the predicted class.
        maps: (k, H, W).
        features: k of (layer, kind, channel, weight).

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Raises:
        ValueError: other numbers of maps and features, or none.

    Example:
        >>> features = [("conv1", "convolution", 3, 1.0)]
        >>> figure = explained(np.zeros((8, 8), np.uint8), "rose", np.ones((1, 8, 8)), features)
        >>> [axis.get_title() for axis in figure.axes[:2]]
        ['rose', 'conv1 · 3']
    """
    if np.ndim(maps) != 3 or len(maps) != len(features) or not len(features):
        raise ValueError(
            f"maps has shape {np.shape(maps)} for {len(features)} features; expected one map each"
        )
    figure, axes = _subplots(1, 1 + len(features), size=(1.7 * (1 + len(features)) + 0.4, 2.0))
    _panel(axes[0, 0], _rgb(picture), answer)
    for axis, heatmap, (layer, kind, channel, _) in zip(axes[0, 1:], maps, features, strict=True):
        _panel(axis, overlay(picture, heatmap), f"{layer} · {channel}")
        axis.title.set_color(KIND_COLOURS[kind])
    _bar(figure, list(axes.flat), signed=False)
    return figure


def montage(
    averages: Mapping[str, Sequence[tuple[tuple[str, str, int, float], Any]]], *, most: int = 8
) -> "Figure":
    """Draw the average images of the features of each class: a row a class.

    Args:
        averages: class name -> ((layer, kind, channel, weight), (h, w, C) in 0..255, NaN where
            there is nothing), the most important first.
        most: images of a class, at most.

    Returns:
        A matplotlib figure, closed for pyplot: the last expression of a notebook cell shows it
            once.

    Raises:
        ValueError: no class, or none with an image.

    Example:
        >>> rose = [(("conv1", "convolution", 3, 1.0), np.full((5, 5, 1), 128.0))]
        >>> len(montage({"rose": rose, "daisy": []}).axes)
        2
    """
    columns = min(most, max((len(row) for row in averages.values()), default=0))
    if not columns or most < 1:
        raise ValueError("averages holds no images; expected those of at least one class")
    size = (1.05 * columns + 0.8, 1.25 * len(averages))
    figure, axes = _subplots(len(averages), columns, size=size)
    for row, (name, images) in zip(axes, averages.items(), strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for axis, ((layer, kind, channel, _), image) in zip(row, images, strict=False):
            values = np.asarray(image, np.float32)
            shown = np.clip(np.where(np.isnan(values), 128, values), 0, 255).astype(np.uint8)
            _panel(axis, _rgb(shown[..., 0] if shown.shape[-1] == 1 else shown), "")
            axis.set_title(f"{layer} · {channel}", fontsize=6, color=KIND_COLOURS[kind])
        for axis in row[len(images) :]:
            axis.set_frame_on(False)
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def _named(values: Any, class_names: Sequence[str], name: str) -> np.ndarray:
    """A finite table with a row for each class."""
    table = _heatmap(values)
    if len(table) != len(class_names):
        raise ValueError(f"{name} has {len(table)} rows for {len(class_names)} class names")
    return table


def _heatmap(heatmap: Any) -> np.ndarray:
    values = np.asarray(heatmap, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"heatmap has shape {values.shape}; expected (height, width)")
    if not np.isfinite(values).all():
        raise ValueError(
            f"heatmap holds {int((~np.isfinite(values)).sum())} values that are not finite"
        )
    return values


def _index(values: np.ndarray, signed: bool) -> np.ndarray:
    """Levels to the 256 entries of the palette."""
    unit = (values + 1) / 2 if signed else values
    return np.minimum((unit * 256).astype(int), 255)


def _rgb(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        raise TypeError(f"picture has dtype {picture.dtype}; expected uint8")
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"picture has shape {picture.shape}; expected (height, width, 3) or (height, width)"
        )
    return picture


def _grey(picture: np.ndarray) -> np.ndarray:
    """Luma of ITU-R 601, float32 (h, w)."""
    return _rgb(picture).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if values.shape == size:
        return values
    enlarged = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, np.float32)


def _subplots(
    rows: int, columns: int, *, size: tuple[float, float], **options: Any
) -> tuple["Figure", Any]:
    """A figure that pyplot made (so that notebooks draw it) and forgot (so that they do once)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **options
    )
    plt.close(figure)
    return figure, axes


def _panel(axis: Any, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])


def _bar(figure: Any, axes: list[Any], *, signed: bool) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(-1 if signed else 0, 1), COLOURS[signed])
    ticks = [-1, 0, 1] if signed else [0, 1]
    bar = figure.colorbar(mappable, ax=axes, ticks=ticks, shrink=0.8, aspect=30)
    bar.ax.set_yticklabels(["against", "0", "for"] if signed else ["none", "most"], fontsize=7)
