"""The loop over samples and the blend of images, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.methods.perturbed import blend, in_chunks, perturbed_logits
from jaxplain.model import Model

IMAGES = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 99])
def test_every_sample_counts_once_at_any_chunk(chunk):
    seen = in_chunks(lambda s, n: s.at[n].add(1), jnp.zeros(12, int), 10, chunk=chunk, start=2)
    assert seen.tolist() == [0, 0] + [1] * 10


@pytest.mark.parametrize(("count", "chunk"), [(10, 4), (97, 16), (100, 32), (7, 9)])
def test_no_step_is_larger_than_a_chunk_and_few_are_smaller(count, chunk):
    sizes = []

    def step(total, numbers):
        sizes.append(len(numbers))
        return total + len(numbers)

    with jax.disable_jit():
        assert in_chunks(step, 0, count, chunk=chunk) == count
    assert max(sizes) <= chunk
    assert min(sizes[:-1], default=chunk) > min(chunk, count) // 2
    assert len(set(sizes)) <= 2


@pytest.mark.parametrize("given", [{"count": 0, "chunk": 1}, {"count": 1, "chunk": 0}])
def test_nothing_to_do_is_refused(given):
    with pytest.raises(ValueError, match="=0: at least 1"):
        in_chunks(lambda s, n: s, 0, **given)


def test_blend_is_exact_at_the_ends_and_linear_between():
    masks = jnp.array([0.0, 1.0, 0.5]).reshape(3, 1, 1, 1) * jnp.ones((3, 1, 4, 5))
    filling = IMAGES.mean((1, 2), keepdims=True)
    none, all_, half = blend(IMAGES, masks, filling)
    np.testing.assert_array_equal(none, jnp.broadcast_to(filling, IMAGES.shape))
    np.testing.assert_array_equal(all_, IMAGES)
    np.testing.assert_allclose(half, (IMAGES + filling) / 2, rtol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_each_blend(shared):
    weights = jax.random.normal(jax.random.key(1), (3, 4))
    model = Model.from_function(lambda w, x: jnp.tanh(x.mean((1, 2)) @ w), weights)
    masks = jax.random.uniform(jax.random.key(2), (6, 1 if shared else 2, 4, 5))
    found = perturbed_logits(model, IMAGES, masks, 0.5)
    for n in range(6):
        for b in range(2):
            mask = np.asarray(masks)[n, 0 if shared else b, ..., None]
            shown = mask * np.asarray(IMAGES)[b] + (1 - mask) * 0.5
            np.testing.assert_allclose(found[n, b], model(shown[None])[0], rtol=1e-4, atol=1e-5)


def test_a_black_box_sees_chunks():
    sizes = []

    def box(images):
        sizes.append(len(images))
        return images.mean((1, 2))

    model = Model.from_black_box(box, 3)

    def step(total, numbers):
        masks = (numbers / 10).reshape(-1, 1, 1, 1) * jnp.ones((1, 1, 4, 5))
        return total + perturbed_logits(model, IMAGES, masks).sum(0)

    total = in_chunks(step, jnp.zeros((2, 3)), 10, chunk=5)
    np.testing.assert_allclose(total, 4.5 * IMAGES.mean((1, 2)), rtol=1e-5, atol=1e-5)
    assert sizes == [10, 10]
