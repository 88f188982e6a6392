"""Black boxes: functions on the host, and which methods explain them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import BRIEF

from jaxplain.methods import METHODS, occlusion
from jaxplain.model import Model

WEIGHTS = np.random.default_rng(0).standard_normal((8 * 6 * 2, 3)).astype(np.float32)
TARGETS = jnp.array([0, 2])
needing = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.gradient], ids=lambda m: m.name
)
running = pytest.mark.parametrize(
    "method", [m for m in BRIEF.values() if not m.gradient], ids=lambda m: m.name
)


def server(images):
    """NumPy, in and out; it even writes into what it was given."""
    assert isinstance(images, np.ndarray)
    images *= 0.5
    return np.tanh(images.reshape(len(images), -1)) @ WEIGHTS


def same(params, images):
    return jnp.tanh((images * 0.5).reshape(images.shape[0], -1)) @ WEIGHTS


@pytest.fixture
def model():
    return Model.from_black_box(server, 3, input_shape=(8, 6, 2), name="server")


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (2, 8, 6, 2))


@pytest.fixture
def twin():
    return Model.from_function(same, (), input_shape=(8, 6, 2))


def test_it_computes_anywhere(model, twin, images):
    expected = twin(images)
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(model)(images), expected, rtol=1e-5, atol=1e-5)
    stacked = jnp.stack([images, 2 * images, -images]).reshape(3, 1, 2, 8, 6, 2)
    mapped = jax.jit(jax.vmap(jax.vmap(model)))(stacked)
    np.testing.assert_allclose(mapped[2, 0], twin(-images), rtol=1e-5, atol=1e-5)
    assert mapped.shape == (3, 1, 2, 3)
    assert mapped.dtype == jnp.float32


def test_many_large_images_pass():
    model = Model.from_black_box(lambda x: x.mean((1, 2)), 3)
    images = jnp.ones((16, 224, 224, 3))
    np.testing.assert_allclose(jax.jit(model)(images), jnp.ones((16, 3)), rtol=1e-5)


@running
def test_methods_that_only_run_the_network_explain_it(method, model, twin, images):
    assert method.inapplicable(model) is None
    key = jax.random.key(0)
    found = method.explain(model, images, TARGETS, key=key).heatmap
    expected = method.explain(twin, images, TARGETS, key=key).heatmap
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_occlusion_asks_for_all_windows_of_a_step_at_once(images):
    sizes = []

    def counted(pictures):
        sizes.append(len(pictures))
        return server(pictures)

    occlusion(Model.from_black_box(counted, 3), images, TARGETS, window=2, stride=2, chunk=12)
    assert sorted(sizes) == [2, 24]


@needing
def test_methods_that_need_derivatives_refuse_it_by_name(method, model, images):
    message = f"method '{method.name}' needs derivatives.*model 'server', a black box.*'occlusion'"
    with pytest.raises(ValueError, match=message):
        method.explain(model, images, TARGETS, key=jax.random.key(0))
    assert "black box" in method.inapplicable(model)
    assert "black box" in method.inapplicable(Model.from_black_box(server, 3))
    with pytest.raises(ValueError, match=r"needs derivatives.*'server'"):
        method.function(model, images, TARGETS)


def test_other_models_are_no_black_boxes(model, twin):
    assert model.black_box
    assert not twin.black_box


def test_it_has_no_layers(model):
    assert model.layers() == ()


def test_equal_boxes_share_a_compilation(images):
    traced = []

    @jax.jit
    def run(model, x):
        traced.append(model)
        return model(x)

    for _ in range(2):
        run(Model.from_black_box(server, 3), images)
    assert len(traced) == 1


def test_wrong_shape_of_logits_is_named(images):
    with pytest.raises(
        ValueError, match=r"returned shape \(2, 3\) for 2 images; expected \(2, 4\)"
    ):
        Model.from_black_box(server, 4)(images)
    with pytest.raises(ValueError, match="num_classes=0"):
        Model.from_black_box(server, 0)
