"""Occlusion against a loop over windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.methods import occlusion
from jaxplain.model import Model

X = jax.random.normal(jax.random.key(1), (2, 9, 11, 3))
T = jnp.array([1, 0])
WEIGHTS = jax.random.normal(jax.random.key(2), (9, 11, 3, 2))
MODEL = Model.from_function(
    lambda w, x: jnp.einsum("bhwc,hwck->bk", jnp.tanh(x), w, precision="highest"), WEIGHTS
)


def _scores(images):
    logits = np.asarray(MODEL(images), np.float64)
    return np.take_along_axis(logits, np.asarray(T)[:, None], 1)[:, 0]


def _by_loop(window, stride, baseline):
    total, times = np.zeros(X.shape[:3]), np.zeros(X.shape[1:3])
    for top in range(0, -(-(9 - window[0]) // stride[0]) * stride[0] + 1, stride[0]):
        for left in range(0, -(-(11 - window[1]) // stride[1]) * stride[1] + 1, stride[1]):
            area = np.s_[:, top : top + window[0], left : left + window[1]]
            covered = np.array(X)
            covered[area] = np.broadcast_to(baseline, X.shape)[area]
            total[area] += (_scores(X) - _scores(jnp.asarray(covered)))[:, None, None]
            times[area[1:]] += 1
    return total / times


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(
    ("window", "stride"),
    [((3, 3), (3, 3)), ((4, 5), (2, 3)), ((1, 1), (1, 1)), ((9, 11), (9, 11)), ((2, 11), (1, 4))],
)
def test_equals_the_loop(window, stride, chunk):
    found = occlusion(MODEL, X, T, window=window, stride=stride, baseline=0.3, chunk=chunk)
    np.testing.assert_allclose(found, _by_loop(window, stride, 0.3), rtol=1e-4, atol=1e-4)


def test_no_more_windows_than_a_chunk_are_made_at_once():
    """Whatever is left behind whole chunks, too."""
    sizes = []

    def counted(images):
        sizes.append(len(images))
        return np.asarray(images).mean((1, 2))

    box = Model.from_black_box(counted, 3)
    images, targets = jnp.ones((1, 13, 13, 3)), jnp.array([0])
    occlusion(box, images, targets, window=3, stride=1, chunk=8).block_until_ready()
    assert max(sizes) <= 8
    assert sum(sizes) == 1 + 11 * 11  # the image as it is, and every window


def test_baseline_may_be_an_image():
    blurred = X.mean((1, 2), keepdims=True)
    found = occlusion(MODEL, X, T, window=3, stride=2, baseline=blurred)
    np.testing.assert_allclose(found, _by_loop((3, 3), (2, 2), blurred), rtol=1e-4, atol=1e-4)


def test_covering_nothing_changes_nothing():
    found = occlusion(MODEL, X, T, window=3, baseline=X)
    np.testing.assert_allclose(found, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 10}, "window=10"),
        ({"window": 0}, "window"),
        ({"window": 2, "stride": 3}, "never be covered"),
        ({"window": 2, "chunk": 0}, "chunk=0"),
        ({"window": 2, "stride": -1}, "stride=-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        occlusion(MODEL, X, T, **options)
