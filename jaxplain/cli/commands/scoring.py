"""`jaxplain evaluate` and `jaxplain localize`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxplain.cli.commands.options import (
    EXAMPLES,
    Chip,
    Chunk,
    Debug,
    Features,
    FitModel,
    FitWeights,
    Layer,
    Masker,
    Methods,
    NoCache,
    Seed,
)
from jaxplain.cli.commands.program import Command, app


@app.command(
    "evaluate",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain evaluate --data an8flower/single_6c --methods all\n\n"
    + "jaxplain evaluate --data an8flower/double_12c --methods grad_cam,occlusion --count 600",
)
def evaluate_methods(
    data: Annotated[
        str,
        typer.Option(
            help="Pictures whose evidence is known: an8flower/single_6c or an8flower/double_12c."
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Names with commas between, or all, the slow ones too; [bold]jaxplain "
            "methods[/bold] lists them."
        ),
    ] = "all",
    model: Annotated[
        str | None,
        typer.Option(
            help="The classifier, which must know these classes.",
            show_default="the one that ships for them",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Its weights, as in [bold]jaxplain explain[/bold].",
            show_default="those that ship with it",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=6,
            max=100_000,
            help="Held-out pictures, for every method.",
            show_default="204, and 12 for methods of hundreds of passes a picture",
        ),
    ] = None,
    costly: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Pictures for the methods of hundreds of passes a picture; no more than COUNT.",
            show_default="COUNT if given, else 12",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the table: leaderboard.md, .json and .html.",
            show_default="leaderboard-VARIANT",
        ),
    ] = None,
    seed: Seed = 0,
    chunk: Chunk = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Scores every method on the same pictures whose evidence is known: the leaderboard.

    Each method's figures are kept in OUT/kept as soon as they are there: the same command goes on
    where it was stopped, and a changed one measures only what changed.
    """
    del debug
    from jaxplain.cli.leaderboard import Request, run

    run(
        Request(
            data=data,
            model=model,
            weights=weights,
            methods=methods,
            count=count,
            costly=costly,
            out=out,
            seed=seed,
            chunk=chunk,
            cache=not no_cache,
        )
    )


@app.command(
    "localize",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain localize vgg16 --weights imagenet --data tfds:imagenet2012 "
    + "--annotations CLS-LOC/val --methods grad_cam,saliency,contrastive_excitation_backprop\n\n"
    + "jaxplain localize vgg16 --weights imagenet --data folder:ILSVRC2012_img_val "
    + "--annotations CLS-LOC/val --methods chip,refined_chip --chip vgg16.chip.safetensors "
    + "--count 5000 --out runs/chip",
)
def localize_objects(
    model: FitModel,
    annotations: Annotated[
        Path,
        typer.Option(
            help="The folder of boxes: ILSVRC2012_val_00000001.xml and so on, as in the "
            "challenge's Annotations/CLS-LOC/val."
        ),
    ],
    weights: FitWeights = None,
    data: Annotated[
        str,
        typer.Option(
            help="The pictures: tfds:imagenet2012, prepared on disk, or folder:PATH with the "
            "challenge's files, all in one folder or in one for each synset."
        ),
    ] = "tfds:imagenet2012",
    methods: Methods = "all",
    layer: Layer = None,
    chip: Chip = None,
    features: Features = None,
    masker: Masker = None,
    synsets: Annotated[
        Path | None,
        typer.Option(
            help="Synsets of the network's classes in its order, the first word of each line.",
            show_default="ILSVRC's thousand",
        ),
    ] = None,
    tuning: Annotated[
        int, typer.Option(min=1, help="Pictures that the thresholds are searched on.")
    ] = 1000,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Other pictures to judge.", show_default="all others"),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Squash whole pictures to the network's input, where it would cut out the middle.",
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of the table: localization.md and .json.")
    ] = Path("localization"),
    seed: Seed = 0,
    chunk: Chunk = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Measures how often the box around a method's map finds the object in ILSVRC's pictures.

    Errors of the challenge's protocol: the first guess, the first five, and with the class known.
    The threshold of the boxes is searched for on pictures kept for it. What is done is kept in
    OUT/kept: the same command goes on where it was stopped.
    """
    del debug
    from jaxplain.cli.localize import Request, run

    run(
        Request(
            data=data,
            annotations=annotations,
            model=model,
            weights=weights,
            methods=methods,
            layer=layer,
            fitted={"chip": chip, "features": features, "masker": masker},
            synsets=synsets,
            tuning=tuning,
            count=count,
            whole=whole,
            out=out,
            seed=seed,
            chunk=chunk,
            cache=not no_cache,
        )
    )
