"""What every method of the table promises, on a small network that all of them can explain."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import BRIEF, fitted
from flax import linen as nn

from jaxplain.methods import METHODS, Method, find_method
from jaxplain.model import Model
from jaxplain.models.layers import tap
from jaxplain.preprocessing import Preprocessing


class Averaging(nn.Module):
    """Two convolutions, global average, one dense layer: small, and CAM applies."""

    @nn.compact
    def __call__(self, x):
        x = tap(nn.relu(nn.Conv(6, (3, 3), name="conv1")(x)), "conv1")
        x = tap(nn.max_pool(x, (2, 2), (2, 2)), "pool1")
        x = tap(nn.relu(nn.Conv(8, (3, 3), name="conv2")(x)), "conv2")
        return tap(nn.Dense(4, name="logits")(x.mean((1, 2))), "logits")


SIZE = (12, 10, 3)


@pytest.fixture(scope="module")
def model() -> Model:
    module = Averaging()
    variables = module.init(jax.random.key(3), jnp.ones((1, *SIZE)))
    return Model.from_linen(
        module,
        variables,
        input_shape=SIZE,
        preprocessing=Preprocessing(SIZE[:2], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        name="averaging",
        default_layer="conv2",
        evidence_layer="pool1",
    )


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (3, *SIZE))


TARGETS = jnp.array([0, 3, 1])
KEY = jax.random.key(7)


each_method = pytest.mark.parametrize("method", BRIEF.values(), ids=BRIEF)
# The last of each module: what jit and grad may break is what a module's methods share.
each_family = pytest.mark.parametrize(
    "method",
    {m.function.__module__: m for m in BRIEF.values()}.values(),
    ids=lambda method: method.name,
)


def explain(method: Method, model, images, targets):
    return fitted(method, model).explain(model, images, targets, key=KEY)


@functools.cache
def compiled(method: Method):
    return jax.jit(functools.partial(explain, method))


def same(a, b, tolerance=1e-5):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(float(jnp.abs(right).max()), 1e-12)
        np.testing.assert_allclose(left / scale, right / scale, atol=tolerance)


@each_method
def test_map_has_the_size_of_the_image_and_is_finite(method, model, images):
    found = explain(method, model, images, TARGETS)
    assert found.heatmap.shape == (3, *SIZE[:2])
    assert found.heatmap.dtype == images.dtype
    for leaf in jax.tree.leaves(found):
        assert jnp.isfinite(leaf).all()
    assert float(jnp.abs(found.heatmap).max()) > 0
    assert method.signed or float(found.heatmap.min()) >= 0


# Equation by equation, hundreds of passes would take minutes: those who need them are compared with
# their own call, which compiles in parts and works on the host, and elsewhere with what they do
# written out.
@each_family
def test_jit_equals_eager(method, model, images):
    with jax.disable_jit(not method.costly):
        eager = explain(method, model, images, TARGETS)
    same(compiled(method)(model, images, TARGETS), eager)


@each_family
def test_batch_equals_its_single_images(method, model, images):
    whole = explain(method, model, images, TARGETS)
    singles = [explain(method, model, images[i : i + 1], TARGETS[i : i + 1]) for i in range(3)]
    same(whole, jax.tree.map(lambda *parts: jnp.concatenate(parts), *singles))


@each_family
def test_vmap_equals_a_loop(method, model, images):
    classes = jnp.array([[0, 0, 0], [3, 1, 2]])
    mapped = jax.vmap(lambda t: explain(method, model, images, t).heatmap)(classes)
    same(mapped, jnp.stack([explain(method, model, images, t).heatmap for t in classes]))


@each_family
def test_second_call_does_not_compile(method, model, images, caplog):
    explain(method, model, images, TARGETS)
    again = jax.tree.map(lambda leaf: leaf + 0, model)
    other = images + 1
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        options = _options(fitted(method, model))
        method.function(again, other, TARGETS, **options)
        caplog.clear()
        method.function(again, other + 1, TARGETS[::-1], **options)
    assert [r.message for r in caplog.records if method.function.__name__ in r.message] == []


def _options(method: Method) -> dict:
    importance = {} if method.importance is None else {"importance": method.importance}
    return dict(method.options) | ({"key": KEY} if method.random else {}) | importance


@each_method
def test_same_key_same_answer(method, model, images):
    first, second = (explain(method, model, images, TARGETS).heatmap for _ in range(2))
    np.testing.assert_array_equal(first, second)
    if method.random:
        other = method.explain(model, images, TARGETS, key=jax.random.key(8))
        assert float(jnp.abs(other.heatmap - first).max()) > 0


@each_family
def test_explanation_can_be_differentiated(method, model, images):
    def total(params, x):
        changed = Model(**{**model.__dict__, "params": params})
        return (explain(method, changed, x, TARGETS).heatmap ** 2).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(model.params, images)):
        assert jnp.isfinite(leaf).all()


@each_method
def test_other_class_gives_another_map(method, model, images):
    one = explain(method, model, images, TARGETS).heatmap
    other = explain(method, model, images, (TARGETS + 1) % 4).heatmap
    assert float(jnp.abs(one - other).max()) > 1e-4 * float(jnp.abs(one).max())


@each_method
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": jnp.ones((12, 10, 3))}, ValueError, "images have shape"),
        ({"images": jnp.ones((3, 12, 10, 1))}, ValueError, "1 channels"),
        ({"images": jnp.ones((3, 12, 10, 3), jnp.uint8)}, TypeError, "uint8"),
        ({"images": jnp.ones((3, *SIZE)).at[1, 0, 0].set(jnp.nan)}, ValueError, "in image 1"),
        ({"targets": jnp.array([0, 1])}, ValueError, "targets have shape"),
        ({"targets": jnp.array([0, 1, 4])}, ValueError, "4 classes"),
        ({"targets": jnp.array([0, -1, 1])}, ValueError, "4 classes"),
        ({"targets": jnp.array([0.0, 1.0, 2.0])}, TypeError, "float32"),
    ],
)
def test_bad_input_is_refused_by_name(method, model, images, change, error, message):
    given = {"images": images, "targets": TARGETS, **change}
    with pytest.raises(error, match=message):
        explain(method, model, given["images"], given["targets"])


@each_method
def test_class_that_does_not_exist_gives_nan_where_it_cannot_raise(method, model, images):
    found = compiled(method)(model, images, jnp.array([0, 9, 1]))
    assert jnp.isnan(found.heatmap[1]).any()
    assert jnp.isfinite(found.heatmap[0]).all()
    assert jnp.isfinite(found.heatmap[2]).all()


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.layered], ids=lambda m: m.name)
def test_unknown_layer_names_the_nearest(method, model, images):
    with pytest.raises(ValueError, match="unknown layer 'conv_2'; nearest: conv2"):
        fitted(method, model).explain(model, images, TARGETS, key=KEY, layer="conv_2")


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.random], ids=lambda m: m.name)
def test_random_method_asks_for_a_key(method, model, images):
    with pytest.raises(ValueError, match="key is needed"):
        method.explain(model, images, TARGETS)


def test_all_apply_to_the_network_and_say_why_not_elsewhere(model):
    found = {name: fitted(m, model).inapplicable(model) for name, m in METHODS.items()}
    assert found == dict.fromkeys(METHODS)
    linear = Model.from_function(
        lambda w, x: x.reshape(x.shape[0], -1) @ w, jnp.ones((48, 2)), input_shape=(4, 4, 3)
    )
    reasons = {name: m.inapplicable(linear) for name, m in METHODS.items()}
    assert reasons["gradient"] is None
    assert reasons["occlusion"] is None
    assert "no relu" in reasons["guided_backprop"]
    assert "layer is needed" in reasons["grad_cam"]
    assert "jaxplain fit chip" in reasons["chip"]


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'gradcam'; nearest: grad_cam"):
        find_method("gradcam")
