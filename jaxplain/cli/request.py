"""What `jaxplain explain` was asked for, and whether it can be: all of it before any work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxplain.names import nearest, unknown
from jaxplain.outputs import check_writable

if TYPE_CHECKING:
    from jaxplain.methods import Method
    from jaxplain.model import Model


ALL = "all"
"""The word for all methods but those that take hundreds of passes."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `jaxplain explain --help`.

    `fitted` holds the files of what was fitted to the network, by the names of their options.
    """

    pictures: Sequence[Path]
    model: str | None
    weights: str | None
    methods: str
    target: str
    layer: str | None
    fitted: Mapping[str, Path | None]
    out: Path
    npz: Path | None
    seed: int
    chunk: int | None
    cache: bool


def check_outputs(request: Request) -> None:
    """Raise unless the outputs can be written, are two files, and replace none that is read.

    Raises:
        ValueError: two names of one file; links count as what they lead to.
        OSError: a file cannot be written.
    """
    read = {path.resolve(): "one of the pictures" for path in request.pictures}
    for name in (request.model, request.weights):
        if name is not None and Path(name).is_file():
            read[Path(name).resolve()] = "the file of weights"
    for name, path in request.fitted.items():
        if path is not None:
            read[path.resolve()] = f"the file of --{name}"
    for option, path in (("--out", request.out), ("--npz", request.npz)):
        if path is None:
            continue
        check_writable(path)
        if path.resolve() in read:
            what = read[path.resolve()]
            raise ValueError(f"{option} {str(path)!r} is {what}, which it would replace")
    if request.npz is not None and request.npz.resolve() == request.out.resolve():
        raise ValueError(f"--npz and --out are the same file, {str(request.out)!r}; expected two")


def choose_methods(text: str, known: Mapping[str, "Method"]) -> list["Method"]:
    """Return the methods that `text` names, with commas between.

    The variants of one function can be named together: mint is mint_coarse and mint_fine. "all"
    names those that do not take hundreds of passes.

    Raises:
        ValueError: unknown names, all of them told; or no name at all.

    Example:
        >>> from jaxplain import METHODS
        >>> [method.name for method in choose_methods("lime,mint", METHODS)]
        ['lime', 'mint_coarse', 'mint_fine']
        >>> chosen = choose_methods("all, lime", METHODS)
        >>> [method.name for method in chosen if method.costly]
        ['lime']
    """
    asked = (name.strip() for name in text.split(",") if name.strip())
    names = list(dict.fromkeys(each for name in asked for each in _variants(name, known)))
    if not names:
        raise ValueError("--methods names none; expected all, or names with commas between")
    missing = [name for name in names if name not in known]
    if len(missing) == 1:
        raise ValueError(unknown("method", missing[0], known))
    if missing:
        each = [
            f"{name!r}"
            + (f" (nearest: {', '.join(near)})" if (near := nearest(name, known)) else "")
            for name in missing
        ]
        raise ValueError(f"unknown methods {', '.join(each)}; jaxplain methods lists them")
    return [known[name] for name in names]


def _variants(name: str, known: Mapping[str, "Method"]) -> list[str]:
    """What a name stands for: itself, all, or what is called `name_...` if it is one function's."""
    if name == ALL:
        return [each for each, method in known.items() if not method.costly]
    found = [each for each in known if each.startswith(f"{name}_")]
    alike = len({known[each].function for each in found}) == 1
    return found if name not in known and alike else [name]


def asked_for_all(text: str) -> bool:
    """Say whether "all" is among the names of methods.

    Example:
        >>> asked_for_all("lime, all"), asked_for_all("lime")
        (True, False)
    """
    return ALL in (name.strip() for name in text.split(","))


def left_out(methods: Iterable["Method"]) -> dict[str, str]:
    """Return {title: what to do instead} of the methods that run only if they are named.

    Example:
        >>> from jaxplain import METHODS
        >>> left_out(METHODS.values())["LIME"]
        'hundreds of passes a picture; try: jaxplain explain IMAGE --methods lime'
    """
    return {
        method.title: (
            f"hundreds of passes a picture; try: jaxplain explain IMAGE --methods {method.name}"
        )
        for method in methods
        if method.costly
    }


def check_layer(model: "Model", layer: str | None, chosen: Sequence["Method"]) -> None:
    """Raise ValueError for a layer that the model lacks, or that none of the methods takes."""
    if layer is None:
        return
    names = [known.name for known in model.layers()]
    if layer not in names:
        raise ValueError(unknown("layer", layer, names))
    if not any(method.layered for method in chosen):
        raise ValueError(
            f"--layer {layer} has no meaning for {', '.join(m.name for m in chosen)}: "
            "none explains a layer"
        )


def check_weights(name: str, weights: str | None) -> None:
    """Raise ValueError, in the words of the command line, for weights that cannot be meant."""
    from jaxplain.models import MODELS, RANDOM, SHIPPED

    if name not in MODELS:
        return
    published = MODELS[name].weights
    hub = ", hf:owner/name" if MODELS[name].foreign is not None else ""
    choice = f"{', '.join((*published, RANDOM))}{hub} or a file"
    if weights is None:
        if SHIPPED not in published:
            raise ValueError(f"--model {name} brings no weights: add --weights, one of {choice}")
    elif (
        weights not in (*published, RANDOM)
        and not (hub and weights.startswith("hf:"))
        and not Path(weights).exists()
    ):
        near = nearest(weights, published)
        hint = f"nearest: {', '.join(near)}" if near else f"expected {choice}"
        raise ValueError(
            f"--weights {weights!r} is neither a file nor weights that are published for {name}; "
            f"{hint}"
        )


def parse_target(text: str, class_names: Sequence[str]) -> int | str:
    """Return a class number, "top1" or "top5".

    A class name goes before a number, so that a network of digits can be asked for "7", and a name
    in the same capitals before others. A part of a name will do if only one class has it.

    Raises:
        ValueError: no such class, or several of that name.
    """
    from jaxplain.models.imagenet import find_class

    text = text.strip()
    if text in ("top1", "top5"):
        return text
    same = [number for number, name in enumerate(class_names) if name == text]
    folded = text.casefold()
    alike = same or [n for n, name in enumerate(class_names) if name.casefold() == folded]
    if len(alike) > 1:
        several = ", ".join(f"{number} ({class_names[number]})" for number in alike)
        raise ValueError(f"class {text!r} is one of several: {several}; give the number")
    if alike:
        return alike[0]
    last = len(class_names) - 1
    if text.removeprefix("-").isdecimal():
        if int(text) >= 0 and (not class_names or int(text) <= last):
            return int(text)
        numbers = f" to {last}" if class_names else " on"
        raise ValueError(f"class {text} is unknown; classes are numbered from 0{numbers}")
    if not class_names:
        raise ValueError(
            f"class {text!r} is unknown: nobody named the classes of these weights; expected a "
            "number from 0 on, top1 or top5"
        )
    try:
        return find_class(class_names, text)
    except ValueError as error:
        raise ValueError(
            f"{error}; expected a name, whatever its capitals, a number from 0 to {last}, top1 or "
            "top5"
        ) from None


def pick_targets(wanted: int | str, chances: np.ndarray) -> np.ndarray:
    """Return the classes to explain, int32 (N, T), likeliest first.

    Raises:
        ValueError: a class that the network does not have.
    """
    count, classes = chances.shape
    if isinstance(wanted, int):
        if wanted >= classes:
            raise ValueError(f"class {wanted} is unknown; the model has classes 0 to {classes - 1}")
        return np.full((count, 1), wanted, np.int32)
    top = 1 if wanted == "top1" else min(5, classes)
    return np.argsort(-chances, axis=1, kind="stable")[:, :top].astype(np.int32)


def described(target: str, model: "Model") -> str:
    """Return the target in words."""
    if target == "top1":
        return "the class that the network predicts"
    if target == "top5":
        return "the five classes that the network finds likeliest"
    number = parse_target(target, model.class_names)
    name = model.class_names[int(number)] if model.class_names else number
    return f"class “{name}”"
