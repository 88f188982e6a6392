"""`Model`: adapters, the pytree, what it refuses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from jaxplain.model import Model, check_images

IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 2)), jnp.float32)


def mean(p, x):
    return x.mean((1, 2)) @ p


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool, gates=None):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)).mean((1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x if gates is None else x * gates[None])


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(self.conv(x)).mean((1, 2))))


def linen_model():
    module = Linen()
    variables = module.init(jax.random.key(0), IMAGES, train=False)
    return Model.from_linen(module, variables, call={"train": False})


def test_a_function():
    model = Model.from_function(mean, jnp.ones((2, 3)), class_names=["a", "b", "c"])
    np.testing.assert_array_equal(model(IMAGES), mean(jnp.ones((2, 3)), IMAGES))
    assert model.class_names == ("a", "b", "c")


def test_linen_passes_its_arguments_and_edits():
    model = linen_model()
    expected = Linen().apply(model.params, IMAGES, train=False)
    np.testing.assert_array_equal(model(IMAGES), expected)
    expected = Linen().apply(model.params, IMAGES, train=False, gates=jnp.zeros(4))
    np.testing.assert_array_equal(model(IMAGES, gates=jnp.zeros(4)), expected)


def test_a_function_is_no_module():
    with pytest.raises(TypeError, match=r"module is a function; expected a flax\.linen\.Module"):
        Model.from_linen(mean, {})
    with pytest.raises(TypeError, match=r"module is a function; expected a flax\.nnx\.Module"):
        Model.from_nnx(mean)


def test_nnx_runs_in_inference_mode_and_leaves_the_module_as_it_was():
    module = Nnx()
    model = Model.from_nnx(module)
    np.testing.assert_array_equal(model(IMAGES), model(IMAGES))
    np.testing.assert_allclose(model(IMAGES)[:1], model(IMAGES[:1]), rtol=1e-4, atol=1e-5)
    assert not module.norm.use_running_average
    assert not module.dropout.deterministic
    module.eval()
    np.testing.assert_allclose(model(IMAGES), module(IMAGES), rtol=1e-5, atol=1e-6)


def test_parameters_are_the_leaves():
    model = Model.from_function(mean, {"w": jnp.ones((2, 3))}["w"], name="net")
    assert len(jax.tree.leaves(model)) == 1
    doubled = jax.tree.map(lambda a: 2 * a, model)
    np.testing.assert_array_equal(doubled(IMAGES), 2 * model(IMAGES))
    assert doubled.name == "net"


@pytest.mark.parametrize(
    "build", [linen_model, lambda: Model.from_function(mean, jnp.ones((2, 3)))]
)
def test_gradients_by_the_model(build):
    model = build()
    found = jax.jit(jax.grad(lambda m: (m(IMAGES) ** 2).sum()))(model)
    assert isinstance(found, Model)
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(found))
    assert max(float(abs(a).max()) for a in jax.tree.leaves(found)) > 0


def test_vmap_over_models():
    models = Model.from_function(mean, jnp.stack([jnp.ones((2, 3)), jnp.zeros((2, 3))]))
    found = jax.vmap(lambda m: m(IMAGES))(models)
    np.testing.assert_array_equal(found[1], jnp.zeros((2, 3)))


def test_a_model_can_be_jitted_itself_and_compared():
    model = Model.from_function(mean, jnp.ones((2, 3)))
    np.testing.assert_allclose(jax.jit(model)(IMAGES), model(IMAGES), rtol=1e-6)
    assert model == Model.from_function(mean, model.params)
    assert model != Model.from_function(mean, jnp.zeros((2, 3)))
    assert model != Model.from_function(mean, model.params, name="other")
    assert model != "model"
    assert len({model, Model.from_function(mean, model.params)}) == 1


@pytest.mark.parametrize("library", tiny.MODELS)
def test_two_models_of_equal_modules_share_a_compilation(library):
    traced = []

    @jax.jit
    def run(model, x):
        traced.append(model)
        return model(x)

    images, _ = tiny.inputs()
    for _ in range(2):
        run(tiny.MODELS[library](), images)
    assert len(traced) == 1


def test_unknown_descriptions_are_refused():
    with pytest.raises(TypeError, match="clas_names"):
        Model.from_function(mean, (), clas_names=("a",))


@pytest.mark.parametrize(("images", "error", "message"), [
    (np.zeros((2, 6, 6, 2), np.uint8), TypeError, "uint8"),
    (np.zeros((6, 6, 2), np.float32), ValueError, r"\(6, 6, 2\)"),
    (np.zeros((1, 6, 6, 4), np.float32), ValueError, "4 channels; model 'net' takes 2"),
])  # fmt: skip
def test_bad_images_are_refused(images, error, message):
    model = Model.from_function(mean, (), input_shape=(6, 6, 2), name="net")
    with pytest.raises(error, match=message):
        check_images(images, model)


@pytest.mark.parametrize("library", tiny.MODELS)
def test_images_of_a_size_that_dense_layers_cannot_take_are_refused_with_the_size_they_can(library):
    model = dataclasses.replace(tiny.MODELS[library](), input_shape=(32, 32, 3), name="net")
    with pytest.raises(ValueError, match=r"48 × 32 pixels.*'net'.*input_shape is \(32, 32, 3\)"):
        check_images(np.zeros((2, 48, 32, 3), np.float32), model)


def test_a_size_that_a_network_can_take_is_tried_once():
    traced = []

    def apply(params, images):
        traced.append(images.shape)
        return mean(params, images)

    model = Model.from_function(apply, jnp.ones((2, 3)), input_shape=(6, 6, 2))
    for _ in range(2):
        assert check_images(np.zeros((3, 9, 7, 2), np.float32), model).shape == (3, 9, 7, 2)
    assert traced == [(1, 9, 7, 2)]
    check_images(np.zeros((3, 6, 6, 2), np.float32), model)
    assert len(traced) == 1


def test_a_network_that_fails_at_any_size_is_not_said_to_have_the_wrong_one():
    model = Model.from_function(mean, "no matrix", input_shape=(6, 6, 2))
    assert check_images(np.zeros((1, 9, 7, 2), np.float32), model).shape == (1, 9, 7, 2)


def test_good_images_become_arrays():
    assert isinstance(check_images(np.zeros((1, 6, 6, 2), np.float32)), jax.Array)


def test_layers_need_an_image_shape():
    with pytest.raises(ValueError, match="image_shape is needed"):
        Model.from_function(mean, ()).layers()


def test_a_function_of_images_alone_is_sent_to_the_black_boxes():
    with pytest.raises(TypeError, match="from_black_box"):
        Model.from_function(lambda images: np.asarray(images).mean((1, 2)))
