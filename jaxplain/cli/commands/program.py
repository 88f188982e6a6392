"""The program itself: its groups of commands, and how it ends.

What the user can mend (`FAILURES`) becomes one line on standard error and exit code 2. `--debug`
shows the traceback instead.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from jaxplain.cli.commands.options import Debug, Version
from jaxplain.cli.console import complain, note

# typer.BadParameter is a UsageError is a ClickException, in Typer's own copy of click or in click
# itself.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


STOPPED = 130
"""The exit code of a program that Ctrl-C ended, as shells have it."""

# What becomes one line: what the user can mend, a library that is missing, and too little memory
# (JAX raises a RuntimeError then).
FAILURES = (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError)


class Command(TyperCommand):
    """A command whose help is as wide as the terminal, whatever the lines of its docstring."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:  # noqa: A002
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        flowing = "\n\n".join(" ".join(part.split()) for part in paragraphs)
        super().__init__(*args, help=flowing, **options)


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
            code = STOPPED
        if code == STOPPED:
            note("stopped")
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


@app.callback()
def root(version: Version = False, debug: Debug = False) -> None:
    """Shows which parts of a picture made an image classifier decide as it did."""
    del version, debug


@data_app.callback()
def data() -> None:
    """Data sets with known evidence."""


@fit_app.callback()
def fit() -> None:
    """What methods learn about a classifier before they explain with it."""
