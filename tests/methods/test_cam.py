"""Class activation maps against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxplain.methods import cam, grad_cam
from jaxplain.model import Model
from jaxplain.models.layers import tap
from jaxplain.trace import capture


class Head(nn.Module):
    """A convolution and a head of the given kind."""

    kind: str

    @nn.compact
    def __call__(self, x):
        x = tap(nn.relu(nn.Conv(5, (3, 3))(x)), "conv")
        match self.kind:
            case "average":
                x = x.mean((1, 2))
            case "pool":
                x = nn.avg_pool(x, x.shape[1:3]).reshape(x.shape[0], -1)
            case "flat":
                x = x.reshape(x.shape[0], -1)
            case "maximum":
                x = x.max((1, 2))
            case "hidden":
                x = nn.relu(nn.Dense(5)(x.mean((1, 2))))
        return nn.Dense(3, name="fc")(x)


X = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
T = jnp.array([2, 0])


def _model(kind):
    module = Head(kind)
    return Model.from_linen(
        module, module.init(jax.random.key(1), X), name=kind, default_layer="conv"
    )


@pytest.mark.parametrize("kind", ["average", "pool"])
def test_cam_is_the_weighted_sum_of_the_channels(kind):
    model = _model(kind)
    weights = model.params["params"]["fc"]["kernel"]
    expected = jnp.einsum("bhwk,kb->bhw", capture(model, X, ["conv"])["conv"], weights[:, T])
    found = cam(model, X, T, upsample=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    logits = jnp.take_along_axis(model(X), T[:, None], 1)[:, 0]
    bias = model.params["params"]["fc"]["bias"][T]
    np.testing.assert_allclose(found.mean((1, 2)), logits - bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "reason"), [("flat", "other features"), ("maximum", "max_pool"), ("hidden", "relu")]
)
def test_cam_refuses_other_networks(kind, reason):
    with pytest.raises(ValueError, match=reason):
        cam(_model(kind), X, T)


@pytest.mark.parametrize("kind", ["average", "hidden", "flat"])
@pytest.mark.parametrize("score", ["logit", "probability", "contrast"])
def test_grad_cam_weighs_channels_by_their_mean_gradient(kind, score):
    from jaxplain.scores import score_fn
    from jaxplain.trace import split

    model = _model(kind)
    prefix, suffix = split(model, "conv", image_shape=X.shape[1:])
    activation = prefix(X)
    gradient = jax.grad(lambda a: score_fn(score)(suffix(a), T).sum())(activation)
    expected = jnp.einsum("bk,bhwk->bhw", gradient.mean((1, 2)), activation)
    found = grad_cam(model, X, T, relu=False, upsample=False, score=score)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        grad_cam(model, X, T, upsample=False, score=score),
        np.maximum(found, 0),
        rtol=1e-5,
        atol=1e-7,
    )


def test_grad_cam_works_inside_a_residual_branch():
    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = tap(nn.relu(nn.Conv(4, (3, 3), name="stem")(x)), "stem")
            x = x + tap(nn.relu(nn.Conv(4, (3, 3), name="branch")(x)), "branch")
            return nn.Dense(3)(x.mean((1, 2)))

    module = Residual()
    model = Model.from_linen(module, module.init(jax.random.key(1), X))
    branch = capture(model, X, ["branch"])["branch"]
    weights = model.params["params"]["Dense_0"]["kernel"]
    positions = branch.shape[1] * branch.shape[2]
    expected = jnp.einsum("bhwk,kb->bhw", branch, weights[:, T]) / positions
    found = grad_cam(model, X, T, layer="branch", relu=False, upsample=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_layer_without_positions_is_refused():
    with pytest.raises(ValueError, match="no positions"):
        grad_cam(_model("average"), X, T, layer="fc")
