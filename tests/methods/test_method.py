"""What every method checks before it computes, in eager and in compiled code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.methods import gradient, occlusion
from jaxplain.model import Model

IMAGES = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
TARGETS = jnp.array([1, 0])
MODEL = Model.from_function(
    lambda w, x: jnp.tanh(x).mean((1, 2)) @ w["head"], {"head": jnp.ones((3, 2))}
)


@pytest.mark.parametrize("method", [gradient, occlusion])
def test_images_may_be_constants_of_compiled_code(method):
    expected = method(MODEL, IMAGES, TARGETS)
    of_targets = jax.jit(lambda targets: method(MODEL, IMAGES, targets))(TARGETS)
    of_nothing = jax.jit(lambda: method(MODEL, IMAGES, TARGETS))()
    np.testing.assert_allclose(of_targets, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(of_nothing, expected, rtol=1e-5, atol=1e-7)
    broken = IMAGES.at[1, 0, 0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match="first in image 1"):
        jax.jit(lambda targets: method(MODEL, broken, targets))(TARGETS)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_named(value):
    gradient(MODEL, IMAGES, TARGETS)
    broken = dataclasses.replace(MODEL, params={"head": MODEL.params["head"].at[0, 0].set(value)})
    for _ in range(2):  # what was refused is refused again
        with pytest.raises(ValueError, match="parameters hold NaN or infinity: head"):
            gradient(broken, IMAGES, TARGETS)
    # Traced parameters are not known: their fault is in the data.
    found = jax.jit(lambda model: gradient(model, IMAGES, TARGETS))(broken)
    assert not np.isfinite(found).all()


@pytest.mark.parametrize(
    ("apply", "error", "said"),
    [
        (lambda _, x: x.sum(), ValueError, r"shape \(\) for 2 images"),
        (lambda _, x: x.mean((1, 2))[:1], ValueError, r"shape \(1, 3\) for 2 images"),
        (lambda _, x: (x.mean((1, 2)), x), TypeError, "returns a tuple"),
    ],
)
def test_what_is_no_logits_is_refused(apply, error, said):
    with pytest.raises(error, match=said):
        gradient(Model.from_function(apply), IMAGES, TARGETS)


def test_an_option_that_does_not_exist_suggests_the_nearest():
    with pytest.raises(TypeError, match="unknown option 'scores'; nearest: score"):
        gradient(MODEL, IMAGES, TARGETS, scores="logit")
