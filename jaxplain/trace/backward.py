r"""One reverse sweep over a model's program, in which rules replace derivatives.

The default for an equation is its own vjp. What travels backwards is a cotangent; under
relevance rules it is $c = R/x$, relevance per unit of activation, so that every linear
operation (residual sums, pooling, batch norm, reshaping) keeps its own vjp and shares relevance
in proportion to the contributions. Where relevance itself must travel (the seed, whose logit may
be zero or negative; rules that do not start from $x$; what crosses a shift), it travels beside
$c$ until a convolution or dense layer takes it up. Where it must be shared among contributions
that sum to exactly zero, it is dropped.

Nothing is silent: in strict mode, the default, the sweep raises on a non-linearity that the
rule set neither covers nor declares transparent and on a rule set that matched nothing; and it
returns an `Audit`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxplain.model import Model, check_images
from jaxplain.scores import Score, check_targets, score_fn
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.audit import OWN, Audit, Matched, UncoveredError, inspect
from jaxplain.trace.layers import INPUT, Traced, trace_model
from jaxplain.trace.reverse import Seed, backward, forward
from jaxplain.trace.rules import NO_RULES, RuleSet
from jaxplain.trace.sites import survey

# Stands for the tensor that enters the last dense layer, whatever its name.
LAST_INPUT = "(input of the last dense layer)"


class Backpropagation(NamedTuple):
    """What a sweep found.

    Attributes:
        logits: (B, classes).
        attribution: (B, H, W, C) at the input: a cotangent, or relevance under relevance rules.
        layers: the same at each layer asked for, of the layer's shape.
        audit: which rule every site got.

    Example:
        >>> from jaxplain import rules
        >>> model = Model.from_function(lambda _, x: jax.nn.relu(x).sum((1, 2)))
        >>> images = jnp.array([1.0, -1.0]).reshape(1, 2, 1, 1)
        >>> found = backpropagate(model, images, jnp.array([0]), rules.GUIDED_BACKPROP)
        >>> found.logits.tolist(), found.attribution.ravel().tolist(), found.audit.sites[0].kind
        ([[1.0]], [1.0, 0.0], 'relu')
    """

    logits: Float[Array, "b k"]
    attribution: Float[Array, "b h w c"]
    layers: dict[str, jax.Array]
    audit: Audit


def backpropagate(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    rules: RuleSet,
    *,
    layers: Sequence[str] = (),
    score: Score = "logit",
    strict: bool = True,
) -> Backpropagation:
    """Propagate a class score back through a network by a set of rules.

    Works on unmodified models under jit, vmap, grad, jvp and shard_map. In ReLU networks the
    derivative of guided backprop and deconvnet with respect to the *images* is zero almost
    everywhere; with respect to the parameters it is not.

    Args:
        model: any model.
        images: (B, H, W, C) floats.
        targets: (B,) classes.
        rules: a rule set, such as `jaxplain.rules.GUIDED_BACKPROP`.
        layers: names of layers whose attribution is wanted too.
        score: what is propagated under gradient rules: "logit", "probability",
            "log_probability", "contrast", or a function of (logits, targets). Relevance rules
            start with relevance 1 at the target's logit.
        strict: raise on what the rule set does not cover.

    Returns:
        Logits, attributions and the audit.

    Raises:
        UncoveredError: strict, and the network has a non-linearity without a rule, or no site that
            the rule set is made for.
        ValueError: unknown layer, wrong shape or target; a score under relevance rules.

    Example:
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> found = backpropagate(model, images, targets, jxp.rules.GUIDED_BACKPROP)
        >>> found.attribution.shape, found.audit.sites[0].layer
        ((1, 28, 28, 1), 'conv1')
    """
    images = check_images(images, model)
    sweep = Sweep(model, images)
    targets = check_targets(targets, sweep.logits)
    if rules.relevance:
        if score != "logit":
            raise ValueError(
                f"score={score!r}; {rules.name} starts with relevance 1 at the target's logit"
            )
        seed = Seed(relevance=one_hot(targets, sweep.logits))
    else:
        seed = sweep.score_seed(targets, score)
    found = sweep.pull(rules, {"logits": seed}, [INPUT, *layers], strict=strict)
    return Backpropagation(
        sweep.logits,
        found[INPUT].value,
        {n: found[n].value for n in layers},
        sweep.audit(rules, strict=strict),
    )


def one_hot(targets: jax.Array, logits: jax.Array) -> jax.Array:
    """Return 1 at each target, and NaN throughout for a target that does not exist."""
    seed = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    valid = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(valid[:, None], seed, jnp.nan)


class Arrived(NamedTuple):
    """What arrived at a tensor and the tensor's activation."""

    value: jax.Array
    seed: Seed
    activation: jax.Array


class Sweep:
    """A forward run of a model that can be swept backwards, several times and from several places.

    For use inside one traced function; a sweep holds the values of the run and is no pytree.

    Args:
        model: any model.
        images: (B, H, W, C) floats.

    Attributes:
        traced: the program that was run.
        logits: (B, classes).

    Raises:
        UncoveredError: the logits have no derivative with respect to the images.
        ValueError: the model does not return (B, classes).
    """

    def __init__(self, model: Model, images: jax.Array):
        self.traced: Traced = trace_model(model, images)
        self._multilabel = model.multilabel
        program, logits = self.traced.program, self.traced.program.outputs[0]
        shape = jx.shape(program, logits)
        if len(shape) != 2 or shape[0] != images.shape[0]:
            raise ValueError(
                f"model {model.name!r} returns shape {shape} for {images.shape[0]} images; "
                "expected logits (batch, classes)"
            )
        self._labels = {v: n for n, v in self.traced.names.items() if n != INPUT}
        found = survey(program, [self.traced.image], self._labels)
        if not isinstance(logits, int) or not found.is_active(logits):
            raise UncoveredError(
                f"the logits of model {model.name!r} have no derivative with respect to the images"
            )
        self._logits_at = logits
        self._tape = forward(program, self.traced.bind(model.params, images), found)
        self.logits: jax.Array = self._tape.env[logits]

    def score_seed(self, targets: jax.Array, score: Score) -> Seed:
        """Return the derivative of the targets' scores with respect to the logits.

        Raises:
            ValueError: the score is not one number an image.
        """
        measure = score_fn(score, multilabel=self._multilabel)
        scores, pull = jax.vjp(lambda logits: measure(logits, targets), self.logits)
        if scores.shape != targets.shape:
            raise ValueError(
                f"score returns shape {scores.shape} for {targets.shape[0]} images; "
                "expected one number an image"
            )
        return Seed(cotangent=pull(jnp.ones_like(scores))[0])

    def gradient(self, targets: jax.Array, score: Score, layer: str = INPUT) -> jax.Array:
        """Return the derivative of the targets' scores with respect to a layer.

        It is the one that JAX computes, on a CPU sooner, and in loops many times: see
        `jaxplain.trace.convolution` and `jaxplain.trace.pooling`.
        """
        seeds = {"logits": self.score_seed(targets, score)}
        return self.pull(NO_RULES, seeds, [layer], strict=False)[layer].value

    def activation(self, layer: str) -> jax.Array:
        """Return the activation of a layer."""
        return self._tape.env[self._variable(layer)]

    def _variable(self, layer: str) -> int:
        if layer == LAST_INPUT:
            last = [s for s in self._tape.survey.sites.values() if s.kind == "dense" and s.last]
            if len(last) != 1:
                raise ValueError(f"the network has {len(last)} last dense layers; name the layer")
            return last[0].input
        if layer == "logits" and layer not in self.traced.names:
            return self._logits_at
        return self.traced.variable(layer)

    def _path(self, start: Iterable[int], wanted: Iterable[int]) -> set[int]:
        """Return the equations between `wanted` and the variables where the sweep starts."""
        reached = set(wanted)
        above = set()
        for index, equation in enumerate(self.traced.program.equations):
            if any(a in reached for a in equation.inputs):
                reached.update(equation.outputs)
                above.add(index)
        return above & set(jx.ancestors(self.traced.program, list(start))[0])

    def audit(
        self,
        rules: RuleSet,
        *,
        strict: bool = True,
        seeds: Iterable[str] = ("logits",),
        layers: Iterable[str] = (INPUT,),
    ) -> Audit:
        """Return which rule every site between `layers` and `seeds` gets.

        Raises:
            UncoveredError: strict, and something is not covered.
        """
        start = [self._variable(name) for name in seeds]
        path = self._path(start, [self._variable(name) for name in layers])
        whole = self._path(start, [self.traced.image])
        return inspect(self.traced.program, self._tape.survey, rules, path, whole, strict=strict)

    def pull(
        self,
        rules: RuleSet,
        seeds: Mapping[str, Seed],
        layers: Iterable[str],
        *,
        strict: bool = True,
    ) -> dict[str, Arrived]:
        """Sweep backwards from `seeds` at named layers (or "logits") to `layers`.

        Args:
            rules: the rules.
            seeds: what starts at each layer: a cotangent, or relevance under relevance rules.
            layers: where it is read.
            strict: raise on what the rules do not cover between the two.

        Returns:
            What arrives at each layer; `value` is the cotangent, or the relevance c x + R under
            relevance rules. Inside a convolution with its batch norm, every tensor has the
            relevance of the whole.

        Raises:
            UncoveredError: strict, and something is not covered.
            ValueError: unknown layer; a seed of the wrong shape; a layer from which no path leads
                to a seed.
        """
        wanted = {name: self._variable(name) for name in layers}
        start: dict[int, Seed] = {}
        for name, seed in seeds.items():
            variable = self._variable(name)
            self._check(name, seed, rules)
            start[variable] = start.get(variable, Seed()).plus(seed)
        program, tape = self.traced.program, self._tape
        inside = {program.equations[i].outputs[0] for i in tape.survey.inner}
        if inside & set(start):  # a site ends where a signal enters it
            found = survey(program, [self.traced.image], self._labels, cuts=start)
            tape = tape._replace(survey=found)
        path = self._path(start, wanted.values())
        whole = self._path(start, [self.traced.image])
        inspect(program, tape.survey, rules, path, whole, strict=strict)
        arrived = backward(tape, rules, start, set(wanted.values()), path)
        found_at = {}
        for name, variable in wanted.items():
            if variable not in arrived:
                raise ValueError(f"no path leads from layer {name!r} to {', '.join(seeds)}")
            seed, activation = arrived[variable], tape.env[variable]
            value = seed.total(activation, relevance=rules.relevance)
            found_at[name] = Arrived(value, seed, activation)
        return found_at

    def _check(self, name: str, seed: Seed, rules: RuleSet) -> None:
        shape = self.activation(name).shape
        for what, value in seed._asdict().items():
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"the {what} that starts at layer {name!r} has shape {value.shape}; "
                    f"the layer has {shape}"
                )
        if seed.relevance is not None and not rules.relevance:
            raise ValueError(
                f"{rules.name} propagates cotangents; the seed at layer {name!r} is relevance"
            )


__all__ = [
    "LAST_INPUT",
    "OWN",
    "Arrived",
    "Audit",
    "Backpropagation",
    "Matched",
    "Seed",
    "Sweep",
    "UncoveredError",
    "backpropagate",
    "one_hot",
]
