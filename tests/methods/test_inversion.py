"""Guided Feature Inversion against the paper's two algorithms, written out step by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from optimised import IMAGES, MODEL, SIZE, TARGETS, conv, layers
from ports import NETWORKS

from jaxplain.methods import guided_feature_inversion
from jaxplain.methods.descent import gaussian_matrix
from jaxplain.methods.inversion import _background, inversion_layers
from jaxplain.model import Model
from jaxplain.models import MODELS, load_model

STEPS = {"inversion_steps": 8, "steps": 12, "halve_every": 5}
# Numbers are given to every call, so that calls share one compiled program.
invert = functools.partial(
    guided_feature_inversion,
    **STEPS,
    layer="conv2",
    inversion_layer="conv2",
    learning_rate=0.01,
    inversion_weight=10.0,
    target_weight=1.0,
    suppression=1.0,
)


def written_out(image, target, l1, l0, gamma, delta, lam, *, upsample_first, squared, relative):
    """Algorithms 1 and 2 with JAX's own derivative, and Adam in NumPy's float64."""
    rows, columns = gaussian_matrix(10, 11 * 10 / 224), gaussian_matrix(12, 11 * 10 / 224)
    p = np.einsum("yh,xw,hwc->yxc", rows, columns, image)

    seen = jax.jit(lambda x: {n: a[0] for n, a in layers(MODEL.params, x[None]).items()})
    base, kept = seen(image)[l1], seen(image)[l0]

    def scaled(m):
        return (m - m.min()) / (m.max() - m.min())

    def mask(omega):
        m = sum(omega[i] * base[..., i] for i in range(base.shape[-1]))
        if upsample_first:
            return scaled(jax.image.resize(m, SIZE[:2], "bilinear"))
        return jax.image.resize(scaled(m), SIZE[:2], "bilinear")

    def norm(omega):
        return (omega**2).sum() if squared else omega.sum()

    def inversion(omega):
        m = mask(omega)[..., None]
        error = ((seen(image * m + p * (1 - m))[l0] - kept) ** 2).sum()
        return error / ((kept**2).sum() if relative else 1) + gamma * norm(omega)

    def class_loss(omega):
        m = mask(omega)[..., None]
        shown = jax.nn.softmax(MODEL((image * m + p * (1 - m))[None])[0])[target]
        hidden = jax.nn.softmax(MODEL((image * (1 - m) + p * m)[None])[0])[target]
        return -shown + lam * hidden + delta * norm(omega)

    def adam(loss, omega, steps, halve):
        evaluate, m, v, losses = jax.jit(jax.value_and_grad(loss)), 0.0, 0.0, []
        rate = 0.01
        for t in range(1, steps + 1):
            value, slope = evaluate(jnp.asarray(omega, jnp.float32))
            slope = np.asarray(slope, np.float64)
            losses.append(value)
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            omega = omega - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            omega = np.maximum(omega, 0)
            if halve and t % halve == 0:
                rate /= 2
        return omega, losses

    first, before = adam(inversion, np.full(base.shape[-1], 0.1), STEPS["inversion_steps"], 0)
    second, after = adam(class_loss, first, STEPS["steps"], STEPS["halve_every"])
    return mask(second), second, mask(first), first, np.array(before), np.array(after)


@pytest.mark.parametrize(
    ("chosen", "options", "reference"),
    [
        (("conv2", "conv2"), {}, {}),
        (
            ("pool1", "conv2"),
            {"order": "upsample_first", "regulariser": "squared", "relative": True},
            {"upsample_first": True, "squared": True, "relative": True},
        ),
    ],
    ids=["paper", "program"],
)
def test_equals_the_algorithms_written_out(chosen, options, reference):
    weights = {"inversion_weight": 0.02, "target_weight": 0.004, "suppression": 0.7}
    names = {"layer": chosen[0], "inversion_layer": chosen[1]}
    found = invert(MODEL, IMAGES, TARGETS, **names, **weights, **options)
    flags = dict.fromkeys(("upsample_first", "squared", "relative"), False) | reference
    slow = written_out(IMAGES[1], int(TARGETS[1]), *chosen, 0.02, 0.004, 0.7, **flags)
    for name, expected in zip(
        ("heatmap", "weights", "inversion", "inversion_weights"), slow[:4], strict=True
    ):
        np.testing.assert_allclose(getattr(found, name)[1], expected, atol=1e-5)
    np.testing.assert_allclose(found.inversion_history[1], slow[4], rtol=1e-4)
    np.testing.assert_allclose(found.history[1], slow[5], atol=1e-5)
    assert 0 < np.ptp(np.asarray(found.weights[1])) < 1


def test_loss_falls_and_the_mask_lies_between_zero_and_one():
    weights = {"suppression": 0.7, "target_weight": 0.0, "inversion_weight": 0.0}
    found = invert(MODEL, IMAGES, TARGETS, **weights)
    assert (found.inversion_history[:, -1] < found.inversion_history[:, 0]).all()
    assert (found.history[:, -1] < found.history[:, 0]).all()
    for mask in (found.heatmap, found.inversion):
        assert float(mask.min()) >= 0
        assert 0.5 < float(mask.max()) <= 1


def test_norm_that_would_take_all_weights_leaves_the_last_mask():
    # In five steps of 0.02 the norm alone brings every weight from 0.1 to zero.
    found = invert(
        MODEL, IMAGES, TARGETS, inversion_weight=1e6, target_weight=1e6, learning_rate=0.02
    )
    assert float(found.weights.max()) >= 1e-3
    assert float(found.heatmap.max()) > 0.5
    np.testing.assert_allclose(found.heatmap, found.inversion, atol=0.02)


@pytest.mark.parametrize("kind", ["dead", "flat"])
def test_activation_without_contrast_gives_a_mask_of_zeros(kind):
    factor = 0.0 if kind == "dead" else 1.0
    images = jnp.zeros_like(IMAGES)
    model = Model.from_function(
        lambda w, x: checkpoint_name(conv(x, 0 * w) + factor, "conv1").sum((1, 2)),
        MODEL.params["first"],
        default_layer="conv1",
    )
    found = guided_feature_inversion(model, images, TARGETS, **STEPS)
    np.testing.assert_array_equal(found.heatmap, 0)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


def test_never_nan_on_three_hundred_networks_images_and_targets():
    for seed in range(300):
        draw = np.random.default_rng(seed)
        scale = 10.0 ** draw.uniform(-4, 3)  # from nearly dead to very large
        params = {
            name: scale * draw.standard_normal(w.shape, np.float32) / w[..., 0].size
            for name, w in MODEL.params.items()
        }
        found = guided_feature_inversion(
            dataclasses.replace(MODEL, params=params),
            10 * draw.standard_normal((1, *SIZE), np.float32),
            draw.integers(0, 4, (1,)),
            inversion_steps=11,
            steps=11,
        )
        for name, leaf in found._asdict().items():
            assert np.isfinite(leaf).all(), (seed, name)


def test_targets_share_stage_one():
    def traced(images, targets):
        return jax.vmap(lambda t: invert(MODEL, images, t).heatmap)(targets)

    # The scan of stage one carries no axis of targets.
    program = jax.make_jaxpr(traced)(IMAGES, jnp.zeros((3, 2), jnp.int32))
    scans = [e for e in _equations(program.jaxpr) if e.primitive.name == "scan"]
    carried = {e.params["length"]: e.invars[e.params["num_consts"]].aval.shape for e in scans}
    assert carried == {8: (2, 7), 12: (3, 2, 7)}


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if equation.primitive.name in ("jit", "pjit") and hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_layers_are_those_of_the_paper():
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    expected = {
        "vgg16": ("conv5_3", "pool5"),
        "vgg19": ("conv5_4", "pool5"),
        "alexnet": ("pool5", "pool5"),
        "resnet18": ("layer4.1.conv1", "layer4"),
        "googlenet": ("inception5b", "inception5b"),
        "inception_v3": ("Mixed_7c", "Mixed_7c"),
    }
    for name, chosen in expected.items():
        network = NETWORKS[name]
        params = jax.eval_shape(network.init, jax.random.key(0), images)
        model = Model.from_linen(
            network, params, name=name, default_layer=MODELS[name].default_layer
        )
        assert inversion_layers(model, images) == chosen
    lenet = load_model("digits")
    assert inversion_layers(lenet, jnp.zeros((1, 28, 28, 1))) == ("conv2", "pool2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"inversion_steps": 0}, "inversion_steps=0"),
        ({"layer": "conv_2"}, "unknown layer 'conv_2'; nearest: conv2"),
        ({"inversion_layer": "pool"}, "nearest: pool1"),
        ({"background": "noise"}, "key is needed"),
        ({"blur": -1.0}, "sigma=-1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        invert(MODEL, IMAGES, TARGETS, **options)


def test_layer_without_positions_is_refused():
    model = Model.from_function(
        lambda w, x: checkpoint_name(x.mean((1, 2)), "flat") @ w, jnp.ones((3, 4))
    )
    with pytest.raises(ValueError, match="has no layer with positions"):
        guided_feature_inversion(model, IMAGES, TARGETS)
    with pytest.raises(ValueError, match="layer 'flat' has no positions"):
        invert(model, IMAGES, TARGETS, layer="flat", inversion_layer="flat")


def test_backgrounds_are_what_their_names_say():
    key = jax.random.key(0)
    np.testing.assert_array_equal(_background(IMAGES, "grey", None, None), 0)
    noise = _background(IMAGES, "noise", None, key)
    np.testing.assert_array_equal(noise[0], noise[1])
    assert 0.9 < float(noise.std()) < 1.1
    assert not (noise == _background(IMAGES, "noise", None, jax.random.key(1))).any()
    np.testing.assert_allclose(_background(IMAGES, "blur", 0.0, None), IMAGES, atol=1e-6)
    wide = _background(IMAGES, "blur", 1e3, None)
    np.testing.assert_allclose(
        wide, jnp.broadcast_to(IMAGES.mean((1, 2), keepdims=True), wide.shape), atol=1e-4
    )
