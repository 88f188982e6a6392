"""Training of the networks that ship with the package."""

from jaxplain.data.labelled import Data, Pictures
from jaxplain.training.evidence import Evidence, find_evidence
from jaxplain.training.fit import TrainResult, fit, train
from jaxplain.training.loop import Epoch, Progress
from jaxplain.training.recipes import RECIPES, Recipe, find_recipe, load_data

__all__ = [
    "RECIPES",
    "Data",
    "Epoch",
    "Evidence",
    "Pictures",
    "Progress",
    "Recipe",
    "TrainResult",
    "find_evidence",
    "find_recipe",
    "fit",
    "load_data",
    "train",
]
