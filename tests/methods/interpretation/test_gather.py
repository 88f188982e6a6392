"""Descriptors and their statistics, against NumPy; any batches, devices and interruptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import CLASSES, images, planted, small
from jax.ad_checkpoint import checkpoint_name

from jaxplain.methods.interpretation import blocks, descriptors, gather
from jaxplain.model import Model
from jaxplain.sharding import data_mesh
from jaxplain.trace import capture

LAYERS = ("conv1", "pool1", "conv2", "fc")
IMAGES = images(10)
LABELS = np.arange(10) % CLASSES


def slow(squared=False):
    """Descriptors as §3.1 says, in float64."""
    found = capture(small(), jnp.asarray(IMAGES), LAYERS)
    parts = []
    for layer in LAYERS:
        a = np.asarray(found[layer], np.float64)
        norms = np.linalg.norm(a.reshape(len(a), -1, a.shape[-1]), axis=1)
        norms = norms**2 if squared else norms
        parts.append(norms / norms.sum(1, keepdims=True))
    return np.concatenate(parts, 1)


def stream(size, labels=LABELS):
    for start in range(0, 10, size):
        rows = slice(start, start + size)
        batch = {"image": IMAGES[rows]}
        yield batch if labels is None else batch | {"label": labels[rows]}


@pytest.fixture(scope="module")
def whole():
    return gather(small(), stream(4))


@pytest.mark.parametrize("squared", [False, True])
def test_descriptors_equal_their_definition(squared):
    found = descriptors(small(), jnp.asarray(IMAGES), squared=squared)
    np.testing.assert_allclose(found, slow(squared), atol=1e-6)


def test_layers_are_found_with_what_made_them():
    found = [tuple(block) for block in blocks(small())]
    assert found == [
        ("conv1", "convolution", 4), ("pool1", "pooling", 4), ("conv2", "convolution", 6),
        ("fc", "dense", 7),
    ]  # fmt: skip
    assert [block.layer for block in blocks(small(), skip_last=2)] == ["conv1", "pool1"]
    for options, message in (
        ({"skip_last": 4}, "skip_last is 4; expected fewer than all 4"),
        ({"skip_last": -1}, "skip_last is -1"),
        ({"layers": ["conv1", "conv1"]}, "each once"),
        ({"layers": ["conv3"]}, "unknown layer 'conv3'; nearest: conv"),
    ):
        with pytest.raises(ValueError, match=message):
            blocks(small(), **options)


def test_kinds_of_joined_and_averaged_layers():
    def apply(weights, x):
        w, matrix = weights
        y = checkpoint_name(x @ w, "pointwise")
        joined = checkpoint_name(jnp.concatenate([jax.nn.relu(y), y], -1), "joined")
        pooled = checkpoint_name(jnp.tensordot(joined, matrix, ((1,), (1,))), "pooled")
        mean = checkpoint_name(joined.mean((1, 2)), "mean")
        return mean @ jnp.ones((6, 2)) + pooled.sum((1, 2, 3))[:, None]

    model = Model.from_function(apply, (jnp.ones((3, 3)), jnp.ones((2, 4))), input_shape=(4, 4, 3))
    assert [block.kind for block in blocks(model)] == [
        "convolution", "convolution", "pooling", "pooling",
    ]  # fmt: skip


def test_statistics_equal_numpy(whole):
    x = slow()
    one_hot = np.eye(CLASSES)[LABELS]
    answers = np.eye(CLASSES)[np.asarray(small()(IMAGES)).argmax(1)]
    np.testing.assert_allclose(whole.gram, x.T @ x, atol=1e-6)
    np.testing.assert_allclose(whole.of("true")[0], one_hot.T @ x, atol=1e-6)
    np.testing.assert_allclose(whole.of("predicted")[0], answers.T @ x, atol=1e-6)
    np.testing.assert_array_equal(whole.images, [one_hot.sum(0), answers.sum(0)])
    assert (whole.count, whole.labelled) == (10, True)


def test_batches_devices_and_chunks_change_nothing(whole):
    several = np.eye(CLASSES, dtype=int)[LABELS]
    found = [
        gather(small(), stream(10), chunk=1),
        gather(small(), stream(3, several), mesh=data_mesh(jax.devices()[:3]), chunk=2),
    ]
    for other in found:
        np.testing.assert_allclose(other.gram, whole.gram, atol=1e-6)
        np.testing.assert_allclose(other.corr, whole.corr, atol=1e-6)
        np.testing.assert_array_equal(other.images, whole.images)


def test_interrupted_it_ends_with_the_same_bits(tmp_path, whole):
    def broken():
        yield from list(stream(4))[:2]
        raise OSError("the disk is gone")

    same = {"chunk": 4, "every": 1}
    expected = gather(small(), stream(4), **same)
    with pytest.raises(OSError, match="gone"):
        gather(small(), broken(), checkpoint=tmp_path, **same)
    seen = []
    found = gather(small(), stream(4), checkpoint=tmp_path, progress=seen.append, **same)
    assert seen[0].resumed == 8
    np.testing.assert_array_equal(found.gram, expected.gram)
    np.testing.assert_array_equal(found.corr, expected.corr)
    with pytest.raises(ValueError, match="of other work: squared was False, now True"):
        gather(small(), stream(4), checkpoint=tmp_path, squared=True, **same)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches is empty"),
        ([{"image": IMAGES, "label": LABELS[:3]}], ValueError, "labels of shape"),
        ([{"image": IMAGES, "label": LABELS + 1}], ValueError, "labels from 1 to 5"),
        ([{"image": IMAGES, "label": LABELS / 1}], TypeError, "dtype float64"),
        ([{"image": IMAGES, "label": LABELS}, {"image": IMAGES}], ValueError, "has no labels"),
        ([IMAGES[..., :2]], ValueError, "2 channels"),
        ([np.full_like(IMAGES, np.nan)], ValueError, "NaN"),
    ],
)
def test_bad_batches_are_refused_by_name(batches, error, message):
    with pytest.raises(error, match=message):
        gather(small(), batches)


def test_images_without_labels_have_the_networks_answers_only():
    found = gather(planted(), [np.ones((3, 2, 3, 12), np.float32)])
    assert not found.labelled
    with pytest.raises(ValueError, match="came without labels"):
        found.of("true")
    with pytest.raises(ValueError, match="unknown labels 'predict'; nearest: predicted"):
        found.of("predict")


def test_bad_options_are_refused_by_name():
    for options in ({"every": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="is 0; expected at least 1"):
            gather(small(), stream(4), **options)
    box = Model.from_black_box(lambda x: x.mean((1, 2)), 3)
    with pytest.raises(ValueError, match="black"):
        gather(box, stream(4))
