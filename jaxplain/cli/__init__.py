"""The command line `jaxplain`: `commands` has what can be typed, its neighbours do the work."""

from jaxplain.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the program: the console script `jaxplain`."""
    app(prog_name="jaxplain")
