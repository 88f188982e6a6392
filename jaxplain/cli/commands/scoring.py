"""`jaxplain evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxplain.cli.commands.options import EXAMPLES, Chunk, Debug, NoCache, Seed
from jaxplain.cli.commands.program import app


@app.command(
    "evaluate",
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
