import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation.task import make_task

GOOD = {
    "images": np.zeros((5, 4, 6, 3), np.float32),
    "targets": np.array([0, 1, 1, 0, 1]),
    "masks": np.zeros((5, 4, 6), bool),
    "class_names": ("rose", "lily"),
    "batch_size": 2,
    "thresholds": (0.0, 0.5, 1.0),
    "tolerance": None,
}


def make(**changes):
    given = {**GOOD, **changes}
    return make_task(given.pop("images"), given.pop("targets"), given.pop("masks"), **given)


def test_batches_have_one_shape_and_the_last_is_filled_with_its_last_image():
    images = np.arange(5, dtype=np.float32)[:, None, None, None] + GOOD["images"]
    batches = list(make(images=images).batches())
    assert [batch.images[:, 0, 0, 0].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 4]]
    assert [batch.targets.tolist() for batch in batches] == [[0, 1], [1, 0], [1, 1]]
    assert [batch.kept for batch in batches] == [2, 2, 1]
    assert [batch.number for batch in batches] == [0, 1, 2]
    assert all(batch.masks.shape == (2, 4, 6) for batch in batches)


def test_a_batch_is_never_larger_than_the_set():
    assert make(batch_size=100).batch_size == 5


def test_tolerance_scales_with_the_image_unless_given():
    assert make().tolerance == 15 * 4 / 224
    assert make(tolerance=3).tolerance == 3


def test_device_arrays_and_lists_are_taken_too():
    task = make(images=jnp.asarray(GOOD["images"]), targets=[0, 1, 1, 0, 1])
    assert task.shape == (4, 6)
    assert task.count == 5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": np.zeros((5, 4, 6, 3), np.uint8)}, TypeError, "images .*uint8.*floats"),
        ({"targets": np.zeros(5)}, TypeError, "targets .*float64.*integers"),
        ({"masks": np.zeros((5, 4, 6))}, TypeError, "masks .*float64.*bool"),
        ({"images": np.zeros((5, 4, 6))}, ValueError, r"images .*\(5, 4, 6\)"),
        (
            {
                "images": np.zeros((0, 4, 6, 3)),
                "masks": np.zeros((0, 4, 6), bool),
                "targets": np.zeros(0, int),
            },
            ValueError,
            "at least one image",
        ),
        ({"masks": np.zeros((5, 6, 4), bool)}, ValueError, r"masks .*\(5, 6, 4\).*\(5, 4, 6\)"),
        ({"targets": np.zeros(4, int)}, ValueError, r"targets .*\(4,\).*\(5,\)"),
        ({"targets": np.array([0, 1, 2, 0, 1])}, ValueError, "targets hold 2.*from 0 to 1"),
        ({"targets": np.array([0, -1, 1, 0, 1]), "class_names": ()}, ValueError, "hold -1"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_bad_input_is_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_first_broken_image_is_named(broken):
    images = GOOD["images"].copy()
    images[3, 1, 2, 0] = broken
    with pytest.raises(ValueError, match=r"images\[3\] holds NaN or infinity"):
        make(images=images)
