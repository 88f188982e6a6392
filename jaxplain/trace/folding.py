r"""Batch norm folded into the convolution or dense layer before it.

At inference, batch norm is an affine map of each channel, so that behind $z = w * x + b$ it gives
$\gamma\,(z - \mu)/\sqrt{v + \epsilon} + \beta = w' * x + b'$ with $s = \gamma/\sqrt{v + \epsilon}$,
$w' = s w$, $b' = s (b - \mu) + \beta$. The model is traced, its program is rewritten so, and the
new weights replace the old ones, whatever library the model was written in.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Model
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.affine import site_values
from jaxplain.trace.jaxpr import Atom, Constant, Equation, Program
from jaxplain.trace.layers import INPUT, Traced, trace_model
from jaxplain.trace.patterns import AFFINE, LAYOUT, PRODUCTS, Site
from jaxplain.trace.sites import Survey, survey

# How a standard deviation is made of a variance.
_ROOTS = jx.words("rsqrt sqrt pow")


def fold_batch_norm(model: Model, *, image_shape: tuple[int, int, int] | None = None) -> Model:
    """Return the equivalent model without batch norm.

    Whatever scales and shifts the channels of a convolution or dense layer is folded into its
    weights and bias, once. Any method explains the folded model like the original. What stood
    between a convolution and its batch norm is no tensor of the folded model; `default_layer` and
    `evidence_layer` move to what the batch norm returned.

    Args:
        model: any model, in inference mode.
        image_shape: (H, W, C), when it differs from `model.input_shape`.

    Returns:
        A model whose parameters are {"folded": {layer: {"kernel", "bias"}}, "kept": {path: array}}:
        the new weights, and those of the old ones that it still needs. Its logits are those of
        `model` up to rounding.

    Raises:
        ValueError: no batch norm; one that does not stand right behind a convolution or dense
            layer that nothing else reads, or that is inside a loop; no image shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> from jax.ad_checkpoint import checkpoint_name
        >>> def apply(params, images):
        ...     x = jnp.einsum("bhwc,ck->bhwk", images, params["w"])
        ...     x = (x - params["mean"]) * jax.lax.rsqrt(params["var"] + 1e-5)
        ...     return jax.nn.relu(checkpoint_name(x, "norm")).mean((1, 2))
        >>> params = {"w": jnp.ones((3, 2)), "mean": jnp.ones((1, 1, 1, 2)),
        ...           "var": jnp.full((1, 1, 1, 2), 4.0)}
        >>> model = jxp.Model.from_function(apply, params, input_shape=(8, 8, 3))
        >>> folded = jxp.fold_batch_norm(model)
        >>> folded.params["folded"]["norm"]["kernel"].round(3)[:, 0]
        Array([0.5, 0.5, 0.5], dtype=float32)
        >>> images = jnp.ones((1, 8, 8, 3))
        >>> bool(jnp.allclose(folded(images), model(images), atol=1e-6))
        True
    """
    shape = image_shape or model.input_shape
    if shape is None:
        raise ValueError("image_shape is needed: the model does not say its input_shape")
    traced = trace_model(model, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    labels = {v: name for name, v in traced.names.items() if name != INPUT}
    found = survey(traced.program, [traced.image], labels)
    sites = _foldable(traced.program, found)
    _check(model, traced.program, found, sites)
    plans = tuple(_plan(traced.program, site) for site in sites)
    rewritten = _rewrite(traced, sites)
    weights = jax.jit(lambda params: _weights(traced, params, sites))(model.params)
    leaves, structure = jax.tree.flatten(model.params)
    _, needed = jx.ancestors(rewritten.program, rewritten.program.outputs)
    paths = tuple(
        jax.tree_util.keystr(keys, simple=True, separator="/") if variable in needed else None
        for variable, (keys, _) in zip(
            traced.parameters, jax.tree_util.tree_leaves_with_path(model.params), strict=True
        )
    )
    names = _unique([site.layer for site in sites])
    kept = {path: leaf for path, leaf in zip(paths, leaves, strict=True) if path is not None}
    structs = tuple(jax.eval_shape(lambda tree: tree, leaves))
    return dataclasses.replace(
        model,
        params={"folded": dict(zip(names, weights, strict=True)), "kept": kept},
        apply=_Folded(
            dataclasses.replace(model, params=()), structure, structs, paths, names, plans
        ),
        capture=None,
        default_layer=_moved(model.default_layer, traced, rewritten, sites),
        evidence_layer=_moved(model.evidence_layer, traced, rewritten, sites),
    )


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Number the names that are not unique."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    numbered = {place: name for name, place in jx.numbered(places).items()}
    return tuple(numbered[place] for place in range(len(names)))


# -- what is a batch norm --------------------------------------------------------------------------


class _Made(NamedTuple):
    """Variables that do not depend on the image.

    Attributes:
        arrays: made of parameters or other arrays, not of numbers alone.
        deviations: those of them that went through a square root.
    """

    arrays: set[Atom]
    deviations: set[Atom]

    def varies(self, program: Program, atom: Atom) -> bool:
        """Say whether an operand is made of arrays."""
        if isinstance(atom, Constant):
            return math.prod(jx.shape(program, atom)) > 1
        return atom in self.arrays


def _made(program: Program, found: Survey) -> _Made:
    made = _Made(set(program.inputs), set())
    for equation in program.equations:
        if any(map(found.depends, equation.inputs)):
            continue
        if any(made.varies(program, a) for a in equation.inputs):
            made.arrays.update(equation.outputs)
            if equation.name in _ROOTS or any(a in made.deviations for a in equation.inputs):
                made.deviations.update(equation.outputs)
    return made


def _foldable(program: Program, found: Survey) -> list[Site]:
    """Return the affine sites that scale their channels, by more than a number."""
    made = _made(program, found)
    return [
        site
        for site in found.sites.values()
        if site.kind in AFFINE
        and all(step.per_channel for step in site.tail)
        and any(
            step.operand is not None
            and program.equations[step.equation].name in ("mul", "div")
            and made.varies(program, step.operand)
            for step in site.tail
        )
    ]


def _check(model: Model, program: Program, found: Survey, sites: Sequence[Site]) -> None:
    folded = {index for site in sites for index in site.equations}
    left = [
        f"{e.name} (equation {i}{f' in {e.scope}' if e.scope else ''})"
        for i, e in _normalising(program, found)
        if i not in folded
    ]
    if left:
        raise ValueError(
            f"model {model.name!r} has a batch norm that cannot be folded: it must stand right "
            "behind a convolution or dense layer that nothing else reads, outside of loops; "
            f"this is {'; '.join(left)}"
        )
    if not sites:
        raise ValueError(f"model {model.name!r} has no batch norm to fold")


def _normalising(program: Program, found: Survey) -> Iterator[tuple[int, Equation]]:
    """Yield what scales the input's tensors by standard deviations of the model's."""
    deviations = _made(program, found).deviations
    for index, equation in enumerate(program.equations):
        inside = found.inside.get(index, ())
        scales = equation.name in ("mul", "div") and any(map(found.is_active, equation.inputs))
        if (scales and any(a in deviations for a in equation.inputs)) or any(
            any(_normalising(part.program, part.survey)) for part in inside
        ):
            yield index, equation


# -- folding ---------------------------------------------------------------------------------------


def _weights(traced: Traced, params: Any, sites: Sequence[Site]) -> list[dict[str, jax.Array]]:
    """Return the weights and bias of every site with its tail folded in."""
    program = traced.program
    wanted: list[Atom] = []
    for site in sites:
        wanted += [a for a in program.equations[site.equations[0]].inputs if a != site.input]
        wanted += [step.operand for step in site.tail if step.operand is not None]
    variables = [a for a in wanted if isinstance(a, int)]
    needed, _ = jx.ancestors(program, variables)
    known = traced.bind(params, None)
    values = jx.evaluate(program, known, variables, equations=needed)
    known |= dict(zip(variables, values, strict=True))
    weights = []
    for site in sites:
        product = program.equations[site.equations[0]].outputs[0]
        # Only the shapes of the tensors matter.
        shapes = {v: program.avals[v] for v in (site.input, product, site.output)}
        tensors = {v: jnp.zeros(aval.shape, aval.dtype) for v, aval in shapes.items()}
        at, _ = site_values(program, site, known | tensors)
        weights.append({"kernel": at.weight, "bias": at.bias})
    return weights


class _Plan(NamedTuple):
    """How to find a folded site in the same network at another image shape.

    Attributes:
        ordinal: which of the network's products it is.
        scales: how many scales and shifts are folded.
    """

    ordinal: int
    scales: int


def _plan(program: Program, site: Site) -> _Plan:
    before = program.equations[: site.equations[0]]
    scales = sum(step.operand is not None for step in site.tail)
    return _Plan(sum(e.name in PRODUCTS for e in before), scales)


@dataclasses.dataclass(frozen=True)
class _FoldedEquation(Equation):
    """A product with new weights and bias, in the layout that the old site had.

    Attributes:
        product: the convolution or dense product.
        position: which of its operands is the tensor.
        layout: the changes of layout and dtype behind it.
    """

    product: Equation
    position: int
    layout: tuple[Equation, ...]

    def bind(self, values: Sequence[Any], **overrides: Any) -> list[Any]:
        """Apply it to (tensor, weights, bias)."""
        del overrides
        x, weight, bias = values
        (out,) = self.product.bind([x, weight] if self.position == 0 else [weight, x])
        out = out + bias
        for equation in self.layout:
            (out,) = equation.bind([out])
        return [out]


@dataclasses.dataclass(frozen=True)
class _Rewritten:
    """A program whose folded sites are one equation each.

    Attributes:
        program: the program.
        new: for each site, the input variables of its weights and bias.
        names: the layers that are left.
    """

    program: Program
    new: tuple[tuple[int, int], ...]
    names: Mapping[str, int]


def _rewrite(traced: Traced, sites: Sequence[Site]) -> _Rewritten:
    program = traced.program
    equations: list[Equation] = list(program.equations)
    dropped: set[int] = set()
    gone: set[int] = set()
    new = []
    avals = dict(program.avals)
    fresh = max(avals) + 1
    for site in sites:
        product = program.equations[site.equations[0]]
        new.append((fresh, fresh + 1))
        equations[site.equations[-1]] = _FoldedEquation(
            product.source,
            (site.input, fresh, fresh + 1),
            (site.output,),
            product,
            product.inputs.index(site.input),
            tuple(
                program.equations[step.equation]
                for step in site.tail
                if step.operand is None and program.equations[step.equation].name != "name"
            ),
        )
        fresh += 2
        dropped.update(site.equations[:-1])
        gone.update(program.equations[i].outputs[0] for i in site.equations[:-1])
    names = {name: v for name, v in traced.names.items() if v not in gone}
    rewritten = dataclasses.replace(
        program,
        equations=tuple(e for i, e in enumerate(equations) if i not in dropped),
        inputs=(*program.inputs, *(v for pair in new for v in pair)),
        avals=avals,
    )
    return _Rewritten(rewritten.pruned(rewritten.outputs, names.values()), tuple(new), names)


def _moved(
    layer: str | None, traced: Traced, rewritten: _Rewritten, sites: Iterable[Site]
) -> str | None:
    """Return a layer that is left, the one that took its place, or None."""
    if layer is None or layer not in traced.names or layer in rewritten.names:
        return layer
    for site in sites:
        if traced.names[layer] in {traced.program.equations[i].outputs[0] for i in site.equations}:
            same = {site.output}
            for equation in traced.program.equations:
                if equation.name in LAYOUT and equation.inputs[0] in same:
                    same.update(equation.outputs)
            return next((name for name, v in rewritten.names.items() if v in same), None)
    return None


@dataclasses.dataclass(frozen=True)
class _Folded:
    """`apply` of a folded model.

    Attributes:
        whole: the original model without parameters.
        structure: the tree of its parameters.
        leaves: their shapes.
        paths: the name of each that is still needed; None for the others.
        names: the layers whose weights are folded.
        plans: where they are.
    """

    whole: Model
    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    paths: tuple[str | None, ...]
    names: tuple[str, ...]
    plans: tuple[_Plan, ...]

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Return the logits."""
        shapes = jax.tree.unflatten(self.structure, self.leaves)
        traced = trace_model(dataclasses.replace(self.whole, params=shapes), images)
        rewritten = _rewrite(traced, self._sites(traced))
        program = rewritten.program
        values = {traced.image: images}
        for variable, path in zip(traced.parameters, self.paths, strict=True):
            if path is not None:
                values[variable] = params["kept"][path]
        for (weight, bias), name in zip(rewritten.new, self.names, strict=True):
            values[weight] = params["folded"][name]["kernel"]
            values[bias] = params["folded"][name]["bias"]
        if jx.ancestors(program, program.outputs)[1] - set(values):
            raise self._other(images)
        tags: dict[int, list[str]] = {}
        for name, variable in rewritten.names.items():
            if name != INPUT:
                tags.setdefault(variable, []).append(name)
        edits = {variable: _Tags(tuple(names)) for variable, names in tags.items()}
        return jx.evaluate(program, values, program.outputs, edits=edits)[0]

    def _sites(self, traced: Traced) -> list[Site]:
        """Find the folded sites again."""
        program = traced.program
        found = {
            _plan(program, site): site
            for site in survey(program, [traced.image]).sites.values()
            if site.kind in AFFINE
        }
        if not set(self.plans) <= set(found):
            raise self._other(program.avals[traced.image])
        return [found[plan] for plan in self.plans]

    def _other(self, images: Any) -> ValueError:
        return ValueError(
            f"model {self.whole.name!r} computes otherwise at images of shape {images.shape} than "
            "where its batch norm was folded; fold it with image_shape="
        )


@dataclasses.dataclass(frozen=True)
class _Tags:
    """Lay the names of a tensor."""

    names: tuple[str, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        for name in self.names:
            x = checkpoint_name(x, name)
        return x
