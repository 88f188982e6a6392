"""Pooling against loops over windows."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.models.pooling import adaptive_average_pool, average_pool, max_pool


def pooled(x, size, stride, low, high, *, ceil=False, reduce=np.max, fill=-np.inf):
    """Pool (H, W) window by window; with `ceil`, windows that start inside may hang over."""
    rounding = math.ceil if ceil else math.floor
    counts = []
    for length in x.shape:
        count = rounding((length + low + high - size) / stride) + 1
        if ceil and (count - 1) * stride >= length + low:
            count -= 1
        counts.append(count)
    room = np.full([n + low + high + size for n in x.shape], fill)
    room[low : low + x.shape[0], low : low + x.shape[1]] = x
    return np.array(
        [
            [
                reduce(room[i * stride : i * stride + size, j * stride : j * stride + size])
                for j in range(counts[1])
            ]
            for i in range(counts[0])
        ]
    )


def batched(x):
    return jnp.asarray(x, jnp.float32)[None, ..., None]


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    list(itertools.product([(7, 12), (13, 8)], [2, 3], [1, 2], [(0, 0), (1, 1), (0, 1)])),
)
@pytest.mark.parametrize("ceil", [False, True])
def test_max_pool(shape, size, stride, padding, ceil):
    x = np.random.default_rng(0).standard_normal(shape)
    ours = max_pool(batched(x), "pool", size, stride=stride, padding=padding, ceil=ceil)
    np.testing.assert_allclose(
        ours[0, ..., 0], pooled(x, size, stride, *padding, ceil=ceil), rtol=1e-6
    )


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_the_first_of_equal_values_wins_as_in_torch(size, stride, padding):
    # Behind a ReLU, and where a photograph is white, windows are full of ties.
    x = np.random.default_rng(4).integers(0, 3, (9, 10)).astype(float)
    _, pull = jax.vjp(
        lambda x: max_pool(x, "pool", size, stride=stride, padding=padding), batched(x)
    )
    arriving = np.random.default_rng(5).standard_normal(
        pooled(x, size, stride, padding, padding).shape
    )
    slow = np.zeros((9 + 2 * padding, 10 + 2 * padding))
    padded = np.pad(x, padding, constant_values=-np.inf)
    for i, j in np.ndindex(arriving.shape):
        window = padded[i * stride : i * stride + size, j * stride : j * stride + size]
        row, column = np.unravel_index(np.argmax(window), window.shape)
        slow[i * stride + row, j * stride + column] += arriving[i, j]
    inside = slow[padding : padding + 9, padding : padding + 10]
    np.testing.assert_allclose(pull(batched(arriving))[0][0, ..., 0], inside, rtol=1e-5, atol=1e-6)


def test_ceil_mode_drops_a_window_that_would_start_in_the_padding():
    x = np.arange(4.0).reshape(2, 2)
    # Windows would start at -1, 1 and 3 of positions 0 and 1: torch leaves the last one out.
    assert max_pool(batched(x), "pool", 1, stride=2, padding=1, ceil=True).shape == (1, 2, 2, 1)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (3, 2, 1)])
def test_average_pool_counts_padding_as_zeros(size, stride, padding):
    x = np.random.default_rng(1).standard_normal((9, 6))
    ours = average_pool(batched(x), "pool", size, stride=stride, padding=padding)
    slow = pooled(x, size, stride, padding, padding, reduce=np.mean, fill=0.0)
    np.testing.assert_allclose(ours[0, ..., 0], slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 7), (14, 21), (10, 5), (1, 1), (8, 13), (3, 20)])
@pytest.mark.parametrize("target", [(7, 7), (1, 1), (6, 6)])
def test_adaptive_average_pool(shape, target):
    x = np.random.default_rng(2).standard_normal(shape)
    slow = [
        [
            x[
                i * shape[0] // target[0] : math.ceil((i + 1) * shape[0] / target[0]),
                j * shape[1] // target[1] : math.ceil((j + 1) * shape[1] / target[1]),
            ].mean()
            for j in range(target[1])
        ]
        for i in range(target[0])
    ]
    ours = adaptive_average_pool(batched(x), target)
    np.testing.assert_allclose(ours[0, ..., 0], slow, rtol=1e-5, atol=1e-6)


def test_a_window_that_does_not_fit_is_refused():
    x = jnp.ones((1, 2, 5, 1))
    for pool in (max_pool, average_pool):
        with pytest.raises(ValueError, match="too small: layer 'pool4' gets 2x5 positions"):
            pool(x, "pool4", 3, stride=2)
    with pytest.raises(ValueError, match="nothing to average"):
        adaptive_average_pool(jnp.ones((1, 0, 5, 1)), (1, 1))
