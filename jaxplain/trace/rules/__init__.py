r"""Rules: what a site sends backwards instead of its derivative.

Two families share one sweep (`jaxplain.trace.backward`):

- *gradient rules* receive the cotangent that arrives at the site's output and return the one for
  its input (guided backprop, deconvnet, unit stride);
- *relevance rules* receive the relevance $R_{out}$ that arrives and return $c = R_{in}/x$, or
  $R_{in}$ itself as `Relevance` where the rule does not start from $x$ (layer-wise relevance
  propagation, excitation backprop).
"""

from jaxplain.trace.rules.composites import (
    SMOOTH,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    excitation_rules,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_gamma,
    lrp_z_plus,
    relevance_rules,
)
from jaxplain.trace.rules.gradient import (
    DECONVNET,
    GUIDED_BACKPROP,
    NO_RULES,
    Deconv,
    Guided,
    UnitStride,
    unit_stride,
)
from jaxplain.trace.rules.relevance import (
    AlphaBeta,
    Epsilon,
    Excitation,
    Flat,
    Gamma,
    Pass,
    ZBox,
)
from jaxplain.trace.rules.rule import At, Relevance, Rule, RuleSet, divide, stabilise

__all__ = [
    "DECONVNET",
    "GUIDED_BACKPROP",
    "NO_RULES",
    "SMOOTH",
    "AlphaBeta",
    "At",
    "Deconv",
    "Epsilon",
    "Excitation",
    "Flat",
    "Gamma",
    "Guided",
    "Pass",
    "Relevance",
    "Rule",
    "RuleSet",
    "UnitStride",
    "ZBox",
    "divide",
    "epsilon_alpha2_beta1",
    "epsilon_gamma_box",
    "epsilon_plus",
    "excitation_rules",
    "lrp_alpha_beta",
    "lrp_epsilon",
    "lrp_gamma",
    "lrp_z_plus",
    "relevance_rules",
    "stabilise",
    "unit_stride",
]
