"""Local response normalization, however it is written, under every rule set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxplain.model import Model
from jaxplain.models.alexnet import local_response_normalization
from jaxplain.trace import UncoveredError, backpropagate
from jaxplain.trace import rules as R

KIND = "local_response_normalization"
TARGETS = jnp.array([1, 2])


def windowed(x, width=3):
    window, half = (1, 1, 1, width), width // 2
    return lax.reduce_window(x, 0.0, lax.add, window, (1,) * 4, ((0, 0),) * 3 + ((half, half),))


def like_torch(x):
    """The mean over padded neighbours, times alpha, as torch has it."""
    padded = jnp.pad(jnp.square(x), ((0, 0),) * 3 + ((1, 1),))
    energy = lax.reduce_window(padded, 0.0, lax.add, (1, 1, 1, 3), (1,) * 4, "VALID") / 3
    return x / (1 + 0.5 * energy) ** 0.75


FORMS = {
    "shipped": lambda x: local_response_normalization(x, size=3, kappa=1.0, alpha=0.1),
    "jitted": jax.jit(lambda x: local_response_normalization(x, size=3, kappa=1.0, alpha=0.1)),
    "torch": like_torch,
    "root": lambda x: x * lax.rsqrt(2 + 0.3 * windowed(x**2)),
    "logarithms": lambda x: x * jnp.exp(-0.75 * jnp.log(1 + windowed(x * x))),
}
OTHERS = {
    "over positions": lambda x: x / (1 + lax.reduce_window(
        x * x, 0.0, lax.add, (1, 3, 3, 1), (1,) * 4, ((0, 0), (1, 1), (1, 1), (0, 0)))),
    "by its sum": lambda x: x / (1 + windowed(x)),
    "by others' energy": lambda x: x / (1 + windowed(x[..., ::-1] ** 2)),
    "turned round": lambda x: (1 + windowed(x * x)) / (x + 1),
    "by a maximum": lambda x: x / (1 + lax.reduce_window(
        x * x, 0.0, lax.max, (1, 1, 1, 3), (1,) * 4, "SAME")),
}  # fmt: skip


def weights():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "conv": 0.5 * jax.random.normal(keys[0], (3, 3, 2, 6)),
        "dense": jax.random.normal(keys[1], (6, 4)),
    }


def network(normalize, relu=jax.nn.relu):
    def apply(p, x):
        x = lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.ad_checkpoint.checkpoint_name(relu(x), "conv")
        x = jax.ad_checkpoint.checkpoint_name(normalize(x), "norm")
        return x.mean((1, 2)) @ p["dense"]

    return apply


def images():
    return jax.random.uniform(jax.random.key(1), (2, 5, 5, 2))


def sweep(apply, rules, **options):
    return jax.jit(
        lambda p, x: backpropagate(Model.from_function(apply, p), x, TARGETS, rules, **options)
    )(weights(), images())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rules", [R.lrp_epsilon(1e-9), R.lrp_z_plus(), R.excitation_rules()])
def test_normalization_hands_its_relevance_on(form, rules):
    found = sweep(network(FORMS[form]), rules, layers=("conv", "norm"))
    (site,) = (s for s in found.audit.sites if s.kind == KIND)
    assert (site.layer, site.rule) == ("norm", "Pass()")
    np.testing.assert_array_equal(found.layers["conv"], found.layers["norm"])
    # Without biases nothing is lost on the way to the pictures.
    np.testing.assert_allclose(found.attribution.sum((1, 2, 3)), 1, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rules", "gate"),
    [
        (R.GUIDED_BACKPROP, lambda x, g: jnp.where((x > 0) & (g > 0), g, 0)),
        (R.DECONVNET, lambda x, g: jnp.maximum(g, 0)),
    ],
)
def test_under_gradient_rules_normalization_has_its_own_derivative(form, rules, gate):
    @jax.custom_vjp
    def relu(x):
        return jnp.maximum(x, 0)

    relu.defvjp(lambda x: (relu(x), x), lambda x, g: (gate(x, g),))
    apply = network(FORMS[form], relu)
    expected = jax.grad(lambda x: apply(weights(), x)[jnp.arange(2), TARGETS].sum())(images())
    found = sweep(network(FORMS[form]), rules)
    np.testing.assert_allclose(found.attribution, expected, rtol=1e-4, atol=1e-6)
    assert KIND in {s.kind for s in found.audit.sites}


@pytest.mark.parametrize("form", OTHERS)
def test_what_only_looks_like_normalization_is_refused(form):
    with pytest.raises(UncoveredError, match="does not cover"):
        jax.eval_shape(lambda: sweep(network(OTHERS[form]), R.lrp_epsilon()))


def test_what_follows_a_normalized_relu_is_known_to_be_nowhere_negative():
    def apply(p, x):
        x = local_response_normalization(jax.nn.relu(x @ jnp.ones((2, 6))))
        return x.mean((1, 2)) @ p["dense"]

    rules = R.RuleSet("signs", (("dense", Signs()), (KIND, R.Pass())), require=("dense",))
    sweep(apply, rules, strict=False)
    assert Signs.seen == [True, False]  # the sweep runs backwards


class Signs:
    """A rule that writes down what is known of its site's input."""

    seen: list[bool] = []  # noqa: RUF012 - the one list of one test

    def __call__(self, at, arriving):
        self.seen.append(at.site.nonnegative)
        return at.transpose(arriving, at.weight)
