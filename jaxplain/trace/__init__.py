"""Reading and transforming a model's computation: layers, and sweeps with rules."""

from jaxplain.trace import rules
from jaxplain.trace.backward import Audit, Backpropagation, Matched, UncoveredError, backpropagate
from jaxplain.trace.layers import capture, edit, split
from jaxplain.trace.rules import RuleSet

__all__ = [
    "Audit",
    "Backpropagation",
    "Matched",
    "RuleSet",
    "UncoveredError",
    "backpropagate",
    "capture",
    "edit",
    "rules",
    "split",
]
