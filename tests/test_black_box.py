"""What a black box raises, and what is no key or target, in words that name it."""

import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain import superpixels
from jaxplain.black_box import BlackBox, own_words
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


def run(box):
    """Ask a black box from compiled code."""
    return jax.block_until_ready(jax.jit(BlackBox(box, 3))((), IMAGES))


def raising(words):
    def box(images):
        raise OutOfTokensError(words)

    return box


def test_an_error_of_before_is_not_taken_for_that_of_now():
    with pytest.raises(jax.errors.JaxRuntimeError, match="OutOfTokensError"):
        run(raising("once"))
    with own_words(), pytest.raises(jax.errors.JaxRuntimeError):
        run(raising("once"))
    told = jax.errors.JaxRuntimeError("OutOfTokensError: once")
    with pytest.raises(jax.errors.JaxRuntimeError) as caught, own_words():
        raise told
    assert caught.value is told


def test_an_error_of_other_words_is_not_taken_for_that_of_a_black_box():
    told = jax.errors.JaxRuntimeError("OutOfTokensError: tomorrow")

    @own_words()
    def ask():
        with pytest.raises(jax.errors.JaxRuntimeError):
            run(raising("today"))
        raise told

    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        ask()
    assert caught.value is told


def test_what_is_asked_meanwhile_does_not_make_an_error_forgotten():
    @own_words()
    def ask():
        try:
            run(raising("once"))
        except jax.errors.JaxRuntimeError:
            with own_words():
                run(lambda images: images.mean((1, 2)))
            raise

    with pytest.raises(OutOfTokensError, match=r"^once$"):
        ask()


def test_threads_are_told_what_their_own_black_boxes_raised():
    both = threading.Barrier(2, timeout=60)

    @own_words()
    def ask(words):
        try:
            run(raising(words))
        finally:
            both.wait()

    def told(words):
        with pytest.raises(OutOfTokensError) as caught:
            ask(words)
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(told, ("mine", "yours"))) == ["mine", "yours"]


@pytest.mark.parametrize("heard", [False, True])
def test_what_a_black_box_raised_is_not_kept(heard, monkeypatch):
    # JAX logs what callbacks raise, and pytest keeps what is logged.
    monkeypatch.setattr(logging.getLogger("jax._src.callback"), "disabled", True)
    kept = []

    def box(images):
        error = OutOfTokensError("once")
        kept.append(weakref.ref(error))
        raise error

    def ask():
        try:
            if heard:
                with own_words():
                    run(box)
            else:
                run(box)
        except (OutOfTokensError, jax.errors.JaxRuntimeError):
            return

    ask()
    gc.collect()
    assert [reference() for reference in kept] == [None]


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
