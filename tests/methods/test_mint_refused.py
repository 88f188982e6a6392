"""What MINT refuses besides its own options: answers and hiding pictures that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain import superpixels
from jaxplain.methods import mint
from jaxplain.model import Model

SEGMENTS = tuple(superpixels.grid((8, 8), rows=n, columns=n) for n in (2, 4))
IMAGES = jnp.ones((2, 8, 8, 1))


def _answers(images):
    return np.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], 1)


def explain(box, **options):
    model, options = Model.from_black_box(box, 2), {"features": "none", "num_samples": 64} | options
    key = jax.random.key(0)
    return mint.explain(model, IMAGES, jnp.array([0, 1]), SEGMENTS, key=key, **options)


@pytest.mark.parametrize(
    ("box", "options", "error", "message"),
    [
        (lambda x: _answers(x)[:, 0], {}, ValueError, "returned"),
        (lambda x: _answers(x)[:, :1], {}, ValueError, "returned"),
        (lambda x: _answers(x)[:1], {}, ValueError, "returned"),
        (lambda x: None, {}, (TypeError, ValueError), "returned"),
        (_answers, {"hide": np.zeros((8, 7, 1))}, ValueError, r"hide has shape \(8, 7, 1\)"),
        (_answers, {"hide": np.zeros((3, 8, 8, 1))}, ValueError, r"hide has shape \(3, 8, 8, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(box, options, error, message):
    with pytest.raises(error, match=message):
        explain(box, **options)


@pytest.mark.parametrize("tolerance", [None, 0.1])
@pytest.mark.parametrize(
    "options",
    [
        {"coupling": 1.0},
        {"fine_rho": 1.0},
        {"method": "nested", "coarse_rho": 0.0},
        {"method": "newton"},
        {"width": 0.0},
    ],
    ids=lambda options: list(options)[-1],
)
def test_bad_options_are_refused_before_a_sample_is_drawn(options, tolerance):
    asked = []

    def box(images):
        asked.append(len(images))
        return _answers(images)

    name = list(options)[-1]
    with pytest.raises(ValueError, match=name):
        explain(box, tolerance=tolerance, **options)
    # The images themselves are shown, to see that the answers fit.
    assert asked == [len(IMAGES)]
