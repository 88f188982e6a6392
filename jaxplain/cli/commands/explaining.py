"""`jaxplain explain` and `jaxplain demo`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxplain.cli.commands.options import (
    EXAMPLES,
    Chip,
    Chunk,
    Debug,
    Features,
    Layer,
    Masker,
    Methods,
    NoCache,
    Seed,
)
from jaxplain.cli.commands.program import Command, app


@app.command(
    "explain",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain explain photo.jpg --model vgg16 --weights imagenet\n\n"
    + "jaxplain explain *.jpg --model resnet50 --weights imagenet --methods grad_cam,occlusion "
    + "--target top5\n\n"
    + "jaxplain explain flower.png --model an8flower-double-12c --target 'red petals' "
    + "--out flower.html --npz flower.npz",
)
def explain_pictures(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Pictures: PNG or JPEG, any size, grey or in colour, EXIF-rotated or not.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The classifier; [bold]jaxplain models[/bold] lists them. It knows its own "
            "classes and no others.",
            show_default="an8flower-single-6c, which knows rendered flowers alone",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Its weights: the name of published ones, such as imagenet (downloaded once), "
            "or a file of your own.",
            show_default="those that ship with it",
        ),
    ] = None,
    methods: Methods = "all",
    target: Annotated[
        str,
        typer.Option(
            help="What to explain: a class by name (whatever its capitals) or number (from 0 on), "
            "top1 (the prediction) or top5."
        ),
    ] = "top1",
    layer: Layer = None,
    chip: Chip = None,
    features: Features = None,
    masker: Masker = None,
    out: Annotated[Path, typer.Option(help="The report.")] = Path("report.html"),
    npz: Annotated[Path | None, typer.Option(help="Also write the maps as arrays.")] = None,
    seed: Seed = 0,
    chunk: Chunk = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Explains a classifier's answers to your own pictures and writes a report.

    Everything is checked before anything is computed, and the report appears whole or not at all.
    """
    del debug
    from jaxplain.cli.explain import Request, run
    from jaxplain.cli.tune import model_in

    run(
        Request(
            pictures=tuple(images),
            model=model or model_in(weights),
            weights=weights,
            methods=methods,
            target=target,
            layer=layer,
            fitted={"chip": chip, "features": features, "masker": masker},
            out=out,
            npz=npz,
            seed=seed,
            chunk=chunk,
            cache=not no_cache,
        )
    )


@app.command(
    "demo",
    cls=Command,
    epilog=EXAMPLES + "jaxplain demo\n\njaxplain demo --out /tmp/demo.html --flowers 600",
)
def make_demo(
    out: Annotated[Path, typer.Option(help="The report.")] = Path("demo/report.html"),
    flowers: Annotated[
        int, typer.Option(min=24, max=100_000, help="Held-out flowers to score the methods on.")
    ] = 204,
    seed: Seed = 0,
    chunk: Chunk = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Explains held-out flowers and digits with every method, scores each, writes a report."""
    del debug
    from jaxplain.cli.demo import run

    run(out=out, flowers=flowers, seed=seed, chunk=chunk, cache=not no_cache)
