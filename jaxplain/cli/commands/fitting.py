"""`jaxplain fit chip` and `jaxplain fit features`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxplain.cli.commands.options import (
    EXAMPLES,
    Coordinator,
    Debug,
    FitBatch,
    FitCheckpoints,
    FitModel,
    FitPictures,
    FitWeights,
    Join,
    NoCache,
    Process,
    Processes,
    Seed,
)
from jaxplain.cli.commands.program import Command, fit_app


@fit_app.command(
    "chip",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain fit chip an8flower-single-6c\n\n"
    + "jaxplain fit chip vgg16 --weights imagenet --data tfds:imagenet2012 "
    + "--layers conv1_1,conv5_3 --checkpoints runs/chip\n\n"
    + "jaxplain explain photo.jpg --model vgg16 --weights imagenet --methods chip,refined_chip "
    + "--chip vgg16.chip.safetensors",
)
def fit_channels(
    model: FitModel,
    weights: FitWeights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The pictures: folder:PATH, tfds:NAME, an8flower/single_6c, an8flower/double_12c "
            "or digits. Those to train on are taken; labels are not looked at.",
            show_default="what it was trained on",
        ),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            help="Names with commas between, or all: those with positions that no path goes round."
        ),
    ] = "all",
    pictures: FitPictures = None,
    gates: Annotated[int, typer.Option(min=1, help="Gate vectors for each picture.")] = 100,
    keep: Annotated[float, typer.Option(help="Probability of an open gate.")] = 0.5,
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Width of the proximity, in units of the square root of the channels.",
            show_default="the square root of 1 - KEEP",
        ),
    ] = None,
    penalty: Annotated[
        float, typer.Option(help="Of the weights, as a share of the largest that leaves any.")
    ] = 0.01,
    shared: Annotated[
        bool, typer.Option("--shared", help="The same gates for all pictures.")
    ] = False,
    batch_size: FitBatch = 32,
    checkpoints: FitCheckpoints = None,
    every: Annotated[
        int, typer.Option(min=1, help="Chunks of 64 pictures between two checkpoints.")
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(help="What was learned.", show_default="MODEL.chip.safetensors"),
    ] = None,
    seed: Seed = 0,
    join: Join = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Learns how much each class needs each channel of a classifier, from many pictures.

    On all devices there are, and in several processes if told so. The same command gives the same
    result, interrupted or not.
    """
    del debug
    from jaxplain.cli.channels import Request, run

    run(
        Request(
            model=model,
            weights=weights,
            data=data,
            layers=layers,
            pictures=pictures,
            num_gates=gates,
            keep=keep,
            sigma=sigma,
            penalty=penalty,
            shared=shared,
            batch_size=batch_size,
            checkpoints=checkpoints,
            every=every,
            out=out,
            seed=seed,
            join=join,
            coordinator=coordinator,
            processes=processes,
            process=process,
            cache=not no_cache,
        )
    )


@fit_app.command(
    "features",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain fit features an8flower-single-6c --mu 5 --montage flowers.png\n\n"
    + "jaxplain fit features digits --data tfds:mnist\n\n"
    + "jaxplain fit features vgg16 --weights imagenet --data folder:cats --labels predicted\n\n"
    + "jaxplain explain photo.jpg --model vgg16 --weights imagenet --methods interpretation "
    + "--features vgg16.features.safetensors",
)
def fit_features(
    model: FitModel,
    weights: FitWeights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The pictures: folder:PATH, tfds:NAME, an8flower/single_6c, an8flower/double_12c "
            "or digits. Those to train on are taken; their classes are matched by name.",
            show_default="what it was trained on",
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Names with commas between, or all but the logits.")
    ] = "all",
    skip_last: Annotated[
        int, typer.Option(min=0, help="Of all layers, how many of the last to leave out besides.")
    ] = 0,
    pictures: FitPictures = None,
    mu: Annotated[
        float, typer.Option(help="The largest sum of a class's weights: more, more features.")
    ] = 10.0,
    pool: Annotated[
        str, typer.Option(help="Which layers may have features: all, or convolution.")
    ] = "all",
    labels: Annotated[
        str | None,
        typer.Option(help="true, or predicted: the classifier's own answers.", show_default="true"),
    ] = None,
    squared: Annotated[
        bool, typer.Option("--squared", help="Squares of the norms, as the authors' code has it.")
    ] = False,
    nonnegative: Annotated[
        bool, typer.Option("--nonnegative", help="No feature whose absence speaks for a class.")
    ] = False,
    batch_size: FitBatch = 32,
    checkpoints: FitCheckpoints = None,
    every: Annotated[
        int, typer.Option(min=1, help="Chunks of 256 pictures between two checkpoints.")
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(help="What was selected.", show_default="MODEL.features.safetensors"),
    ] = None,
    montage: Annotated[
        Path | None,
        typer.Option(help="Also draw what each class's features look for, as PNG."),
    ] = None,
    patches: Annotated[
        int, typer.Option(min=1, help="Patches averaged for each of these images.")
    ] = 100,
    seed: Seed = 0,
    join: Join = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Finds the few channels, of any layer, that tell the classes of a classifier apart.

    On all devices there are, and in several processes if told so. The same command gives the same
    result, interrupted or not.
    """
    del debug
    from jaxplain.cli.features import Request, run

    run(
        Request(
            model=model,
            weights=weights,
            data=data,
            layers=layers,
            skip_last=skip_last,
            pictures=pictures,
            mu=mu,
            pool=pool,
            labels=labels,
            squared=squared,
            nonnegative=nonnegative,
            batch_size=batch_size,
            checkpoints=checkpoints,
            every=every,
            out=out,
            montage=montage,
            patches=patches,
            seed=seed,
            join=join,
            coordinator=coordinator,
            processes=processes,
            process=process,
            cache=not no_cache,
        )
    )
