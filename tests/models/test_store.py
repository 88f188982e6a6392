"""The package's own files of weights: what is saved is loaded, and what is wrong is listed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxplain.models import find_architecture
from jaxplain.models.lenet import LeNet
from jaxplain.models.weights.store import Weights, load, save
from jaxplain.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((10, 10), (0.25,), (0.5,))
# A small network, so that files are, too.
TINY = dataclasses.replace(
    find_architecture("digits"),
    name="tiny",
    build=lambda classes: LeNet(classes, widths=(2, 3), kernels=(3, 3)),
    num_classes=4,
    preprocessing=PREPROCESSING,
)


@pytest.fixture(scope="module")
def weights():
    variables = TINY.build(4).init(jax.random.key(0), jnp.zeros((1, 10, 10, 1)))
    return Weights(
        variables=variables,
        architecture="tiny",
        num_classes=4,
        preprocessing=PREPROCESSING,
        class_names=("a", "<b>", "ü", "d"),
        recipe={"epochs": 3, "images": [1, 2]},
        figures={"test_accuracy": 0.75},
    )


@pytest.fixture
def path(weights, tmp_path):
    save(tmp_path / "tiny.safetensors", weights)
    return tmp_path / "tiny.safetensors"


def rewritten(path, change, metadata=None):
    """The file, changed by another library: without our checksum."""
    arrays = dict(load_file(path))
    change(arrays)
    save_file(arrays, path, metadata)
    return path


def test_what_is_saved_is_loaded(weights, path):
    found = load(path, TINY)
    jax.tree.map(np.testing.assert_array_equal, found.variables, weights.variables)
    for field in dataclasses.fields(Weights):
        if field.name != "variables":
            assert getattr(found, field.name) == getattr(weights, field.name)


def test_the_same_weights_make_the_same_file(weights, path, tmp_path):
    save(tmp_path / "again.safetensors", weights)
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_everything_that_does_not_fit_is_listed(path):
    def change(arrays):
        del arrays["params/conv1/bias"], arrays["params/logits/bias"]
        arrays["params/conv2/kernel"] = np.zeros((5, 5, 2, 3), np.float32)
        arrays["params/conv7/kernel"] = np.zeros(3, np.float32)
        arrays["other"] = np.zeros(1, np.float32)

    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is taken apart below
        load(rewritten(path, change), TINY)
    message = str(raised.value)
    for part in (
        "params/conv1/bias",
        "params/logits/bias",
        "params/conv2/kernel",
        "(5, 5, 2, 3)",
        "(3, 3, 2, 3)",
        "params/conv7/kernel",
        "other",
    ):
        assert part in message


def test_what_is_not_finite_is_listed_beside_what_does_not_fit(path):
    def change(arrays):
        arrays["params/conv1/bias"] = np.array([0, np.nan], np.float32)
        arrays["params/conv2/kernel"] = np.full((5, 5, 2, 3), np.inf, np.float32)
        del arrays["params/logits/bias"]

    with pytest.raises(ValueError, match="does not fit") as raised:
        load(rewritten(path, change), TINY)
    message = str(raised.value)
    assert "1 missing: params/logits/bias; 1 of another shape: params/conv2/kernel" in message
    assert "; 2 with NaN or infinity: params/conv1/bias, params/conv2/kernel" in message


def test_all_tensors_that_are_not_finite_are_listed(path):
    def change(arrays):
        arrays["params/conv1/bias"] = np.array([0, np.nan], np.float32)
        arrays["params/conv2/kernel"] = np.full((3, 3, 2, 3), np.inf, np.float32)

    with pytest.raises(ValueError, match="conv1/bias") as raised:
        load(rewritten(path, change), TINY)
    assert "conv2/kernel" in str(raised.value)


@pytest.mark.parametrize("kept", ["crc32", "another"])
def test_what_is_wrong_is_listed_beside_a_checksum_that_is_not_right(path, kept):
    def change(arrays):
        del arrays["params/conv1/kernel"]
        arrays["params/conv7/kernel"] = np.zeros(3, np.float32)
        arrays["params/conv2/bias"] = np.zeros(7, np.float32)
        arrays["params/logits/bias"] = np.full(4, np.nan, np.float32)

    header = {"format": "jaxplain", kept: "0"}
    with pytest.raises(ValueError, match="another program changed it: its checksum is") as raised:
        load(rewritten(path, change, header), TINY)
    message = str(raised.value)
    assert "; 1 missing: params/conv1/kernel; 1 not of this network: params/conv7/kernel" in message
    assert "; 1 of another shape: params/conv2/bias (7,), expected (3,)" in message
    assert message.endswith("; 1 with NaN or infinity: params/logits/bias")


def test_integers_are_refused(path):
    def change(arrays):
        arrays["params/conv1/bias"] = np.zeros(2, np.int32)

    with pytest.raises(ValueError, match="conv1/bias"):
        load(rewritten(path, change), TINY)


def test_half_precision_is_widened(weights, path):
    def change(arrays):
        for name in arrays:
            arrays[name] = arrays[name].astype(np.float16)

    found = load(rewritten(path, change), TINY)
    kernel = found.variables["params"]["conv1"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, weights.variables["params"]["conv1"]["kernel"], rtol=1e-3)


def test_a_file_without_our_header_fits_too(path):
    found = load(rewritten(path, lambda arrays: None), TINY)
    assert (found.architecture, found.preprocessing, found.class_names) == ("", None, ())
    assert found.num_classes == 4


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.safetensors"):
        load(path, TINY)


def test_no_flipped_bit_goes_unseen(path):
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tiny\.safetensors"):
            load(path, TINY)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere.safetensors", TINY)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_classes", '"4"', "num_classes is '4'"),
        ("num_classes", "0", "num_classes is 0"),
        ("num_classes", "true", "num_classes is True"),
        ("num_classes", "1000000000000", "num_classes is 1000000000000"),
        ("class_names", '["a", 1]', "class_names is"),
        ("class_names", '["a", "b"]', "2 class names for 4 classes"),
        ("class_names", "[", "class_names in the header is not JSON"),
        ("recipe", "[]", r"recipe is \[\]; expected an object"),
        ("figures", "3", "figures is 3; expected an object"),
        ("architecture", "3", "architecture is 3; expected a name"),
        ("multilabel", "1", "multilabel is 1; expected true or false"),
        ("preprocessing", '{"size": [10, 10]}', "lacks mean, std"),
    ],
)
def test_a_wrong_header_is_refused(path, key, value, said):
    rewritten(path, lambda arrays: None, {"num_classes": "4", key: value})
    with pytest.raises(ValueError, match=said):
        load(path, TINY)


def test_other_classes_than_the_files_are_a_misfit(path):
    with pytest.raises(ValueError, match=r"num_classes is 7, but .*logits/kernel\) has 4 classes"):
        load(path, TINY, num_classes=7)


def test_without_a_header_the_head_tells_the_number_of_classes(path):
    def change(arrays):
        arrays["params/logits/kernel"] = np.zeros((3, 9), np.float32)
        arrays["params/logits/bias"] = np.zeros(9, np.float32)

    assert load(rewritten(path, change), TINY).num_classes == 9


def test_weights_of_another_network_are_refused(weights, tmp_path):
    save(tmp_path / "x.safetensors", dataclasses.replace(weights, architecture="huge"))
    with pytest.raises(ValueError, match="holds weights of 'huge', which are none of 'tiny'"):
        load(tmp_path / "x.safetensors", TINY)


def test_weights_that_are_not_finite_are_not_saved(weights, tmp_path):
    broken = jax.tree.map(jnp.array, weights.variables)
    broken["params"]["conv1"]["bias"] = jnp.array([jnp.inf, 0])
    with pytest.raises(ValueError, match="conv1/bias"):
        save(tmp_path / "x.safetensors", dataclasses.replace(weights, variables=broken))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_os_error(weights, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "x.safetensors", weights)


def test_a_failed_save_leaves_the_old_file(weights, path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, dataclasses.replace(weights, recipe={"data": object()}))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["tiny.safetensors"]


def test_the_header_is_json_that_others_can_read(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["figures"]) == {"test_accuracy": 0.75}
    assert json.loads(metadata["class_names"]) == ["a", "<b>", "ü", "d"]
