"""What the commands of `jaxplain train` have in common: where they write, and their progress."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxplain.cli.console import Advance, note
from jaxplain.outputs import check_writable

if TYPE_CHECKING:
    from jaxplain.data.labelled import Data
    from jaxplain.training import Epoch, Progress

SUFFIX = ".safetensors"


def find_place(out: Path | None, name: str, checkpoints: Path | None) -> Path:
    """Return the file to write: `out`, or `name` in that folder or in this one.

    Raises:
        OSError: it or the checkpoints cannot be written.

    Example:
        >>> find_place(None, "digits.safetensors", None).name
        'digits.safetensors'
    """
    path = Path(name) if out is None else out
    if path.is_dir():
        path = path / name
    check_writable(path)
    if checkpoints is not None:
        check_writable(checkpoints / "state")
    return path


def tell_counts(of: str, data: "Data") -> None:
    """Say how many pictures there are in each split."""
    counts = ", ".join(f"{len(part.images):,}" for part in data[:3])
    note(f"{of}; {counts} pictures to learn, choose and test by")


def teller(
    advance: Advance, name: str, best: Callable[[Sequence["Epoch"]], str]
) -> Callable[["Progress"], None]:
    """Return what a training is to call now and then: it shows the loss and the best epoch.

    Args:
        advance: of a bar.
        name: of what is trained.
        best: what to say of the epochs that are done.
    """

    def show(now: "Progress") -> None:
        text = f"{name}: loss {now.loss:.3f}"
        if now.history:
            text += f", {best(now.history)}"
        advance(text, done=now.step, total=now.steps)

    return show
