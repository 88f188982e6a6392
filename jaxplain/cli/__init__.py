"""The command line `jaxplain`: what its commands are called and take. The work is done beside it.

A ValueError, TypeError or OSError is the user's to mend: it becomes one line on standard error and
exit code 2. `--debug` shows the traceback instead.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jaxplain.cli.console import complain, say

EXAMPLES = "[bold]Examples[/bold]\n\n"


# typer.BadParameter is a UsageError is a ClickException, in Typer's own copy of click or in click
# itself.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


# What becomes one line: what the user can mend, a library that is missing, and too little memory
# (JAX raises a RuntimeError then).
FAILURES = (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError)


class Group(TyperGroup):
    """The program: it turns errors into one line and an exit code."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Run a command line and exit; see the module."""
        given = list(sys.argv[1:] if args is None else args)
        if given in ([], ["data"], ["fit"]):
            given.append("--help")
        try:
            code = super().main(given, *others, **{**options, "standalone_mode": False})
        except UsageError as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "jaxplain"
            complain(f"{error.format_message().rstrip('.')}; see {command} --help")  # type: ignore[attr-defined]
            code = 2
        except FAILURES as error:
            if "--debug" in given:
                raise
            complain(_reason(error))
            code = 2
        except typer.Abort:
            complain("stopped")
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


def _reason(error: Exception) -> str:
    """The message; of an operating system's error, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename!r}: {error.strerror}"
    return str(error) or type(error).__name__


app = typer.Typer(
    name="jaxplain",
    cls=Group,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Shows which parts of a picture made an image classifier decide as it did.",
    epilog="Start with [bold]jaxplain demo[/bold]; for a photograph of your own, [bold]jaxplain "
    "explain PICTURE --model vgg16 --weights imagenet[/bold]. "
    "Every command has its own [bold]--help[/bold] with examples.",
)
data_app = typer.Typer(rich_markup_mode="rich")
app.add_typer(data_app, name="data")
fit_app = typer.Typer(rich_markup_mode="rich")
app.add_typer(fit_app, name="fit")


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Do not keep compiled programs for the next run. "
        "JAXPLAIN_COMPILATION_CACHE=off does the same.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, help="Of everything random: the same seed, the same maps."),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Pictures explained at once: more is faster and takes more memory.",
        show_default="chosen",
    ),
]


def show_version(wanted: bool) -> bool:
    """Print the version and stop, if `wanted`."""
    if wanted:
        from importlib import metadata

        say(f"jaxplain {metadata.version('jaxplain')}")
        raise typer.Exit
    return wanted


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        is_eager=True,
        callback=show_version,
        help="Print the version.",
    ),
]


@app.callback()
def root(version: Version = False, debug: Debug = False) -> None:
    """Shows which parts of a picture made an image classifier decide as it did."""
    del version, debug


@data_app.callback()
def data() -> None:
    """Data sets with known evidence."""


@app.command(
    "explain",
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
            metavar="IMAGE...",
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
    methods: Annotated[
        str,
        typer.Option(
            help="Names with commas between, or all; [bold]jaxplain methods[/bold] lists them."
        ),
    ] = "all",
    target: Annotated[
        str,
        typer.Option(
            help="What to explain: a class by name (whatever its capitals) or number (from 0 on), "
            "top1 (the prediction) or top5."
        ),
    ] = "top1",
    layer: Annotated[
        str | None,
        typer.Option(
            help="Layer of the methods that explain one; [bold]jaxplain models[/bold] lists them."
        ),
    ] = None,
    chip: Annotated[
        Path | None,
        typer.Option(
            help="What [bold]jaxplain fit chip[/bold] wrote, for the CHIP methods.",
            show_default="what ships with the classifier",
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="What [bold]jaxplain fit features[/bold] wrote, for interpretation.",
            show_default="what ships with the classifier",
        ),
    ] = None,
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
            chip=chip,
            features=features,
            out=out,
            npz=npz,
            seed=seed,
            chunk=chunk,
            cache=not no_cache,
        )
    )


@app.command(
    "demo", epilog=EXAMPLES + "jaxplain demo\n\njaxplain demo --out /tmp/demo.html --flowers 600"
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


@app.command("models", epilog=EXAMPLES + "jaxplain models\n\njaxplain models an8flower-single-6c")
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
    epilog=EXAMPLES + "jaxplain methods\n\njaxplain explain photo.jpg --methods grad_cam,occlusion",
)
def list_methods(debug: Debug = False) -> None:
    """Lists the methods: what each does, what it needs, and where it was published."""
    del debug
    from jaxplain.cli.listing import show_methods

    show_methods()


@app.command(
    "train",
    epilog=EXAMPLES
    + "jaxplain train an8flower-single-6c --seed 1 --checkpoints runs/single --out own.safetensors"
    + "\n\njaxplain train --model resnet18 --data folder:flowers --out flowers.safetensors\n\n"
    + "jaxplain train --model vgg19 --data tfds:voc/2007 --head multilabel --batch-size 64 "
    + "--learning-rate 1e-4 --out voc.safetensors",
)
def train_model(
    name: Annotated[
        str | None,
        typer.Argument(help="A classifier that ships with the package, to train anew."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network to fine-tune; [bold]jaxplain models[/bold] lists them.",
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
        typer.Option(help="Epochs without progress after which to stop.", show_default="10"),
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

    With --model and --data, a network learns your classes; jaxplain explain --weights takes it.

    The same command gives the same weights, interrupted or not.
    """
    del debug
    settings = {
        "head": head,
        "freeze": freeze,
        "weights": weights,
        "image_size": image_size,
        "shift": shift,
        "flip": flip or None,
        "patience": patience,
    }
    if name is None:
        from jaxplain.cli.tune import tune_classifier

        tune_classifier(
            model,
            data,
            out=out,
            checkpoints=checkpoints,
            pictures=pictures,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            cache=not no_cache,
            **settings,
        )
        return
    others = settings | {"model": model, "data": data, "pictures": pictures}
    if unused := [
        f"--{key.replace('_', '-')}" for key, value in others.items() if value is not None
    ]:
        raise typer.BadParameter(
            f"{name} is trained as its recipe says, where {unused[0]} has no meaning; to fine-tune "
            f"give --model and --data instead of a name"
        )
    from jaxplain.cli.make import train_classifier

    if out is not None and out.is_dir():
        out = out / f"{name}.safetensors"
    train_classifier(
        name,
        out=out or Path(f"{name}.safetensors"),
        checkpoints=checkpoints,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        cache=not no_cache,
    )


@data_app.command(
    "build",
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


@fit_app.callback()
def fit() -> None:
    """What methods learn about a classifier before they explain with it."""


Join = Annotated[
    bool,
    typer.Option(
        "--join",
        help="This is one of several processes, which SLURM, Kubernetes, Open MPI or a TPU "
        "pod started: JAX finds the others.",
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(help="This is one of several processes: HOST:PORT of the first."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="How many there are.")]
Process = Annotated[int | None, typer.Option(min=0, help="Which this is, from 0.")]
FitModel = Annotated[
    str, typer.Argument(help="The classifier; [bold]jaxplain models[/bold] lists them.")
]
FitWeights = Annotated[
    str | None,
    typer.Option(
        help="Its weights, as in [bold]jaxplain explain[/bold].",
        show_default="those that ship with it",
    ),
]
FitPictures = Annotated[
    int | None, typer.Option(min=1, help="Use only so many.", show_default="all")
]
FitBatch = Annotated[int, typer.Option(min=1, help="Pictures a batch, in each process.")]
FitCheckpoints = Annotated[
    Path | None,
    typer.Option(help="Folder of checkpoints; the same command goes on from there."),
]


@fit_app.command(
    "chip",
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
    from jaxplain.cli.fit import Request, run

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


def main() -> None:
    """Run the program: the console script `jaxplain`."""
    app(prog_name="jaxplain")
