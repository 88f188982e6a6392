"""Samples for a surrogate: all at once, or in rounds until its standard errors are small."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from jaxplain.black_box import own_words
from jaxplain.methods.method import check_key
from jaxplain.methods.scene import Scene, check_answers, check_many, look_at_whole
from jaxplain.methods.surrogate import GROUPS, Draw, Kernel, Moments, empty, gather, steady
from jaxplain.model import Model, check_differentiable
from jaxplain.scores import Score
from jaxplain.solvers.problems import refuse

ROUND = 4 * GROUPS
"""Samples between two looks at the standard error."""

ROUNDING = 1e-6
"""Answers that differ by less than this share of one are the same."""

P = ParamSpec("P")
R = TypeVar("R")
Progress = Callable[[int, int, float], None]


class Plan(NamedTuple):
    """How samples are drawn; all of it static.

    Attributes:
        antithetic: see `Draw`.
        control: whether to take the control variate away, see `steady`.
        chunk: samples at a time.
        score: as in `gradient`.
    """

    antithetic: bool
    control: bool
    chunk: int
    score: Score


class Seen(NamedTuple):
    """What is known once samples are drawn.

    Attributes:
        scene: the images.
        moments: of the samples.
        steadied: the same without the control variate, where there is one.
        base: (B, T) what the network says of the images themselves.
        samples: how many.
    """

    scene: Scene
    moments: Moments
    steadied: Moments
    base: Float[Array, "b t"]
    samples: int | Int[Array, ""]

    def constant(self) -> Bool[Array, "b t"]:
        """Return where all answers are the same, but for rounding: nothing is to be explained."""
        weight = self.moments.gram[:, :, 0, 0].sum(1)[:, None]
        return self.moments.energy.sum(1) <= weight * (ROUNDING * self.base) ** 2

    def told(self, values: Float[Array, "b *rest"]) -> Float[Array, "b *rest"]:
        """Return values, NaN for images of which the network gave an answer that is not finite."""
        broken = (self.moments.broken > 0) | ~jnp.isfinite(self.base).all(1)
        return jnp.where(broken.reshape(-1, *(1,) * (values.ndim - 1)), jnp.nan, values)


class Surrogate(NamedTuple):
    """What is made of samples; all of it static.

    Attributes:
        kernel: (scene, width) -> weights of states.
        tell: (given, seen, *options) -> a NamedTuple with `samples` and `broken`.
        errors: its field of the standard errors that a tolerance is for.
        options: of `tell`.
    """

    kernel: Callable[[Scene, Any], Kernel]
    tell: Callable[..., Any]
    errors: str
    options: tuple


@own_words()
def draw(
    model: Model,
    scene: Scene,
    given: Any,
    surrogate: Surrogate,
    plan: Plan,
    *,
    key: Key[Array, ""],
    width: Any,
    num_samples: int,
    tolerance: float | int | None,
    progress: Progress | None,
) -> Any:
    """Return what a surrogate tells of a network.

    Args:
        model: any model.
        scene: the images.
        given: arrays that `surrogate.tell` needs.
        surrogate: see there.
        plan: see there.
        key: of the samples.
        width: of the kernel.
        num_samples: how many; at most, if there is a tolerance.
        tolerance: draw rounds of samples until no standard error is larger, or None.
        progress: called with (samples so far, most, largest standard error) after each round.

    Raises:
        ValueError: as `check_answers`; a tolerance that is not positive, or in compiled code. What
            a black box raises.
    """
    if tolerance is None:
        base, moments = _explain_gather(model, scene, key, width, num_samples, surrogate, plan)
        known = scene, given, moments, base, key, width
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(known)):
            return _explain_once(*known, num_samples, surrogate, plan)
        # Compiled apart from the network, and for any number: other networks need it as well.
        found = _explain_so_far(*known, num_samples, surrogate, plan)
        check_answers(found.broken, num_samples)
        return found
    _check_tolerance(tolerance, model, scene)
    base = _look(model, scene, plan.score)
    moments, done = empty(scene), 0
    while True:
        count = min(ROUND, num_samples - done)
        moments = _explain_more(
            model, scene, moments, base, key, width, done, count, surrogate, plan
        )
        done += count
        check_answers(moments.broken, done)
        found = _explain_so_far(scene, given, moments, base, key, width, done, surrogate, plan)
        largest = float(getattr(found, surrogate.errors).max())
        if progress is not None:
            progress(done, num_samples, largest)
        if largest <= tolerance or done >= num_samples:
            return found


def _add(
    model: Model,
    scene: Scene,
    moments: Moments,
    base: jax.Array,
    key: Any,
    width: Any,
    start: Any,
    count: int,
    surrogate: Surrogate,
    plan: Plan,
) -> Moments:
    own, kernel = Draw(key, plan.antithetic, plan.chunk), surrogate.kernel(scene, width)
    return gather(model, scene, moments, base, kernel, own, count, start=start, score=plan.score)


def _explain_moments(
    scene: Scene,
    given: Any,
    moments: Moments,
    base: jax.Array,
    key: Any,
    width: Any,
    count: Any,
    surrogate: Surrogate,
    plan: Plan,
) -> Any:
    steadied = moments
    if plan.control:
        own, kernel = Draw(key, plan.antithetic, plan.chunk), surrogate.kernel(scene, width)
        steadied = steady(scene, moments, base, kernel, own, count)
    seen = Seen(scene, moments, steadied, base, count)
    return surrogate.tell(given, seen, *surrogate.options)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _explain_gather(
    model: Model,
    scene: Scene,
    key: Any,
    width: Any,
    count: int,
    surrogate: Surrogate,
    plan: Plan,
) -> tuple[jax.Array, Moments]:
    base = look_at_whole(model, scene, plan.score)
    return base, _add(model, scene, empty(scene), base, key, width, 0, count, surrogate, plan)


_look = jax.jit(look_at_whole, static_argnums=2)
_explain_more = jax.jit(_add, static_argnums=(7, 8, 9))
_explain_so_far = jax.jit(_explain_moments, static_argnums=(7, 8))
# Loops of a known number of rounds can be differentiated.
_explain_once = jax.jit(_explain_moments, static_argnums=(6, 7, 8))


def for_targets(
    *shared: str, gradient: Callable[..., bool] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method of a function that explains targets (B, T).

    Its inputs are checked. Targets may be (B,) too; results then have no axis T.

    Args:
        *shared: names of results that have no such axis anyway.
        gradient: whether options ask for derivatives or layers; None is never.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(model: Model, images: Any, targets: Any, *given: Any, **options: Any) -> Any:
            if gradient is not None and gradient(*given, **options):
                check_differentiable(model, function.__module__.rpartition(".")[2])
            if "key" in options:
                check_key(options["key"])
            images, several = check_many(model, images, targets)
            found: Any = function(model, images, several, *given, **options)  # type: ignore[call-arg]
            if jnp.ndim(targets) == 2:
                return found
            single = {k: v[:, 0] for k, v in found._asdict().items() if k not in shared}
            return found._replace(**single)

        return checked  # type: ignore[return-value]

    return wrap


def _check_tolerance(tolerance: float | int, *known: Any) -> None:
    """Raise ValueError for a tolerance that is not positive, or where arrays are traced."""
    refuse(tolerance=(tolerance, None, None))
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(known)):
        raise ValueError(
            "tolerance cannot be used in compiled code: the number of samples is not known"
        )


def check_counts(num_samples: int, chunk: int, segments: Int[Array, "b h w"]) -> None:
    """Raise for counts that are none, or an image with more superpixels than samples.

    Raises:
        TypeError: no integers.
        ValueError: below 1, or an image with more superpixels than samples.
    """
    for name, value in {"num_samples": num_samples, "chunk": chunk}.items():
        if not isinstance(value, int | np.integer):
            raise TypeError(f"{name}={value!r}; expected an integer")
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1")
    if isinstance(segments, Tracer):
        return
    for number, labels in enumerate(np.asarray(segments)):
        found = len(np.unique(labels))
        if found > num_samples:
            raise ValueError(
                f"num_samples={num_samples} for the {found} superpixels of image {number}; "
                "expected at least as many samples"
            )


def check_control(control: bool | None, score: Score) -> bool:
    """Return whether there is a control variate, or raise ValueError where there can be none."""
    if control and score != "probability":
        raise ValueError(f"control=True needs score='probability', got score={score!r}")
    return score == "probability" if control is None else control
