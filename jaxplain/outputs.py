"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: Path | str) -> Path:
    """Return `path` if a file could be written there, or raise; nothing is left behind.

    Call it before long work whose result goes there. Folders that are missing would be made by
    `replacing`.

    Raises:
        IsADirectoryError: a folder has that name.
        FileExistsError: a device or a pipe has that name: a file would take its place.
        NotADirectoryError: a file stands where a folder is needed.
        PermissionError, OSError: the folder refuses new files.

    Example:
        >>> check_writable("made/later/report.html").name
        'report.html'
    """
    path = Path(path)
    _check_kind(path)
    folder = path.resolve().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {_shown(path)}: {_shown(folder)} is a file")
    trial = folder / _temporary_name()
    try:
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        reason = f"cannot write {_shown(path)}: folder {_shown(folder)} refuses new files"
        raise type(error)(f"{reason} ({error.strerror})") from error
    return path


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place if the block ends well.

    If it does not, or the program is interrupted, what stood at `path` still stands there, and the
    temporary file is gone. A link stays one: what it leads to is replaced.

    Raises:
        OSError: the folder cannot be made or written, or `path` is a folder, a device or a pipe.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "new" / "a.txt") as part:
        ...         _ = part.write_text("whole")
        ...     [p.name for p in (Path(folder) / "new").iterdir()]
        ['a.txt']
    """
    path = Path(path).resolve()
    _check_kind(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / _temporary_name()
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_kind(path: Path) -> None:
    """Raise if something has that name that is no file."""
    if path.is_dir():
        raise IsADirectoryError(
            f"cannot write {_shown(path)}: it is a folder; give a file name in it"
        )
    if path.exists() and not path.is_file():
        raise FileExistsError(f"cannot write {_shown(path)}: it is a device or a pipe, not a file")


def _temporary_name() -> str:
    return f".jaxplain-{os.getpid()}-{secrets.token_hex(4)}.part"


def _shown(path: Path) -> str:
    """The path in quotes, unprintable characters escaped."""
    return repr(str(path))
