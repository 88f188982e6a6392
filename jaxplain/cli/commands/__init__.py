"""What the commands are called and take, a group a file; the work is done beside this folder.

A file's commands are in the program once it is imported; the order of the imports is the order in
which `--help` lists them.
"""

# isort: off
from jaxplain.cli.commands import explaining, scoring, listing, training, fitting
from jaxplain.cli.commands.program import app
# isort: on

__all__ = ["app", "explaining", "fitting", "listing", "scoring", "training"]
