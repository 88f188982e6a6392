"""`jaxplain models` and `jaxplain methods`."""

from typing import Annotated

import typer

from jaxplain.cli.commands.options import EXAMPLES, Debug
from jaxplain.cli.commands.program import Command, app


@app.command(
    "models",
    cls=Command,
    epilog=EXAMPLES + "jaxplain models\n\njaxplain models an8flower-single-6c",
)
def list_models(
    name: Annotated[str | None, typer.Argument(help="One classifier: its layers in full.")] = None,
    debug: Debug = False,
) -> None:
    """Lists the classifiers, their parameters and the layers that can be explained."""
    del debug
    from jaxplain.cli.listing import show_model, show_models

    if name is None:
        show_models()
    else:
        show_model(name)


@app.command(
    "methods",
    cls=Command,
    epilog=EXAMPLES + "jaxplain methods\n\njaxplain explain photo.jpg --methods grad_cam,occlusion",
)
def list_methods(debug: Debug = False) -> None:
    """Lists the methods: what each does, what it needs, and where it was published."""
    del debug
    from jaxplain.cli.listing import show_methods

    show_methods()
