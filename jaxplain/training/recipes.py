"""What the shipped networks are trained on, and how."""

import dataclasses

from jaxplain.data.labelled import Data, Pictures
from jaxplain.names import unknown
from jaxplain.training.loop import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """How to train a network. It goes into the metadata of the weights.

    How long and how fast is said as in `Schedule`.

    Attributes:
        name: of the recipe and of the network in `MODELS`.
        data: "an8flower/single_6c", "an8flower/double_12c" or "digits".
        images: pictures in the splits, (train, validation, test); None for all there are.
        shift: each training picture is moved by up to so many pixels along each axis.
        noise: deviation of normal noise that each training picture gets, in grey levels of 255.
            Without it nothing holds the weights to frequencies that the pictures do not have, and
            gradients are full of them.
    """

    name: str
    data: str
    images: tuple[int, int, int] | None
    warmup: int = 50
    shift: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(shift=0, noise=0)


_FLOWERS = {"epochs": 5, "patience": 2, "batch_size": 32, "learning_rate": 4e-3}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="an8flower-single-6c",
            data="an8flower/single_6c",
            images=(6000, 600, 1200),
            **_FLOWERS,
        ),
        Recipe(
            name="an8flower-double-12c",
            data="an8flower/double_12c",
            images=(6000, 600, 1200),
            **_FLOWERS,
        ),
        Recipe(
            name="digits",
            data="digits",
            images=None,
            epochs=25,
            patience=10,
            batch_size=32,
            learning_rate=1e-3,
            shift=2,
            noise=25.0,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe of `RECIPES`.

    Raises:
        ValueError: there is none of that name; the message gives the nearest.

    Example:
        >>> find_recipe("digits").batch_size
        32
    """
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, RECIPES))
    return RECIPES[name]


def load_data(recipe: Recipe, images: tuple[int, ...] | None = None) -> Data:
    """Return the pictures of a recipe: flowers are rendered, digits are read.

    Args:
        recipe: whose.
        images: how many flowers in (train, validation, test); None for the recipe's numbers.

    Raises:
        ValueError: the recipe names other data.
    """
    kind, _, variant = recipe.data.partition("/")
    if kind == "digits":
        from jaxplain.data.digits import CLASS_NAMES, digits

        train, validation, test = (digits(split) for split in ("train", "validation", "test"))
        names = CLASS_NAMES
    elif kind == "an8flower":
        from jaxplain.data import SPLITS
        from jaxplain.data.an8flower import dataset_arrays, find_variant

        names = find_variant(variant).class_names
        counts = images or recipe.images or (len(names) * 1000,) * 3
        train, validation, test = (
            dataset_arrays(variant, split, n) for split, n in zip(SPLITS, counts, strict=True)
        )
    else:
        raise ValueError(unknown("data", recipe.data, [r.data for r in RECIPES.values()]))
    parts = (Pictures(part.images, part.labels) for part in (train, validation, test))
    return Data(*parts, class_names=names)
