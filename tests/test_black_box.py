"""What a black box raises, and what is no key or target, in words that name it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain import superpixels
from jaxplain.black_box import own_words
from jaxplain.methods import lime, mint, occlusion
from jaxplain.model import Model

KEY = jax.random.key(0)
IMAGES = jnp.ones((1, 8, 8, 3))
FINE = superpixels.grid((8, 8), rows=4, columns=4)
TARGETS = jnp.array([1])


class OutOfTokensError(Exception):
    """What a server may say."""


def box_that_fails(error, after):
    """A box that answers a few times."""
    calls = []

    def box(images):
        calls.append(len(images))
        if len(calls) > after:
            raise error
        return images.mean((1, 2))

    return Model.from_black_box(box, 3)


def ask_lime(model, **options):
    return lime.explain(
        model, IMAGES, TARGETS, FINE, **{"key": KEY, "num_samples": 64, "chunk": 16} | options
    )


@pytest.mark.parametrize(
    ("ask", "after"),
    [
        (ask_lime, 2),
        (lambda model: ask_lime(model, tolerance=0.1), 2),
        (
            lambda model: mint.explain(
                model, IMAGES, TARGETS, (FINE // 8, FINE), key=KEY, num_samples=64, features="none"
            ),
            2,
        ),
        (lambda model: occlusion(model, IMAGES, TARGETS, window=4, stride=4), 0),
    ],
    ids=["lime", "lime with a tolerance", "mint", "occlusion"],
)
def test_what_a_black_box_raises_arrives_as_it_was_raised(ask, after):
    error = OutOfTokensError("come back tomorrow")
    with pytest.raises(OutOfTokensError, match=r"^come back tomorrow$") as caught:
        ask(box_that_fails(error, after))
    assert caught.value is error


def test_a_black_box_that_comes_to_return_another_shape_is_told():
    calls = []

    def box(images):
        calls.append(len(images))
        return np.zeros((len(images), 3 if len(calls) < 3 else 2))

    with pytest.raises(ValueError, match=r"returned shape \(16, 2\) for 16 images"):
        ask_lime(Model.from_black_box(box, 3))


def test_other_errors_of_the_runtime_stay_what_they_are():
    with pytest.raises(OutOfTokensError):
        ask_lime(box_that_fails(OutOfTokensError("once"), 2))

    def other(_):
        raise KeyError("not of a black box")

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="not of a black box"), own_words():
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(other, shape, x))(jnp.ones(())))


@pytest.mark.parametrize("key", [0, None, "0", np.float32(0), jnp.ones(2)])
def test_what_is_no_key_is_refused_by_name(key):
    model = Model.from_function(lambda _, x: x.mean((1, 2)))
    with pytest.raises(TypeError, match=r"key=.*jax\.random"):
        ask_lime(model, key=key)


@pytest.mark.parametrize("targets", [["cat"], np.array(["cat"]), "cat", [None]])
def test_targets_that_are_words_are_refused(targets):
    model = Model.from_function(lambda _, x: x.mean((1, 2)))
    for ask in (
        lambda: lime.explain(model, IMAGES, targets, FINE, key=KEY, num_samples=64),
        lambda: occlusion(model, IMAGES, targets, window=4, stride=4),
    ):
        with pytest.raises(TypeError, match=r"targets have dtype .*; expected integers"):
            ask()
