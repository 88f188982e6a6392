"""What a report says about a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.cli import facts
from jaxplain.model import Model


def test_probabilities_are_those_of_the_model_and_compiled_once():
    """Batch by batch, as pictures are read: only the first one is traced."""
    traced = []

    def network(scale, images):
        traced.append(images.shape)
        return images.mean((1, 2)) * scale

    model = Model.from_function(network, jnp.asarray(3.0))
    images = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype(np.float32)
    found = [facts.probabilities(model, part, chunk=2) for part in (images[:3], images[3:])]
    assert traced == [(2, 4, 4, 3)]
    powers = np.exp(3 * images.mean((1, 2), dtype=np.float64))
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)


def test_answers_that_are_not_finite_are_refused():
    broken = Model.from_function(lambda w, x: x.mean((1, 2)) * w, jnp.asarray(np.nan), name="net")
    with pytest.raises(ValueError, match="model 'net' answers with values that are not finite"):
        facts.probabilities(broken, np.ones((1, 2, 2, 3), np.float32), chunk=1)
