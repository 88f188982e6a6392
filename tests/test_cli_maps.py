"""Runs of methods for the command line: who shares one, and that nothing else changes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.cli.maps import Task, run_methods
from jaxplain.methods import METHODS, Method
from jaxplain.model import Model

IMAGES = np.random.default_rng(0).random((5, 8, 8, 1)).astype(np.float32)
MODEL = Model.from_function(lambda _, x: x.mean((1, 2)) * jnp.arange(1.0, 3.0), None)
TASK = Task(MODEL, IMAGES, np.zeros(5, np.int32), seed=0, chunk=2)


class Both(NamedTuple):
    """Two maps of one run."""

    heatmap: jax.Array
    bright: jax.Array


def counting(calls):
    def explain(model, images, targets):
        calls.append(len(images))
        return Both(-images.mean(-1), images.mean(-1))

    return explain


def method(name, function, view=None, options=()):
    return Method(
        name, name, function, lambda maps: maps, "Does.", "X 2020", view=view, options=options
    )


def dark(found):
    return found


def bright(found):
    return found._replace(heatmap=found.bright)


def test_methods_that_read_one_run_have_it_once():
    calls, alone, ticks = [], [], []
    once = counting(calls)
    other = method("other", counting(alone))
    methods = [method("dark", once, dark), other, method("bright", once, bright)]
    found, skipped = run_methods(methods, TASK, tick=ticks.append)
    assert calls == alone == [2, 2, 2]
    assert list(found) == ["dark", "other", "bright"]
    assert not skipped
    assert sorted(ticks) == sorted(["dark", "other", "bright"] * 3)
    np.testing.assert_allclose(found["bright"].heatmaps, IMAGES[..., 0])
    np.testing.assert_allclose(found["dark"].heatmaps, -IMAGES[..., 0])
    assert found["dark"].seconds == found["bright"].seconds


@pytest.mark.parametrize(
    "options", [(("layer", "conv1"),), (("samples", 3),)], ids=lambda options: options[0][0]
)
def test_other_options_are_another_run(options):
    def explain(model, images, targets, **given):
        calls.append(given)
        return Both(images.mean(-1), images.mean(-1))

    calls = []
    run_methods([method("a", explain, dark), method("b", explain, dark, options)], TASK)
    assert sorted(map(len, calls)) == [0, 0, 0, 1, 1, 1]


def test_a_refusal_is_told_of_every_method_of_the_run():
    def explain(model, images, targets):
        raise ValueError("no layers here")

    methods = [method("a", explain, dark), method("b", explain, bright)]
    found, skipped = run_methods(methods, TASK, forgiving=True)
    assert not found
    assert skipped == {"a": "no layers here", "b": "no layers here"}


def test_both_scales_of_mint_are_one_run():
    coarse, fine = METHODS["mint_coarse"], METHODS["mint_fine"]
    assert coarse.shares(fine)
    assert not coarse.shares(METHODS["lime"])
