"""Solvers that answer with a certificate; they know nothing of images and can be used alone.

Least-squares problems arrive as Gram statistics (`gram`), are solved many at a time (`lasso`,
`two_scale`, `mu_lasso`, `ridge`), and come back as a `Solution` with a bound on how far from
optimal it is. Convex solutions are differentiable in their problem's data. `descend` is the
projected Adam that mask methods use.
"""

from typing import TYPE_CHECKING, Any

from jaxplain.solvers import gram
from jaxplain.solvers.admm import lasso
from jaxplain.solvers.gram import Statistics, statistics
from jaxplain.solvers.loop import Certificate, Run, Solution, iterate
from jaxplain.solvers.prox import (
    ball_threshold,
    project_box,
    project_l1_ball,
    project_l1_ball_nonnegative,
    project_simplex,
    soft_threshold,
)
from jaxplain.solvers.ridge import Linear, ridge
from jaxplain.solvers.spg import mu_lasso
from jaxplain.solvers.two_scale import TwoScale, two_scale

if TYPE_CHECKING:
    from jaxplain.solvers.adam import Descent, descend

__all__ = [
    "Certificate",
    "Descent",
    "Linear",
    "Run",
    "Solution",
    "Statistics",
    "TwoScale",
    "ball_threshold",
    "descend",
    "gram",
    "iterate",
    "lasso",
    "mu_lasso",
    "project_box",
    "project_l1_ball",
    "project_l1_ball_nonnegative",
    "project_simplex",
    "ridge",
    "soft_threshold",
    "statistics",
    "two_scale",
]


def __getattr__(name: str) -> Any:
    """Import Optax with what needs it, and not with every lasso."""
    if name in ("Descent", "descend"):
        from jaxplain.solvers import adam

        return getattr(adam, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
