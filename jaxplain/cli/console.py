"""The terminal: results go to standard output, progress and errors to standard error."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Advance = Callable[..., None]
"""advance(text, steps=1): so many steps are done, and this comes next."""

PATIENCE = 3.0
"""Seconds between lines of progress where there is no terminal to draw a bar on."""

PLAIN = str.maketrans({"\n": " ", "\r": " ", "\t": " "})


def out() -> "Console":
    """Return the console of results."""
    from rich.console import Console

    return Console(highlight=False)


def err() -> "Console":
    """Return the console of progress and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def one_line(text: object) -> str:
    r"""Return text as one line without anything that would steer a terminal.

    Example:
        >>> one_line("weights\n  lack conv1\x1b[31m")
        'weights lack conv1\\x1b[31m'
    """
    joined = " ".join(str(text).translate(PLAIN).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in joined)


def say(text: object) -> None:
    """Print a line of result, whatever it contains, never wrapped."""
    out().print(one_line(text), markup=False, soft_wrap=True)


def note(text: object) -> None:
    """Print a line about the work, on standard error."""
    err().print(one_line(text), markup=False, soft_wrap=True, style="dim")


def complain(text: object) -> None:
    """Print an error in one line."""
    console = err()
    console.print("Error: ", style="bold red", end="")
    console.print(one_line(text), markup=False, soft_wrap=True)


def table(title: str, columns: Iterable[tuple[str, str]]) -> "Table":
    """Return an empty table.

    Args:
        title: above it.
        columns: (head, "left" or "right") pairs.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for head, side in columns:
        made.add_column(head, justify="right" if side == "right" else "left", overflow="fold")
    return made


def show_table(rows: "Table") -> None:
    """Print a table; where the output is no terminal, as wide as it needs."""
    console = out()
    if not console.is_terminal:
        console.width = max(console.width, 200)
    console.print(rows)


def leave(code: int) -> NoReturn:
    """End the process now, once what was printed is out, whatever still runs.

    For work that was stopped half-way. Python would wait for its threads and devices, and what a
    device then still calls on the host, such as a black box, would end it with a fatal error.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Advance]:
    """Show a bar of `total` steps until the block ends; 0 if nobody knows how many.

    Where standard error is no terminal, say in a plain line now and then how far the work is: none
    in the first `PATIENCE` seconds, and then one in as many at most.

    Yields a function to call after each step, with what comes next.
    """
    console = err()
    if not console.is_terminal:
        yield _lines(total)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total or None)
        count = 0

        def advance(
            now: str, steps: int = 1, *, done: int | None = None, total: int | None = None
        ) -> None:
            nonlocal count
            count = count + steps if done is None else done
            bar.update(task, completed=count, description=one_line(now), total=total)

        yield advance


def _lines(steps: int) -> Advance:
    """What `progress` yields where there is no terminal."""
    count, whole, told = 0, steps, time.monotonic()

    def advance(
        now: str, steps: int = 1, *, done: int | None = None, total: int | None = None
    ) -> None:
        nonlocal count, whole, told
        count = count + steps if done is None else done
        whole = total or whole
        if time.monotonic() - told >= PATIENCE:
            told = time.monotonic()
            note(f"{count} of {whole}: {now}" if whole else f"{count}: {now}")

    return advance
