"""What every method has in common: how it is called, and its line in the table of methods."""

import dataclasses
import functools
import inspect
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxplain.black_box import own_words
from jaxplain.model import Model, check_differentiable, check_images
from jaxplain.names import unknown
from jaxplain.scores import check_targets
from jaxplain.trace import Audit

# The arrays of the models that were looked at last.
_SOUND: deque[list[weakref.ref]] = deque(maxlen=8)

P = ParamSpec("P")
R = TypeVar("R")


class Explanation(NamedTuple):
    """What any method says about a batch of images, as a map at input size.

    Attributes:
        heatmap: (B, H, W); larger means more evidence for the target, negative means evidence
            against.
        audit: which rule every site of the network got, for methods made of rules.
        stderr: (B, H, W) standard error of `heatmap`, for methods that sample.
        gap: (B,) what the attributions miss of the score they should sum to, for methods that
            promise so.

    Example:
        >>> Explanation(jnp.zeros((1, 28, 28))).audit is None
        True
    """

    heatmap: Float[Array, "b h w"]
    audit: Audit | None = None
    stderr: Float[Array, "b h w"] | None = None
    gap: Float[Array, " b"] | None = None


@jax.jit
def _logits(model: Model, images: jax.Array) -> Any:
    return model(images)


def check_inputs(model: Model, images: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """Return images and targets as arrays, or raise naming what is wrong with them.

    Raises:
        TypeError: images that are not floats, targets that are not integers, or a model that does
            not return one array.
        ValueError: wrong shapes, NaN or infinity in an image or in the weights, logits that are not
            (B, classes), or a target that the model does not have.
    """
    images = check_images(images, model)
    if not isinstance(images, Tracer):
        # At once, even where other arguments are traced and these images are a constant.
        with jax.ensure_compile_time_eval():
            broken = ~np.asarray(jnp.isfinite(images).all((1, 2, 3)))
        if broken.any():
            raise ValueError(f"images hold NaN or infinity, first in image {broken.argmax()}")
    check_weights(model)
    # The shape is cached by jit, so that looking costs nothing from the second call on.
    found = _logits.eval_shape(model, images)
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise TypeError(f"the model returns a {type(found).__name__}; expected one array of logits")
    if found.ndim != 2 or found.shape[0] != images.shape[0]:
        raise ValueError(
            f"the model returns shape {found.shape} for {images.shape[0]} images; expected logits "
            f"({images.shape[0]}, classes)"
        )
    return images, check_targets(targets, found)


def check_key(key: Any) -> None:
    """Raise TypeError for what is no key of `jax.random`.

    Example:
        >>> check_key(jax.random.key(0))
        >>> check_key(0)
        Traceback (most recent call last):
        TypeError: key=0; expected one of jax.random, such as jax.random.key(0)
    """
    # Raw keys of older code are arrays of 32-bit words.
    kinds = (jax.dtypes.prng_key, np.uint32)
    if isinstance(key, jax.Array | np.ndarray) and any(jnp.issubdtype(key.dtype, k) for k in kinds):
        return
    raise TypeError(f"key={key!r}; expected one of jax.random, such as jax.random.key(0)")


def check_weights(model: Model) -> None:
    """Raise ValueError where known parameters hold NaN or infinity; a model is looked at once.

    Example:
        >>> check_weights(Model.from_function(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3) / 0))
        Traceback (most recent call last):
        ValueError: the parameters hold NaN or infinity: at the root
    """
    leaves = jax.tree.leaves(model.params)
    # Transformations make models anew, of the same arrays. They are not kept alive for this.
    if any(len(seen) == len(leaves) and all(map(_refers, seen, leaves)) for seen in _SOUND):
        return
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return
    paths, _ = jax.tree_util.tree_flatten_with_path(model.params)
    broken = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "at the root"
        for path, leaf in paths
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        and getattr(leaf, "is_fully_addressable", True)
        and not np.isfinite(np.asarray(leaf)).all()
    ]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(f"the parameters hold NaN or infinity: {', '.join(broken[:3])}{more}")
    if all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
        _SOUND.append([weakref.ref(leaf) for leaf in leaves])


def _refers(reference: weakref.ref, leaf: Any) -> bool:
    return reference() is leaf


def explainer(*static: str, gradient: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method of a pure function (model, images, targets, **options).

    Its inputs are checked, then it is compiled as a whole.

    Args:
        *static: names of the options that are no arrays.
        gradient: it needs derivatives or layers; False for what works on any black box.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        compiled = jax.jit(function, static_argnames=static)
        known = list(inspect.signature(function).parameters)[3:]

        @functools.wraps(function)
        def checked(model: Model, images: Any, targets: Any, **options: Any) -> R:
            if gradient:
                check_differentiable(model, function.__name__)
            for name in options:
                if name not in known:
                    raise TypeError(f"{function.__name__}: {unknown('option', name, known)}")
            # A list of areas or sizes says the same as a tuple, which a compiled program can keep.
            options |= {n: tuple(options[n]) for n in static if isinstance(options.get(n), list)}
            if "key" in options:
                check_key(options["key"])
            images, targets = check_inputs(model, images, targets)
            if not model.black_box or isinstance(images, Tracer):
                return compiled(model, images, targets, **options)
            with own_words():
                return jax.block_until_ready(compiled(model, images, targets, **options))

        return checked  # type: ignore[return-value]

    return wrap


def resize_maps(maps: Float[Array, "b h w"], size: Sequence[int]) -> Float[Array, "b H W"]:
    """Resize maps to (H, W), bilinearly with half-pixel centres.

    Example:
        >>> resize_maps(jnp.ones((1, 2, 2)), (8, 8)).shape
        (1, 8, 8)
    """
    return jax.image.resize(maps, (maps.shape[0], *size), "bilinear")


def no_positions(layer: str, shape: tuple[int, ...]) -> str:
    """Say that a map cannot be read at a layer.

    Example:
        >>> no_positions("fc7", (1, 4096))
        "layer 'fc7' has no positions (its shape is (1, 4096)); choose one before the dense layers"
    """
    return (
        f"layer {layer!r} has no positions (its shape is {shape}); "
        "choose one before the dense layers"
    )


def map_layer(model: Model, layer: str | None, *, evidence: bool = False) -> str:
    """Return the layer to explain: `layer`, or the model's own choice.

    Args:
        model: any model.
        layer: a name, or None.
        evidence: prefer the model's `evidence_layer` (finer, for excitation backprop) to its
            `default_layer`.

    Raises:
        ValueError: None, and the model has no choice of its own.
    """
    chosen = layer or (evidence and model.evidence_layer) or model.default_layer
    if not chosen:
        raise ValueError(
            f"layer is needed: model {model.name!r} names no default_layer (see Model.layers)"
        )
    return chosen


@dataclasses.dataclass(frozen=True)
class Method:
    """One line of the table that the command line, the evaluation and the contract tests read.

    Attributes:
        name: as in `jaxplain explain --methods`.
        title: as in reports.
        function: the public function.
        heatmap: from its result to an `Explanation`'s map (B, h, w).
        summary: one plain sentence.
        reference: paper.
        random: takes `key`.
        layered: takes `layer`.
        evidence: reads the model's `evidence_layer` rather than its `default_layer`.
        signed: negative values mean evidence against.
        gradient: needs derivatives; False for what works on any black box.
        costly: hundreds of passes a picture; only who asks for it by name gets it.
        host: part of the work is done on the host (superpixels): call it, and it compiles the rest
            by itself. In compiled code it works too, but slower.
        options: what `explain` passes besides.
        view: what to read of the function's result, of methods that read different things of one.
        fit: for methods that need something fitted to the model beforehand (`importance`): finds
            what ships with a model, or raises ValueError.
        importance: what was fitted, once the method is `bound` to a model.

    Example:
        >>> def darkness(model, images, targets):
        ...     return -images.mean(-1)
        >>> mine = Method("dark", "Darkness", darkness, lambda maps: maps, "Dark pixels.", "I 2026")
        >>> model = Model.from_function(lambda _, x: x.mean((1, 2)))
        >>> mine.explain(model, jnp.ones((2, 8, 8, 3)), jnp.array([0, 1])).heatmap.shape
        (2, 8, 8)
    """

    name: str
    title: str
    function: Callable[..., Any]
    heatmap: Callable[[jax.Array], jax.Array]
    summary: str
    reference: str
    random: bool = False
    layered: bool = False
    evidence: bool = False
    signed: bool = False
    gradient: bool = True
    costly: bool = False
    host: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    view: Callable[[Any], Any] | None = None
    fit: Callable[[Model], Any] | None = None
    importance: Any = dataclasses.field(default=None, repr=False, compare=False)

    def bound(self, model: Model, importance: Any = None) -> "Method":
        """Return the method with what it needs fitted to a model; most need nothing.

        `explain` does this by itself where the parameters are known. In compiled code they are not,
        and what is fitted to them must be found before.

        Args:
            model: the model, as it will be explained.
            importance: what was fitted to it; None for what ships with it.

        Raises:
            ValueError: nothing ships with it.

        Example:
            >>> from jaxplain import METHODS, load_model
            >>> list(METHODS["chip"].bound(load_model("digits")).importance)
            ['conv1', 'pool1', 'conv2', 'pool2', 'conv3']
        """
        if self.fit is None:
            return self
        found = self.fit(model) if importance is None else importance
        return dataclasses.replace(self, importance=found)

    def explain(
        self,
        model: Model,
        images: Any,
        targets: Any,
        *,
        key: jax.Array | None = None,
        layer: str | None = None,
    ) -> Explanation:
        """Run the method with its default options and reduce the result to maps at input size.

        Args:
            model: any model.
            images: (B, H, W, C) floats.
            targets: (B,) classes.
            key: for random methods; the same key gives the same answer.
            layer: for layered methods; others ignore it.

        Raises:
            ValueError: a random method without a key; a black box for a method that needs
                derivatives; whatever the method raises.
        """
        result = self.run(model, images, targets, key=key, layer=layer)
        return self.read(result, jnp.shape(images)[1:3])

    def run(
        self,
        model: Model,
        images: Any,
        targets: Any,
        *,
        key: jax.Array | None = None,
        layer: str | None = None,
    ) -> Any:
        """Return all that the function says, its standard errors and audits too; see `explain`.

        Raises:
            ValueError: as `explain`.

        Example:
            >>> from jaxplain import METHODS, load_model
            >>> said = METHODS["guided_backprop"].run(
            ...     load_model("digits"), jnp.ones((1, 28, 28, 1)), jnp.array([3])
            ... )
            >>> said.attribution.shape, len(said.audit.rows()) > 0
            ((1, 28, 28, 1), True)
        """
        if self.gradient:
            check_differentiable(model, self.name)
        options = dict(self.options)
        if self.random:
            if key is None:
                raise ValueError(
                    f"method {self.name!r} is random: key is needed, such as jax.random.key(0)"
                )
            options["key"] = key
        if self.layered and layer is not None:
            options["layer"] = layer
        if self.fit is not None:
            options["importance"] = self.bound(model, self.importance).importance
        return self.function(model, images, targets, **options)

    def read(self, result: Any, size: Sequence[int]) -> Explanation:
        """Return what this method reads of a `run`, as maps of a size (H, W).

        Example:
            >>> from jaxplain import METHODS
            >>> METHODS["gradient"].read(jnp.ones((1, 4, 4, 3)), (8, 8)).heatmap.shape
            (1, 8, 8)
        """
        if self.view is not None:
            result = self.view(result)
        fields = result._asdict() if hasattr(result, "_asdict") else {"heatmap": result}
        heatmap = self.heatmap(fields["heatmap"] if "heatmap" in fields else fields["attribution"])
        if heatmap.shape[1:] != tuple(size):
            heatmap = resize_maps(heatmap, size)
        stderr = fields.get("stderr")
        if stderr is not None and stderr.ndim == 4:
            # The map shows each pixel's strongest channel: its error is that channel's.
            strongest = jnp.abs(fields["attribution"]).argmax(-1)[..., None]
            stderr = jnp.take_along_axis(stderr, strongest, -1)[..., 0]
        return Explanation(heatmap, fields.get("audit"), stderr, fields.get("gap"))

    def shares(self, other: "Method") -> bool:
        """Whether one `run` serves both: they read different things of it.

        Example:
            >>> from jaxplain import METHODS
            >>> METHODS["mint_coarse"].shares(METHODS["mint_fine"])
            True
            >>> METHODS["chip"].shares(METHODS["refined_chip"])
            False
        """
        return (self.function, self.options) == (other.function, other.options)

    def layer_read(self, model: Model, layer: str | None = None) -> str | None:
        """Return the layer that `explain` reads, or None for methods that read none.

        Example:
            >>> from jaxplain import METHODS, load_model
            >>> METHODS["grad_cam"].layer_read(load_model("digits"))
            'conv2'
        """
        if not self.layered:
            return None
        return layer or (self.evidence and model.evidence_layer) or model.default_layer

    def inapplicable(self, model: Model, *, layer: str | None = None) -> str | None:
        """Return why the method cannot explain this model, or None; nothing is computed.

        Example:
            >>> from jaxplain import METHODS
            >>> box = Model.from_black_box(lambda images: images.mean((1, 2)), 3, name="server")
            >>> METHODS["grad_cam"].inapplicable(box).partition(",")[0]
            "method 'grad_cam' needs derivatives or layers"
        """
        try:
            if self.gradient:
                check_differentiable(model, self.name)
            if model.input_shape is None:
                return None
            images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
            targets = jax.ShapeDtypeStruct((1,), jnp.int32)
            bound = self.bound(model, self.importance)
            jax.eval_shape(
                lambda m, x, t: bound.explain(m, x, t, key=jax.random.key(0), layer=layer),
                model,
                images,
                targets,
            )
        except ValueError as error:
            return str(error)
        return None


def grouped(methods: Iterable[Any]) -> list[list[Any]]:
    """Return the methods, those together that read the same run.

    Args:
        methods: lines of METHODS, or others, each of which is a group of its own.

    Example:
        >>> from jaxplain import METHODS
        >>> asked = [METHODS[name] for name in ("mint_coarse", "lime", "mint_fine")]
        >>> [[method.name for method in group] for group in grouped(asked)]
        [['mint_coarse', 'mint_fine'], ['lime']]
    """
    found: list[list[Any]] = []
    for method in methods:
        for group in found:
            known = isinstance(method, Method) and isinstance(group[0], Method)
            if known and method.shares(group[0]):
                group.append(method)
                break
        else:
            found.append([method])
    return found
