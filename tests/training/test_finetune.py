"""Fine-tuning: what stays stays bit for bit, what learns learns, and the file brings it all."""

import dataclasses
import functools
import json
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from jaxplain.data.labelled import Pictures, several
from jaxplain.models import MODELS, RANDOM, load_model, outline
from jaxplain.models.architecture import Architecture
from jaxplain.models.network import Network, Taps, batch_norm, conv, dropout
from jaxplain.models.weights import store
from jaxplain.preprocessing import Preprocessing
from jaxplain.trace.layers import capture
from jaxplain.training import FineTuning, fine_tune, open_data
from jaxplain.training.learners import Augmentation, Behind, cut_of, with_new_head
from jaxplain.training.objectives import OBJECTIVES

SHAPES = ("disc", "square", "stripes")
PREPROCESSING = Preprocessing((24, 24), (0.5, 0.4, 0.3), (0.25, 0.2, 0.25), resize=28)


class Small(Network):
    """Two convolutions with batch norm, an average of 2 x 2 parts, and two dense layers."""

    head: ClassVar[str] = "logits"

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        for number, width in ((1, 8), (2, 16)):
            x = conv(x, f"conv{number}", width, 3, stride=2, padding=1)
            x = tap(nn.relu(batch_norm(x, f"bn{number}", train)), f"conv{number}")
        x = x.reshape(x.shape[0], 2, 3, 2, 3, 16).mean((2, 4))
        x = tap(x, "avgpool").reshape(x.shape[0], -1)
        x = dropout(tap(nn.relu(nn.Dense(32, name="fc6")(x)), "fc6"), 0.25, train)
        return tap(nn.Dense(self.num_classes, name="logits")(x), "logits")


SMALL = Architecture(
    name="small",
    description="a network of these tests",
    build=lambda num_classes: Small(num_classes),
    num_classes=7,
    preprocessing=PREPROCESSING,
    default_layer="conv2",
    evidence_layer="conv1",
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr("jaxplain.models.MODELS", {"small": SMALL, "digits": MODELS["digits"]})


def shape(kind, random):
    """A picture of a shape, of any size, on a dull ground."""
    height, width = random.integers(30, 50, 2)
    picture = Image.new(
        "RGB", (int(width), int(height)), tuple(random.integers(60, 120, 3).tolist())
    )
    draw, colour = ImageDraw.Draw(picture), tuple(random.integers(170, 255, 3).tolist())
    x, y = width / 2 + random.integers(-3, 4), height / 2 + random.integers(-3, 4)
    if kind == "disc":
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour)
    elif kind == "square":
        draw.rectangle((x - 12, y - 12, x + 12, y + 12), outline=colour, width=2)
    else:
        for left in range(0, int(width), 6):
            draw.line((left, 0, left, int(height)), fill=colour, width=2)
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for number in range(60):
        path = folder / SHAPES[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        shape(SHAPES[number % 3], random).save(path)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return open_data(f"folder:{folder}")


def tuned(**options):
    given = {"model": "small", "data": "folder:shapes", "weights": RANDOM, "epochs": 2}
    return FineTuning(**(given | {"learning_rate": 1e-2} | options))


@functools.cache
def begun(classes=3, seed=0):
    """What a training of `small` begins with."""
    model = load_model("small", RANDOM)
    return with_new_head(model, classes, seed)


def moved(before, after):
    """Names of the variables that are not the same, bit for bit."""
    before, after = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (before, after)
    )
    assert set(before) == set(after)
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


@pytest.mark.parametrize(
    ("freeze", "changes", "free"),
    [
        ("features", {}, {"logits"}),
        ("convolutions", {"shift": 1, "flip": True}, {"logits", "fc6"}),
        ("none", {"flip": True}, {"logits", "fc6", "conv1", "conv2", "bn1", "bn2"}),
    ],
)
def test_what_is_frozen_does_not_move(data, freeze, changes, free):
    result = fine_tune(tuned(freeze=freeze, **changes), data)
    found = moved(begun().params, result.weights.variables)
    assert {name.split("/")[1] for name in found} == free
    assert any("batch_stats" in name for name in found) == (freeze == "none")


def test_a_new_head_learns_and_the_file_is_a_model(data, folder, tmp_path):
    tuning = tuned(epochs=30, batch_size=8, learning_rate=1e-1)
    result = fine_tune(tuning, data, weights=RANDOM)
    assert result.score >= 0.9
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    store.save(tmp_path / "shapes.safetensors", result.weights)
    model = load_model(tmp_path / "shapes.safetensors")
    assert (model.name, model.class_names, model.multilabel) == ("small", SHAPES, False)
    assert model.preprocessing == PREPROCESSING
    images = model.preprocessing.batch([data.test.images[i] for i in range(len(data.test.labels))])
    answers = np.asarray(model.probabilities(images)).argmax(-1)
    assert np.mean(answers == data.test.labels) == pytest.approx(result.score)
    with safe_open(tmp_path / "shapes.safetensors", "np") as file:
        said = {key: json.loads(text) for key, text in file.metadata().items() if text[0] in "{["}
    assert said["figures"]["test_accuracy"] == result.score
    assert said["figures"]["test_pictures"] == 12
    assert said["recipe"] == {
        **dataclasses.asdict(tuning),
        "seed": 0,
        "pictures": [39, 9, 12],
        "epochs_run": len(result.history),
    }


def test_several_classes_a_picture(tmp_path):
    random, table = np.random.default_rng(1), ["file,label"]
    for number in range(60):
        one, other = (
            ((0,), (1,), (0, 1), ())[number % 4],
            random.integers(0, 20, (32, 32, 3), np.uint8),
        )
        for place in one:
            other[4 + 14 * place :][:10, 4:28] += np.uint8(180)
        Image.fromarray(other).save(tmp_path / f"{number}.png")
        table.append(",".join([f"{number}.png", *(("top", "bottom")[place] for place in one)]))
    (tmp_path / "labels.csv").write_text("\n".join(table))
    data = open_data(f"folder:{tmp_path}", multilabel=True)
    result = fine_tune(tuned(head="multilabel", epochs=20, batch_size=8, learning_rate=3e-2), data)
    assert result.score >= 0.95
    assert result.weights.figures["test_mean_average_precision"] == result.score
    store.save(tmp_path / "own.safetensors", result.weights)
    model = load_model("small", tmp_path / "own.safetensors")
    assert model.multilabel
    assert model.class_names == ("bottom", "top")
    pictures = [data.test.images[i] for i in range(len(data.test.labels))]
    chances = np.asarray(model.probabilities(model.preprocessing.batch(pictures)))
    assert chances.sum(-1).min() < 0.9 < 1.1 < chances.sum(-1).max()
    assert np.mean((chances > 0.5) == data.test.labels) >= 0.8


class StoppedError(Exception):
    pass


def test_a_stopped_training_goes_on_to_the_same_weights(data, tmp_path):
    tuning = tuned(epochs=3, batch_size=12, shift=1, freeze="convolutions")
    seen = []
    # With no room in memory, what is prepared lies in files; the weights are the same.
    whole = fine_tune(tuning, data, memory=0, preparing=lambda *done: seen.append(done))
    assert seen == [(16, 60), (32, 60), (39, 60), (48, 60), (60, 60)]

    def stop(now):
        if now.step >= 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        fine_tune(tuning, data, checkpoint_dir=tmp_path, progress=stop)
    seen.clear()
    steps = []
    resumed = fine_tune(
        tuning,
        data,
        checkpoint_dir=tmp_path,
        preparing=lambda *done: seen.append(done),
        progress=lambda now: steps.append(now.step),
    )
    assert seen == []  # nothing goes through the frozen part again
    assert steps[0] > 3
    assert moved(whole.weights.variables, resumed.weights.variables) == set()
    assert whole.history == resumed.history
    with pytest.raises(ValueError, match=r"other work: epochs was 3, now 4"):
        fine_tune(dataclasses.replace(tuning, epochs=4), data, checkpoint_dir=tmp_path)
    changed = data._replace(test=Pictures(data.test.images, data.test.labels[::-1]))
    with pytest.raises(ValueError, match="other work: pictures was"):
        fine_tune(tuning, changed, checkpoint_dir=tmp_path)


def behind(freeze, inputs, augmentation):
    model = begun()
    last, trained = cut_of(model, freeze)
    rows = {"train": np.array([0, 1, 2]), "validation": np.array([1, 2, 0])}
    return Behind(model, last, trained, OBJECTIVES["softmax"], augmentation, inputs, rows)


@pytest.mark.parametrize("freeze", ["features", "convolutions"])
def test_the_part_behind_a_layer_trains_as_the_whole_would(freeze):
    """The same loss and slopes as of the whole network whose batch norm stays: dropout and all."""
    model, images = begun(), jax.random.normal(jax.random.key(1), (3, 24, 24, 3))
    labels, key = jnp.array([0, 1, 2]), jax.random.key(2)
    last = cut_of(model, freeze)[0]
    seen = jax.jit(lambda model, images: capture(model, images, [last])[last])(model, images)
    inputs = {"train": np.asarray(seen)}
    learner = behind(freeze, inputs, Augmentation(0, False, PREPROCESSING))
    first = learner.first()["params"]
    found, slopes = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))(
        first, {}, learner.frozen, jnp.asarray(inputs["train"]), labels, key
    )

    drop, _ = jax.random.split(key)

    def plain(params):
        """The dense layers by hand."""
        x = jnp.asarray(inputs["train"])
        if last == "avgpool":
            x = x.reshape(3, -1)
            x = nn.relu(x @ params["fc6"]["kernel"] + params["fc6"]["bias"][None])
        kept = dropped(drop, x.shape)
        x = jnp.where(kept, x / 0.75, 0)
        logits = x @ params["logits"]["kernel"] + params["logits"]["bias"][None]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    expected, expected_slopes = jax.jit(jax.value_and_grad(plain))(first)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), slopes, expected_slopes
    )


def dropped(key, shape):
    """Which units the dropout of a network keeps under a key."""

    class Only(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.25, deterministic=False, name="Dropout_0")(x)

    return Only().apply({}, jnp.ones(shape), rngs={"dropout": key}) > 0


def test_dropout_is_for_training_only():
    augmentation = Augmentation(0, False, PREPROCESSING)
    inputs = {"train": np.ones((3, 32), np.float32), "validation": np.ones((3, 32), np.float32)}
    learner = behind("features", inputs, augmentation)
    params = learner.first()
    losses = {
        float(
            learner.loss(params["params"], {}, learner.frozen, *learner.fetch(np.arange(3)), key)[0]
        )
        for key in jax.random.split(jax.random.key(0), 3)
    }
    assert len(losses) == 3
    assert learner.measure(params) == learner.measure(params)


def test_flips_and_shifts_change_training_pictures_only():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (30, 24, 24, 3), np.uint8))
    plain = Augmentation(0, False, PREPROCESSING)
    assert not plain
    key = jax.random.key(0)
    straight = np.asarray(plain(key, images))
    flipped = np.asarray(Augmentation(0, True, PREPROCESSING)(key, images))
    same = (flipped == straight).all((1, 2, 3))
    mirrored = (flipped == straight[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 5 < mirrored.sum() < 25
    pictures = [np.asarray(image) for image in images]
    same_size = dataclasses.replace(PREPROCESSING, resize=None)
    np.testing.assert_allclose(straight, same_size.batch(pictures), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "last", "dense"),
    [
        ("vgg19", "fc7", {"fc6", "fc7", "logits"}),
        ("alexnet", "fc7", {"fc6", "fc7", "logits"}),
        ("resnet18", "avgpool", {"fc"}),
        ("googlenet", "avgpool", {"fc"}),
    ],
)
def test_every_network_has_features_and_a_head(monkeypatch, name, last, dense):
    monkeypatch.undo()
    model = outline(name)
    head = {"logits"} & dense or {"fc"}
    assert cut_of(model, "features") == (last, head)
    assert cut_of(model, "convolutions") == ("avgpool", dense)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "smal"}, "unknown model 'smal'; nearest: small"),
        ({"head": "multi"}, "unknown head 'multi'; nearest: multilabel"),
        ({"freeze": "feature"}, "unknown freeze 'feature'; nearest: features"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"shift": -1}, "shift is -1"),
    ],
)
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        tuned(**options)


def test_labels_that_do_not_fit_are_refused(data):
    def replaced(**parts):
        return data._replace(
            **{
                split: Pictures(getattr(data, split).images, labels)
                for split, labels in parts.items()
            }
        )

    with pytest.raises(ValueError, match=r"train has labels \(39, 3\); expected \(n,\)"):
        fine_tune(tuned(), replaced(train=several(data.train.labels, 3)))
    with pytest.raises(ValueError, match=r"train has labels \(39,\); expected \(n, 3\)"):
        fine_tune(tuned(head="multilabel"), data)
    with pytest.raises(ValueError, match="test has 12 pictures, 3 labels"):
        fine_tune(tuned(), replaced(test=data.test.labels[:3]))
    with pytest.raises(ValueError, match="test has labels 0 to 3; expected 0 to 2"):
        fine_tune(tuned(), replaced(test=np.arange(12) % 4))
    with pytest.raises(ValueError, match="no training picture shows: square, stripes"):
        fine_tune(tuned(), replaced(train=np.zeros(39, int)))
    some = {split: several(getattr(data, split).labels, 3) for split in ("train", "test")}
    empty = np.zeros((9, 3), np.int8)
    with pytest.raises(ValueError, match="no picture for validation shows any of the 3 classes"):
        fine_tune(tuned(head="multilabel"), replaced(**some, validation=empty))
    strange = some | {"validation": empty + 1, "test": np.full((12, 3), 7, np.int8)}
    with pytest.raises(ValueError, match=r"test has labels \[7\]; expected 1, 0 or -1"):
        fine_tune(tuned(head="multilabel"), replaced(**strange))


def test_a_loss_that_is_not_finite_is_an_error(data):
    with pytest.raises(ValueError, match=r"the loss is .* in epoch .*learning rate"):
        fine_tune(tuned(learning_rate=1e38, warmup=0, freeze="none"), data)


def test_a_damaged_picture_is_named(tmp_path):
    for number in range(12):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "b" / "7.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"7\.png' is not a picture"):
        fine_tune(tuned(), open_data(f"folder:{tmp_path}"))
