"""Average images, against a slow search through all images at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import images, small

from jaxplain.methods.interpretation import Feature, average_images
from jaxplain.trace import capture

IMAGES = images(11)
FEATURES = [
    Feature("conv2", "convolution", 5, 1.0),
    Feature("fc", "dense", 2, 1.0),
    Feature("conv1", "convolution", 0, 1.0),
]


def slow(feature, top):
    """All responses, sorted; patches cut from images in a frame of NaN."""
    layer = next(known for known in small().layers() if known.name == feature.layer)
    a = np.asarray(capture(small(), jnp.asarray(IMAGES), [feature.layer])[feature.layer])
    a = a[..., feature.channel]
    values = a.reshape(len(a), -1).max(1)
    order = np.argsort(-values, kind="stable")[:top]
    if a.ndim == 1:
        return values[order], order, IMAGES[order].mean(0)
    field, frame = layer.receptive_field, 20
    framed = np.pad(IMAGES, ((0, 0), (frame,) * 2, (frame,) * 2, (0, 0)), constant_values=np.nan)
    patches = []
    for number in order:
        peak = np.unravel_index(a[number].argmax(), a.shape[1:])
        y, x = (o + p * s + frame for o, p, s in zip(field.offset, peak, field.stride, strict=True))
        patches.append(framed[number, y : y + field.size[0], x : x + field.size[1]])
    with np.errstate(all="ignore"):
        seen = np.isfinite(patches).sum(0)
        return values[order], order, np.where(seen, np.nansum(patches, 0) / seen, np.nan)


@pytest.mark.parametrize("size", [4, 11])
def test_a_stream_finds_what_a_search_finds(size):
    batches = (IMAGES[start : start + size] for start in range(0, 11, size))
    found = average_images(small(), batches, FEATURES, top=5)
    for number, feature in enumerate(FEATURES):
        values, order, average = slow(feature, 5)
        np.testing.assert_allclose(found.values[number], values, rtol=1e-5)
        np.testing.assert_array_equal(found.images[number], order)
        np.testing.assert_allclose(found.averages[number], average, atol=1e-5)
    assert found.of(FEATURES[::-1]) == [2, 1, 0]


def test_fewer_images_than_patches():
    found = average_images(small(), [IMAGES[:2]], FEATURES[:2], top=4)
    assert (found.images[:, 2:] == -1).all()
    assert np.isneginf(found.values[:, 2:]).all()
    np.testing.assert_allclose(found.averages[1], IMAGES[:2].mean(0), atol=1e-6)


def test_pictures_are_averaged_as_pictures():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3)).astype(np.uint8)
    found = average_images(small(), [pictures], FEATURES[1:2], top=3)
    np.testing.assert_allclose(found.averages[0], pictures.mean(0), rtol=1e-6)


def test_what_cannot_be_is_refused_by_name():
    for features, options, message in (
        ([], {}, "features is empty"),
        (FEATURES, {"top": 0}, "top is 0"),
        ([FEATURES[0]._replace(channel=6)], {}, "layer 'conv2' has no channel 6; it has 6"),
        ([FEATURES[0]._replace(layer="conv3")], {}, "unknown layer 'conv3'"),
    ):
        with pytest.raises(ValueError, match=message):
            average_images(small(), [IMAGES], features, **options)
    found = average_images(small(), [IMAGES], FEATURES[:1], top=1)
    with pytest.raises(ValueError, match="there is no average image of fc 2"):
        found.of(FEATURES[1:2])
