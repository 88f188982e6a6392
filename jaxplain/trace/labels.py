"""What sites are called."""

from collections.abc import Mapping

from jaxplain.trace import jaxpr as jx
from jaxplain.trace.jaxpr import Equation
from jaxplain.trace.patterns import AFFINE, COMPARISONS, LAYOUT, Reader, Site

# Equations that a layer's name may be behind.
_NAMED_THROUGH = jx.words(
    "add sub mul div max min clamp select_n convert_element_type custom_jvp_call jit"
)


def labels(reader: Reader, names: Mapping[int, str], sites: Mapping[int, Site]) -> dict[int, str]:
    """Name every site.

    A site is called like the first named tensor behind it, of a convolution or dense layer even
    behind its activation; else like its module; else by what is before it.
    """
    tags = {
        e.outputs[0]: str(e.params["name"]) for e in reader.program.equations if e.name == "name"
    }
    named = dict(names) | tags
    found: dict[int, str] = {}
    behind: dict[int, str] = {}  # variable -> the name of the last layer before it
    for index, equation in enumerate(reader.program.equations):
        sources = [a for a in equation.inputs if isinstance(a, int)]
        here = before = next((behind[a] for a in sources if a in behind), None)
        if index in sites:
            site = sites[index]
            first = reader.program.equations[site.equations[0]]
            name = _name_behind(reader, site, named, sites) or _module_path(first)
            if name is None:
                name = f"{site.kind} after {before}" if before else f"{site.kind} {index}"
            found[index], here = name, before if " after " in name else name
        for variable in equation.outputs:
            here = named.get(variable, here)
            if here is not None:
                behind[variable] = here
    return found


def _name_behind(
    reader: Reader, site: Site, named: Mapping[int, str], sites: Mapping[int, Site]
) -> str | None:
    """Follow the only consumers of a site's product until a tensor has a name."""
    variable = reader.program.equations[site.equations[0]].outputs[0]
    rectified = site.kind not in AFFINE
    while True:
        if variable in named:
            return named[variable]
        index = reader.only_consumer(variable)
        if index is None:
            index = _activation_of(reader, variable, sites)
        if index is None:
            return None
        equation = reader.program.equations[index]
        passes = equation.name in _NAMED_THROUGH or equation.name in LAYOUT
        joins = sum(reader.is_active(a) for a in set(equation.inputs) if isinstance(a, int)) > 1
        other = index in sites
        if index in site.equations:
            variable = equation.outputs[0]
            continue
        if not passes or (joins and not other) or (other and rectified):
            return None
        rectified = rectified or other
        variable = equation.outputs[0]


def _activation_of(reader: Reader, variable: int, sites: Mapping[int, Site]) -> int | None:
    """Return the activation that alone reads a variable, several times: `x * (x > 0)`."""
    readers = reader.consumers.get(variable, [])
    for index in readers:
        if index in sites and sites[index].input == variable and sites[index].kind not in AFFINE:
            own = {index, *sites[index].equations}
            equations = [reader.program.equations[i] for i in readers if i >= 0 and i not in own]
            if -1 not in readers and all(e.name in COMPARISONS for e in equations):
                return index
    return None


def _module_path(equation: Equation) -> str | None:
    """Return the path that Linen and Haiku leave, without the outermost module."""
    return ".".join(equation.scope.split("/")[1:]) or None
