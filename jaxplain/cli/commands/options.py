"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from jaxplain.cli.console import say

EXAMPLES = "[bold]Examples[/bold]\n\n"


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Do not keep compiled programs for the next run, as where "
        "JAXPLAIN_COMPILATION_CACHE is off.",
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


Methods = Annotated[
    str,
    typer.Option(
        help="Names with commas between; all is every one but those that take hundreds of "
        "passes. [bold]jaxplain methods[/bold] lists them."
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        help="Layer of the methods that explain one; [bold]jaxplain models[/bold] lists them."
    ),
]
Chip = Annotated[
    Path | None,
    typer.Option(
        help="What [bold]jaxplain fit chip[/bold] wrote, for the CHIP methods.",
        show_default="what ships with the classifier",
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(
        help="What [bold]jaxplain fit features[/bold] wrote, for interpretation.",
        show_default="what ships with the classifier",
    ),
]
Masker = Annotated[
    Path | None,
    typer.Option(
        help="What [bold]jaxplain train masker[/bold] wrote, for real-time saliency.",
        show_default="what ships with the classifier",
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
