"""Training on made-up pictures: it learns, repeats itself, and survives being killed."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.models import load_model
from jaxplain.models.weights import store
from jaxplain.preprocessing import Preprocessing
from jaxplain.training import Data, Pictures, Recipe, find_recipe, fit, train
from jaxplain.training.fit import noisy, shifted
from jaxplain.training.loop import Epoch, best_epoch
from jaxplain.training.predict import normalise, predict

# The package's `fit` is the function; this is the module of that name.
MODULE = sys.modules["jaxplain.training.fit"]
LOOP = sys.modules["jaxplain.training.loop"]
SETTINGS = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}


def strokes(seed: int, n: int) -> Pictures:
    """Three classes of 28 x 28: a bright bar on the left, in the middle, on the right, in noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int32) % 3
    images = random.integers(0, 60, (n, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        left = 2 + 9 * label + random.integers(0, 3)
        image[4:24, left : left + 4] += 180
    return Pictures(images, labels)


def made_up() -> Data:
    return Data(strokes(0, 48), strokes(1, 12), strokes(2, 30), ("left", "middle", "right"))


@pytest.fixture(scope="module")
def uninterrupted():
    return train("digits", data=made_up(), **SETTINGS)


def leaves(result) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.weights.variables)]


def test_it_learns_and_says_so(uninterrupted):
    assert uninterrupted.score >= 0.9
    assert uninterrupted.history[-1].loss < uninterrupted.history[0].loss
    weights = uninterrupted.weights
    assert weights.class_names == ("left", "middle", "right")
    assert weights.recipe["epochs"] == 3
    assert weights.recipe["pictures"] == [48, 12, 30]
    assert weights.figures["test_accuracy"] == uninterrupted.score


def test_the_weights_say_what_they_were_trained_on(uninterrupted):
    assert uninterrupted.weights.recipe["data"] == "own pictures"


def test_the_weights_make_the_model_that_was_measured(uninterrupted, tmp_path):
    store.save(tmp_path / "w.safetensors", uninterrupted.weights)
    model = load_model("digits", tmp_path / "w.safetensors")
    test = made_up().test
    logits = model(jnp.asarray(model.preprocessing.batch(list(test.images))))
    assert np.mean(np.asarray(logits).argmax(-1) == test.labels) == uninterrupted.score


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(uninterrupted):
    again = train("digits", data=made_up(), **SETTINGS)
    for a, b in zip(leaves(uninterrupted), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    other = train("digits", data=made_up(), seed=1, **(SETTINGS | {"epochs": 1}))
    assert not np.array_equal(leaves(other)[0], leaves(again)[0])


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from training.test_fit import LOOP, SETTINGS, made_up
from jaxplain.training import train
LOOP.SAVE = LOOP.SYNC = 4

def progress(now):
    if now.step >= 11:
        os.kill(os.getpid(), signal.SIGKILL)

train("digits", data=made_up(), checkpoint_dir={folder!r}, progress=progress, **SETTINGS)
"""


def test_a_killed_training_goes_on_to_the_same_weights(uninterrupted, tmp_path, monkeypatch):
    # Killed in the second epoch, at step 12 of 18: the last checkpoint is of step 8.
    script = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "kept"))
    run = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert run.returncode == -signal.SIGKILL
    monkeypatch.setattr(LOOP, "SAVE", 4)
    monkeypatch.setattr(LOOP, "SYNC", 4)
    seen = []
    resumed = train(
        "digits",
        data=made_up(),
        checkpoint_dir=tmp_path / "kept",
        progress=lambda now: seen.append(now.step),
        **SETTINGS,
    )
    assert seen[0] > 8
    assert resumed.history == uninterrupted.history
    for a, b in zip(leaves(uninterrupted), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    # A finished training is only read.
    seen.clear()
    again = train("digits", data=made_up(), checkpoint_dir=tmp_path / "kept", **SETTINGS)
    np.testing.assert_array_equal(leaves(again)[0], leaves(resumed)[0])
    with pytest.raises(ValueError, match=r"other work: learning_rate was 0\.001, now 0\.002"):
        train(
            "digits",
            data=made_up(),
            checkpoint_dir=tmp_path / "kept",
            **(SETTINGS | {"learning_rate": 2e-3}),
        )
    data = made_up()
    data.train.images[0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="pictures was"):
        train("digits", data=data, checkpoint_dir=tmp_path / "kept", **SETTINGS)


def test_progress_counts_up_to_the_end(monkeypatch):
    monkeypatch.setattr(LOOP, "SYNC", 4)
    seen = []
    result = train("digits", data=made_up(), progress=seen.append, **(SETTINGS | {"epochs": 2}))
    assert [now.step for now in seen] == [4, 6, 6, 8, 12, 12]
    assert {now.steps for now in seen} == {12}
    assert [len(now.history) for now in seen] == [0, 0, 1, 1, 1, 2]
    assert all(np.isfinite(now.loss) for now in seen)
    # The mean of an epoch is that of its parts.
    parts = 4 * seen[0].loss + 2 * seen[1].loss
    assert result.history[0].loss == pytest.approx(parts / 6, rel=1e-5)


def test_it_stops_early_and_keeps_the_best(monkeypatch):
    recipe = Recipe(
        name="digits",
        data="digits",
        images=None,
        epochs=9,
        patience=2,
        batch_size=8,
        learning_rate=1e-4,
    )
    asked = []
    real = MODULE.predict

    def worse_and_worse(network, variables, pictures, preprocessing):
        logits = real(network, variables, pictures, preprocessing)
        if len(pictures.labels) != 12:
            return logits
        asked.append(variables)
        wrong = np.zeros_like(logits)
        wrong[np.arange(12), (pictures.labels + (len(asked) != 2)) % 3] = 1
        return wrong

    monkeypatch.setattr(MODULE, "predict", worse_and_worse)
    result = fit(recipe, made_up())
    assert [epoch.validation_score for epoch in result.history] == [0, 1, 0, 0]
    kernel = asked[1]["params"]["logits"]["kernel"]
    np.testing.assert_array_equal(result.weights.variables["params"]["logits"]["kernel"], kernel)


def test_thebest_epoch_is_the_most_accurate_then_the_surest():
    epochs = [Epoch(0, 0, loss, accuracy) for loss, accuracy in [(1, 0.9), (0.5, 0.9), (0.1, 0.8)]]
    assert best_epoch(tuple(epochs)) == 1


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match=r"the loss is .* in epoch 1.*learning rate"):
        train("digits", data=made_up(), epochs=1, batch_size=8, learning_rate=1e30)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 49}, "batch_size is 49; expected at most the 48"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        train("digits", data=made_up(), **settings)


def test_pictures_that_do_not_fit_are_refused():
    data = made_up()
    small = Pictures(data.test.images[:, :20], data.test.labels)
    with pytest.raises(ValueError, match=r"test pictures are uint8 \(30, 20, 28, 1\); expected"):
        train("digits", data=data._replace(test=small))
    with pytest.raises(ValueError, match="validation has labels 0 to 2; expected 0 to 1"):
        train("digits", data=data._replace(train=strokes(0, 2), class_names=("a", "b")))
    short = Pictures(data.train.images, data.train.labels[:9])
    with pytest.raises(ValueError, match="train has 48 pictures and 9 labels"):
        train("digits", data=data._replace(train=short))


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'digit'; nearest: digits"):
        train("digit")


def test_recipes_name_networks_and_data():
    for name in ("digits", "an8flower-single-6c", "an8flower-double-12c"):
        assert dataclasses.asdict(find_recipe(name))["name"] == name


def test_normalising_on_the_device_is_preprocessing():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    for order in ("RGB", "BGR"):
        p = Preprocessing((9, 7), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), order=order, scale=2.0)
        np.testing.assert_allclose(normalise(images, p), p.batch(list(images)), atol=1e-6)


def test_predictions_do_not_depend_on_how_they_are_cut():
    model = load_model("digits")
    pictures = strokes(3, 103)
    p = model.preprocessing
    found = predict(model.apply.module, model.params, pictures, p)
    expected = model(jnp.asarray(p.batch(list(pictures.images[-4:]))))
    assert found.shape == (103, 10)
    np.testing.assert_allclose(found[-4:], expected, rtol=1e-3, atol=1e-3)


def test_shifts_move_by_whole_pixels_and_repeat_the_edge():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (40, 6, 5, 1), dtype=np.uint8))
    moved = np.asarray(shifted(jax.random.key(0), images, 2))
    wide = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
    found = set()
    for old, new in zip(wide, moved, strict=True):
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(old[y : y + 6, x : x + 5], new)
        ]
        assert places
        found.add(places[0])
    assert len(found) > 10
    np.testing.assert_array_equal(shifted(jax.random.key(0), images, 0), images)


def test_noise_has_the_levels_asked_for():
    p = Preprocessing((50, 40), (0.5,), (0.25,))
    inputs = jnp.zeros((20, 50, 40, 1))
    moved = p.invert(noisy(jax.random.key(0), inputs, 10.0, p)) * 255
    assert np.std(moved) == pytest.approx(10, rel=0.02)
    np.testing.assert_array_equal(noisy(jax.random.key(0), inputs, 0.0, p), inputs)
