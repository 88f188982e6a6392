"""`jaxplain models` and `jaxplain methods`: what there is."""

from jaxplain.cli.console import progress, say, show_table, table


def show_models() -> None:
    """Print every network."""
    from jaxplain.models import MODELS, outline, parameter_count

    heads = [("model", "left"), ("input", "right"), ("parameters", "right"), ("weights", "left")]
    rows = table("", [*heads, ("layers", "left")])
    with progress(len(MODELS)) as advance:
        for name, architecture in MODELS.items():
            model = outline(name)
            layers = [layer.name for layer in model.layers()]
            few = layers if len(layers) <= 10 else [*layers[:3], "…", *layers[-3:]]
            rows.add_row(
                name,
                " × ".join(map(str, architecture.input_shape)),
                f"{parameter_count(model):,}",
                ", ".join(architecture.weights) or "your own",
                f"{len(layers)}: {' '.join(few)}",
            )
            advance(name)
    show_table(rows)
    say("jaxplain models NAME lists the layers of one.")


def show_model(name: str) -> None:
    """Print one network: layers with shapes and receptive fields, weights and classes."""
    from jaxplain.models import SHIPPED, find_architecture, load_model, outline, parameter_count

    architecture = find_architecture(name)
    # Weights bring the names of their classes; those that ship are small.
    model = load_model(name) if SHIPPED in architecture.weights else outline(name)
    heads = [("layer", "left"), ("shape", "right"), ("sees", "right"), ("every", "right")]
    rows = table("", [*heads, ("", "left")])
    for layer in model.layers():
        field = layer.receptive_field
        rows.add_row(
            layer.name,
            " × ".join(map(str, layer.shape)),
            "" if field is None else f"{field.size[0]} × {field.size[1]} px",
            "" if field is None else f"{field.stride[0]} px",
            "explained unless told otherwise" if layer.name == model.default_layer else "",
        )
    say(f"{name}: {architecture.description}; {parameter_count(model):,} parameters")
    show_table(rows)
    say(f"weights: {', '.join(architecture.weights) or 'none are published'}, or your own")
    if model.class_names:
        few = model.class_names[:20]
        more = len(model.class_names) - len(few)
        say("classes: " + ", ".join(few) + (f" and {more} more" if more else ""))
    else:
        say(f"classes: {architecture.num_classes}, whose names come with weights, if at all")


def show_methods() -> None:
    """Print every method."""
    from jaxplain.methods import METHODS

    heads = [("method", "left"), ("what it does", "left"), ("takes", "left"), ("reference", "left")]
    rows = table("", heads)
    for method in METHODS.values():
        traits = (
            ("--layer", method.layered),
            ("--seed", method.random),
            ("any black box", not method.gradient),
        )
        takes = ", ".join(text for text, true in traits if true)
        rows.add_row(method.name, method.summary, takes, method.reference)
    show_table(rows)
