"""Training: of the networks that ship with the package, and of new heads for any network."""

from jaxplain.data.labelled import Data, Pictures
from jaxplain.training.evidence import Evidence, find_evidence
from jaxplain.training.finetune import FineTuning, fine_tune
from jaxplain.training.fit import TrainResult, fit, train
from jaxplain.training.loop import Epoch, Progress
from jaxplain.training.recipes import RECIPES, Recipe, find_recipe, load_data
from jaxplain.training.sources import in_memory, open_data

__all__ = [
    "RECIPES",
    "Data",
    "Epoch",
    "Evidence",
    "FineTuning",
    "Pictures",
    "Progress",
    "Recipe",
    "TrainResult",
    "find_evidence",
    "find_recipe",
    "fine_tune",
    "fit",
    "in_memory",
    "load_data",
    "open_data",
    "train",
]
