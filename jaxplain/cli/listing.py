"""`jaxplain models` and `jaxplain methods`: what there is."""

from jaxplain.cli.console import say, show_table, table
from jaxplain.cli.facts import count_parameters


def show_models() -> None:
    """Print every classifier that comes with weights."""
    from jaxplain.models import MODELS, load_model

    rows = table("", [("model", "left"), ("input", "right"), ("classes", "right"), ("parameters", "right"), ("layers", "left")])
    for name in MODELS:
        model = load_model(name)
        layers = [layer.name for layer in model.layers()]
        size = " × ".join(map(str, model.input_shape or ()))
        rows.add_row(name, size, str(len(model.class_names)), f"{count_parameters(model):,}", " ".join(layers))
    show_table(rows)


def show_model(name: str) -> None:
    """Print one classifier: layers with shapes and receptive fields, and classes."""
    from jaxplain.models import load_model

    model = load_model(name)
    rows = table(
        f"{name}: {count_parameters(model):,} parameters",
        [("layer", "left"), ("shape", "right"), ("sees", "right"), ("every", "right"), ("", "left")],
    )
    for layer in model.layers():
        field = layer.receptive_field
        rows.add_row(
            layer.name,
            " × ".join(map(str, layer.shape)),
            "" if field is None else f"{field.size[0]} × {field.size[1]} px",
            "" if field is None else f"{field.stride[0]} px",
            "explained unless told otherwise" if layer.name == model.default_layer else "",
        )
    show_table(rows)
    if model.class_names:
        say("classes: " + ", ".join(model.class_names))


def show_methods() -> None:
    """Print every method."""
    from jaxplain.methods import METHODS

    rows = table("", [("method", "left"), ("what it does", "left"), ("needs", "left"), ("reference", "left")])
    for method in METHODS.values():
        needs = [
            text
            for text, flag in (("layer", method.layered), ("seed", method.random), ("no gradient", not method.gradient))
            if flag
        ]
        rows.add_row(method.name, method.summary, ", ".join(needs), method.reference)
    show_table(rows)
