"""Meaningful perturbations against the paper's objective, written out step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimised import IMAGES, MODEL, SIZE, TARGETS

from jaxplain.methods import meaningful_perturbation
from jaxplain.methods.descent import gaussian_matrix
from jaxplain.methods.masks import total_variation
from jaxplain.model import Model

KEY = jax.random.key(0)


@pytest.mark.parametrize("game", ["deletion", "preservation"])
def test_steps_equal_adam_written_out(game):
    steps, delete = 5, game == "deletion"
    found = meaningful_perturbation(
        MODEL, IMAGES, TARGETS, key=KEY, game=game, steps=steps, cells=5, jitter=0, initial="flat",
        blur=2.0, smooth=1.0, area_weight=0.001, variation_weight=0.02,
    )  # fmt: skip
    image, target = IMAGES[1], int(TARGETS[1])
    spread = [gaussian_matrix(n, 2.0) for n in SIZE[:2]]
    hidden = jnp.asarray(np.einsum("yh,xw,hwc->yxc", *spread, image))

    def enlarged(m):
        soft = [jnp.asarray(gaussian_matrix(n, 1.0)) for n in SIZE[:2]]
        return soft[0] @ jax.image.resize(m, SIZE[:2], "bilinear") @ soft[1].T

    @jax.jit
    def loss(m):
        wide = enlarged(m)[..., None]
        shown = MODEL((wide * image + (1 - wide) * hidden)[None])
        f_c = jax.nn.softmax(shown[0])[target]
        rough = sum(
            jnp.hypot(m[i + 1, j] - m[i, j], m[i, j + 1] - m[i, j]) ** 3
            for i in range(4)
            for j in range(4)
        )
        area = (1 - m).sum() if delete else m.sum()
        return 0.001 * area + 0.02 * rough + (f_c if delete else -f_c)

    m, first, second, history = np.full((5, 5), float(delete)), 0.0, 0.0, []
    # hypot has no derivative at zero; a slope of the flat start is that of what lies beside it.
    nudge = 1e-6 * np.random.default_rng(0).uniform(size=(5, 5)).astype(np.float32)
    for t in range(1, steps + 1):
        value, slope = jax.value_and_grad(loss)(jnp.asarray(m + nudge, jnp.float32))
        history.append(value)
        slope = np.asarray(slope, np.float64)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        m = m - 0.1 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        m = np.clip(m, 0, 1)
    np.testing.assert_allclose(found.cells[1], m, atol=2e-3)
    np.testing.assert_allclose(found.history[1], history, atol=1e-3)
    wide = enlarged(jnp.asarray(m, jnp.float32))
    np.testing.assert_allclose(found.heatmap[1], 1 - wide if delete else wide, atol=2e-3)
    assert float(jnp.ptp(found.heatmap[1])) > 0.05


LOOKS_LEFT = Model.from_function(
    lambda w, x: jnp.stack([x[:, :, :8].std((1, 2, 3)), x[:, :, 8:].std((1, 2, 3))], 1) * w,
    jnp.array([[8.0, 8.0]]),
)


@pytest.mark.parametrize("game", ["deletion", "preservation"])
def test_mask_goes_where_the_class_is(game):
    stripes = jnp.where(jnp.arange(16) % 2 == 0, 1.0, -1.0)[None, :, None, None]
    images, targets = jnp.broadcast_to(stripes, (2, 16, 16, 1)), jnp.array([0, 1])
    found = meaningful_perturbation(
        LOOKS_LEFT, images, targets, key=KEY, game=game, steps=100, cells=8, score="logit",
        area_weight=0.02,
    )  # fmt: skip
    left = found.heatmap[..., :8].mean((1, 2)) - found.heatmap[..., 8:].mean((1, 2))
    assert float(left[0]) > 0.3
    assert float(left[1]) < -0.3
    assert (found.history[:, -1] < found.history[:, 0]).all()


def test_start_is_the_smallest_disc_that_is_enough():
    def middle(w, x):
        """A logit that only the four pixels in the middle raise."""
        return jnp.stack([x[:, 7:9, 7:9].mean((1, 2, 3)), 0 * x.mean((1, 2, 3))], 1) * w

    model = Model.from_function(middle, jnp.ones((1, 2)))
    images = jnp.zeros((1, 16, 16, 1)).at[:, 7:9, 7:9].set(1.0)
    options = {"steps": 1, "learning_rate": 0.0, "cells": 16, "blur": 4.0, "smooth": 0.0}
    targets = jnp.array([0])
    found = meaningful_perturbation(
        model, images, targets, key=KEY, score="logit", jitter=0, **options
    ).heatmap[0]
    middle_is_hidden = found[7:9, 7:9].min() == 1
    assert middle_is_hidden
    assert found.sum() < 40


def test_key_decides_on_the_moves_only():
    options = {"steps": 3, "cells": 5, "initial": "flat"}
    first, other = (
        meaningful_perturbation(
            MODEL, IMAGES, TARGETS, key=jax.random.key(n), jitter=3, **options
        ).heatmap
        for n in (0, 1)
    )
    assert float(jnp.abs(first - other).max()) > 1e-4


def test_variation_has_derivatives_where_nothing_varies():
    flat = jnp.ones((3, 3))
    second = jax.jit(jax.hessian(lambda m: total_variation(m, 3.0)))(flat)
    np.testing.assert_array_equal(second, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"cells": 1}, "cells=1"),
        ({"jitter": -1}, "jitter=-1"),
        ({"jitter": 10}, "jitter=10"),
        ({"blur": -2.0}, "sigma=-2.0"),
        ({"smooth": -2.0}, "sigma=-2.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        meaningful_perturbation(MODEL, IMAGES, TARGETS, key=KEY, **options)
