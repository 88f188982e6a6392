"""The command line `jaxplain`: `commands` has what can be typed, its neighbours do the work."""

import gc

from jaxplain.cli.commands import app
from jaxplain.cli.commands.program import STOPPED
from jaxplain.cli.console import leave

__all__ = ["app", "main"]


def main() -> None:
    """Run the program: the console script `jaxplain`."""
    # Tracing makes millions of small objects and few cycles. Looking through them at Python's own
    # intervals takes a fifth of its time.
    gc.set_threshold(50_000, 10, 10)
    try:
        app(prog_name="jaxplain")
    except SystemExit as end:
        if end.code == STOPPED:
            leave(STOPPED)
        raise
