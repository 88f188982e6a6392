"""`MODELS` and `load_model`: what is named is there, what is not is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.model import Model
from jaxplain.models import MODELS, RANDOM, SHIPPED, _chosen, load_model, outline, parameter_count
from jaxplain.models.architecture import Architecture, Foreign
from jaxplain.models.lenet import LeNet
from jaxplain.models.weights import store
from jaxplain.preprocessing import Preprocessing

LAYERED = ("default_layer", "evidence_layer")
SHIPPED_MODELS = [name for name, row in MODELS.items() if SHIPPED in row.weights]


def test_names_are_unique_and_rows_complete():
    names = list(MODELS)
    assert len(set(names)) == len(names) == len(MODELS)
    for name, architecture in MODELS.items():
        assert architecture.name == name
        assert architecture.description
        assert architecture.input_shape[-1] in (1, 3)


@pytest.mark.parametrize("name", [*SHIPPED_MODELS, "alexnet"])  # more: test_structure.py
def test_the_layers_that_a_row_names_are_the_networks(name):
    layers = {layer.name: layer.shape for layer in outline(name).layers()}
    for field in LAYERED:
        assert getattr(MODELS[name], field) in layers
    assert len(layers[MODELS[name].default_layer]) == 3
    assert layers["logits" if "logits" in layers else "fc"] == (MODELS[name].num_classes,)


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_shipped_weights_say_what_they_are_and_fit(name):
    model = load_model(name)
    assert model.name == name
    assert len(model.class_names) == MODELS[name].num_classes
    assert model.preprocessing.input_shape == model.input_shape
    weights = store.load(_shipped(name), MODELS[name])
    assert weights.architecture == weights.recipe["name"] == name
    assert weights.figures["test_accuracy"] >= (0.97 if name == "digits" else 0.98)


def test_the_digit_classifier_reads_held_out_digits():
    from jaxplain.data.digits import digits

    model, test = load_model("digits"), digits("test")
    logits = model(jnp.asarray(model.preprocessing.batch(list(test.images))))
    assert np.mean(np.asarray(logits).argmax(-1) == test.labels) >= 0.97


@pytest.mark.parametrize("name", [name for name in SHIPPED_MODELS if name != "digits"])
def test_the_flower_classifiers_know_held_out_flowers_by_the_right_part(name):
    from jaxplain.data.an8flower import find_variant, render

    variant = MODELS[name].name.removeprefix("an8flower-").replace("-", "_")
    model, classes = load_model(name), len(find_variant(variant).class_names)
    assert model.class_names == find_variant(variant).class_names
    scenes = [range(classes), [(label + 1) % classes for label in range(classes)]]
    for labels in scenes:  # as they are, and the same scenes painted as the next class
        pictures = [
            render(i, variant=variant, split="test", label=label).image
            for i, label in enumerate(labels)
        ]
        logits = model(jnp.asarray(model.preprocessing.batch(pictures)))
        assert np.mean(np.asarray(logits).argmax(-1) == labels) >= 0.9


def _shipped(name):
    from importlib import resources

    return resources.files("jaxplain.models.weights") / MODELS[name].weights[SHIPPED]


def test_loading_twice_shares_compilations():
    first, second = load_model("digits"), load_model("digits")
    assert jax.tree.structure(first) == jax.tree.structure(second)
    traced = []

    @jax.jit
    def run(model, x):
        traced.append(1)
        return model(x)

    run(first, jnp.zeros((1, 28, 28, 1)))
    run(second, jnp.ones((1, 28, 28, 1)))
    assert len(traced) == 1


@pytest.mark.parametrize(("name", "near"), [("digit", "digits"), ("an8flower-single", "single-6c")])
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; nearest: .*{near}"):
        load_model(name)


def test_nothing_is_loaded_silently_where_nothing_ships():
    with pytest.raises(ValueError, match=r"no weights of 'alexnet' ship .*'imagenet', 'random'"):
        load_model("alexnet")
    with pytest.raises(ValueError, match="unknown weights 'shipped' of 'alexnet'"):
        load_model("alexnet", SHIPPED)
    with pytest.raises(ValueError, match="unknown weights 'imagenet' of 'digits'"):
        load_model("digits", "imagenet")


def test_random_weights_are_the_same_every_time_and_not_the_shipped():
    first, second = load_model("digits", RANDOM), load_model("digits", RANDOM)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    shipped = load_model("digits").params["params"]["conv1"]["kernel"]
    assert not np.array_equal(first.params["params"]["conv1"]["kernel"], shipped)
    assert load_model("digits", RANDOM, num_classes=3)(jnp.zeros((1, 28, 28, 1))).shape == (1, 3)


def test_a_mapping_of_arrays_is_taken_and_checked():
    shipped = load_model("digits")
    same = load_model("digits", shipped.params)
    jax.tree.map(np.testing.assert_array_equal, same.params, shipped.params)
    params = {name: dict(layer) for name, layer in shipped.params["params"].items()}
    del params["conv1"]["bias"]
    params["extra"] = {"bias": np.zeros(2)}
    with pytest.raises(ValueError, match=r"params/conv1/bias.*params/extra/bias"):
        load_model("digits", {"params": params})


def test_a_file_brings_its_classes_names_and_preprocessing(tmp_path):
    model = load_model("digits", RANDOM, num_classes=3)
    preprocessing = Preprocessing((28, 28), (0.5,), (0.1,))
    weights = store.Weights(model.params, "digits", 3, preprocessing, ("x", "y", "z"))
    store.save(tmp_path / "own.safetensors", weights)
    found = load_model("digits", tmp_path / "own.safetensors")
    assert found.class_names == ("x", "y", "z")
    assert found.preprocessing == preprocessing
    assert found(jnp.zeros((1, 28, 28, 1))).shape == (1, 3)
    with pytest.raises(ValueError, match=r"num_classes is 5, but .*logits/kernel\) has 3 classes"):
        load_model("digits", str(tmp_path / "own.safetensors"), num_classes=5)
    # The file alone says all of it.
    again = load_model(tmp_path / "own.safetensors")
    assert (again.name, again.class_names, again.multilabel) == ("digits", ("x", "y", "z"), False)
    with pytest.raises(ValueError, match="holds weights of 'digits', which are none of 'an8f"):
        load_model("an8flower-single-6c", tmp_path / "own.safetensors")


def test_a_file_that_does_not_say_what_it_is(tmp_path):
    model = load_model("digits", RANDOM, num_classes=3)
    store.save(tmp_path / "own.safetensors", store.Weights(model.params, "", 3))
    with pytest.raises(ValueError, match="does not say which network it is of; name it: one of"):
        load_model(tmp_path / "own.safetensors")
    with pytest.warns(UserWarning, match="does not name its 3 classes; they are numbered"):
        found = load_model("digits", tmp_path / "own.safetensors")
    assert found.class_names == ()
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="does not say which network"):
        load_model(str(tmp_path / "a.pth"))
    with pytest.raises(FileNotFoundError, match="gone"):
        load_model(tmp_path / "gone.safetensors")


def test_independent_classes_travel_with_the_weights(tmp_path):
    model = load_model("digits", RANDOM, num_classes=2)
    weights = store.Weights(model.params, "digits", 2, class_names=("a", "b"), multilabel=True)
    store.save(tmp_path / "own.safetensors", weights)
    found = load_model(tmp_path / "own.safetensors")
    assert found.multilabel
    images = jnp.ones((1, 28, 28, 1))
    np.testing.assert_allclose(found.probabilities(images), jax.nn.sigmoid(found(images)))
    np.testing.assert_allclose(model.probabilities(images), jax.nn.softmax(found(images)))


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        (3, TypeError, "weights are a int; expected 'imagenet', 'random', 'hf:owner/name', a path"),
        (True, TypeError, "weights are a bool"),
        (b"x", TypeError, "weights are a bytes"),
        ("imagnet", ValueError, "unknown weights 'imagnet' of 'vgg11'; expected 'imagenet', 'ra"),
        ("", ValueError, "weights are an empty text; expected 'imagenet'"),
        (".", IsADirectoryError, "weights '.' are a folder; expected a file in it"),
        ("a/b", FileNotFoundError, "there is no file of weights 'a/b'"),
        ("b.h5", FileNotFoundError, "there is no file of weights 'b.h5'"),
    ],
)
def test_wrong_weights_say_what_there_is_to_choose_from(weights, error, said):
    with pytest.raises(error, match=said):
        _chosen(MODELS["vgg11"], weights)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load_model("digits", tmp_path / "none.safetensors")


def test_another_image_size_travels_into_the_preprocessing():
    model = load_model("digits", image_size=(40, 36))
    assert model.input_shape == (40, 36, 1)
    picture = np.zeros((50, 60), np.uint8)
    assert model(jnp.asarray(model.preprocessing.batch([picture]))).shape == (1, 10)
    with pytest.raises(ValueError, match="too small"):
        load_model("digits", image_size=12)


@pytest.mark.parametrize(
    ("sizes", "error", "said"),
    [
        ({"image_size": 0}, ValueError, "image_size is 0; expected at least 1"),
        ({"image_size": (40, -1)}, ValueError, r"image_size is \(40, -1\); expected at least 1"),
        ({"image_size": 28.0}, TypeError, "image_size is 28.0; expected whole numbers"),
        ({"image_size": (40, "36")}, TypeError, "expected whole numbers, '36' is a str"),
        ({"image_size": (28, 28, 1)}, ValueError, r"expected one side or \(height, width\)"),
        ({"num_classes": 0}, ValueError, "num_classes is 0; expected at least 1"),
        ({"num_classes": 2.5}, TypeError, "num_classes is 2.5; expected whole numbers"),
        ({"num_classes": True}, ValueError, "num_classes is True"),
    ],
)
def test_sizes_that_are_none_are_refused_by_argument(sizes, error, said):
    with pytest.raises(error, match=said):
        load_model("digits", **sizes)


def test_pictures_that_are_too_small_are_refused_before_weights_are_looked_for():
    with pytest.raises(
        ValueError, match="image_size is 20, too small for 'alexnet': layer 'pool2'"
    ):
        load_model("alexnet", "imagenet", image_size=20)


def test_parameters_of_any_tree_are_counted():
    model = Model.from_function(lambda p, x: x.mean((1, 2)) @ p[0], [jnp.ones((3, 2)), jnp.ones(4)])
    assert parameter_count(model) == 10


def test_weights_of_others_reach_the_rows_own_reader(monkeypatch):
    asked = []

    def foreign(source, num_classes):
        asked.append((source, num_classes))
        variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        return Foreign(variables, Preprocessing((8, 8), (0.1,), (0.2,), resize=10), ("p", "q"))

    network = LeNet(2, widths=(2, 3), kernels=(3, 3))
    row = Architecture(
        name="own",
        description="a network of this test",
        build=lambda num_classes: network.clone(num_classes=num_classes),
        num_classes=2,
        preprocessing=Preprocessing((8, 8), (0.0,), (1.0,)),
        default_layer="conv2",
        evidence_layer="pool1",
        weights={"elsewhere": "own.bin"},
        foreign=foreign,
    )
    monkeypatch.setattr("jaxplain.models.MODELS", {"own": row})
    model = load_model("own", "elsewhere", image_size=16)
    assert asked == [("elsewhere", None)]
    assert model.class_names == ("p", "q")
    assert model.preprocessing == Preprocessing((16, 16), (0.1,), (0.2,), resize=20)


def test_an_outline_has_shapes_only():
    model = outline("vgg16")
    assert parameter_count(model) == 138_357_544  # torchvision's count
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize("name", ["digits", "an8flower-single-6c", "an8flower-double-12c"])
def test_the_model_knows_the_layers_of_its_architecture(name):
    model, architecture = load_model(name), MODELS[name]
    assert model.default_layer == architecture.default_layer
    assert model.evidence_layer == architecture.evidence_layer


@pytest.mark.parametrize("name", [3, None, b"digits"])
def test_a_name_that_is_none_is_told(name):
    with pytest.raises(TypeError, match=r"^name is .*; expected that of a network or the path of"):
        load_model(name)
