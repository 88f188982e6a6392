"""`jaxplain train` and `jaxplain data build`: classifiers, and the pictures they learn from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxplain.cli.commands.options import EXAMPLES, Debug, NoCache, Seed
from jaxplain.cli.commands.program import Command, app, data_app


@app.command(
    "train",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain train an8flower-single-6c --seed 1 --checkpoints runs/single --out own.safetensors"
    + "\n\njaxplain train digits --data tfds:mnist --out mnist.safetensors"
    + "\n\njaxplain train --model resnet18 --data folder:flowers --out flowers.safetensors\n\n"
    + "jaxplain train --model vgg19 --data tfds:voc/2007 --head multilabel --batch-size 64 "
    + "--learning-rate 1e-4 --out voc.safetensors\n\n"
    + "jaxplain train masker --model an8flower-single-6c --checkpoints runs/masker",
)
def train_model(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A classifier that ships with the package, to train anew; or masker, to train a "
            "network that masks what --model needs (real-time saliency)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network to fine-tune or to mask; [bold]jaxplain models[/bold] lists them.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="What it learns: folder:PATH (a folder a class, or a table labels.csv: "
            "file,label), tfds:NAME (prepared on disk), an8flower/single_6c, "
            "an8flower/double_12c or digits.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="softmax: a picture has one class; multilabel: several or none.",
            show_default="softmax",
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="What stays as it is: features, all but the last layer; convolutions, all but the "
            "dense layers; none.",
            show_default="features",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Where the network begins: imagenet, a file, hf:owner/name or random.",
            show_default="imagenet",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the pictures in pixels.", show_default="the network's own"),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Use only so many.", show_default="all")
    ] = None,
    shift: Annotated[
        int | None,
        typer.Option(help="Move each training picture by up to so many pixels.", show_default="0"),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror half the training pictures.")
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Epochs without progress after which to stop.",
            show_default="10; 4 for a masker",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Its weights: a file, or a folder for it.", show_default="NAME.safetensors"
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints; the same command goes on from there."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the pictures, at most.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.")] = None,
    seed: Seed = 0,
    no_cache: NoCache = False,
    debug: Debug = False,
) -> None:
    """Trains a classifier, and says how good it is: one that ships anew, or a new head for any.

    With --model and --data, a network learns your classes; jaxplain explain --weights takes it. A
    name and --data train that network, from the beginning, on other pictures.

    With the name masker, a small network learns to mask what --model needs for its answers, on the
    pictures that the model was trained on or on those of --data; jaxplain explain takes it as
    --masker.

    The same command gives the same weights, interrupted or not.
    """
    del debug
    work: dict[str, Any] = {
        "out": out,
        "checkpoints": checkpoints,
        "pictures": pictures,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "cache": not no_cache,
    }
    settings = {
        "head": head,
        "freeze": freeze,
        "weights": weights,
        "image_size": image_size,
        "shift": shift,
        "flip": flip or None,
        "patience": patience,
    }
    if name == "masker":
        own = ("weights", "patience")
        unused = {key: value for key, value in settings.items() if key not in own}
        refuse("a masker", unused, "the classifier stays as it is")
        from jaxplain.cli.masker import train_masking
        from jaxplain.cli.tune import model_in

        chosen = model or model_in(weights)
        train_masking(chosen, data, weights=weights, patience=patience, **work)
        return
    if name is None:
        from jaxplain.cli.tune import tune_classifier

        tune_classifier(model, data, **work, **settings)
        return
    refuse(
        name,
        settings | {"model": model} | ({} if data else {"pictures": pictures}),
        "to fine-tune give --model and --data instead of a name",
        how="as its recipe says",
    )
    from jaxplain.cli.make import train_classifier

    train_classifier(name, data=data, **work)


def refuse(name: str, options: Mapping[str, Any], instead: str, *, how: str = "anew") -> None:
    """Refuse options that have no meaning for what is trained."""
    if unused := [
        f"--{key.replace('_', '-')}" for key, value in options.items() if value is not None
    ]:
        raise typer.BadParameter(
            f"{name} is trained {how}, where {unused[0]} has no meaning; {instead}"
        )


@data_app.command(
    "build",
    cls=Command,
    epilog=EXAMPLES
    + "jaxplain data build single_6c\n\n"
    + "jaxplain data build double_12c --folder data --train 100 --validation 10 --test 10",
)
def build_data(
    variant: Annotated[str, typer.Argument(help="single_6c or double_12c.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Where data sets live.", show_default="JAXPLAIN_DATA, or the user's own"),
    ] = None,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 112,
    train: Annotated[int, typer.Option(min=1, help="Pictures a class to train on.")] = 700,
    validation: Annotated[int, typer.Option(min=1, help="Pictures a class to choose by.")] = 100,
    test: Annotated[int, typer.Option(min=1, help="Pictures a class held out.")] = 200,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Renders the flowers with their evidence as a TensorFlow Datasets folder, without TensorFlow.

    A data set that is there already is left as it is.
    """
    del debug
    from jaxplain.cli.make import build_flowers

    build_flowers(variant, folder=folder, size=size, seed=seed, per_class=(train, validation, test))
