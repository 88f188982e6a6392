"""Downloads files into the user's cache: resumed, checked, once.

Transfers are Pooch's (https://www.fatiando.org/pooch), which does not resume; asking the server for
what is missing is added here.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

CACHE_VARIABLE = "JAXPLAIN_CACHE"
ATTEMPTS = 3
CHUNK = 1 << 18


def cache_folder() -> Path:
    """Return where downloads are kept: $JAXPLAIN_CACHE, or the user's cache folder of this system.

    Example:
        >>> cache_folder().name
        'jaxplain'
    """
    import platformdirs

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("jaxplain")


def download(url: str, path: Path, *, sha256: str, progress: bool = True) -> str:
    """Download `url` to `path` and return its SHA-256.

    The file appears when it is complete and verified. What an interrupted transfer has brought
    stays in `<path>.part`; the next call goes on there.

    Args:
        url: http or https.
        path: the file to make; its folder exists.
        sha256: hexadecimal SHA-256 of the file, or the first digits of it.
        progress: show a bar on standard error, if that is a terminal.

    Raises:
        OSError: the server does not have it or cannot be reached; the message says what to do.
        ValueError: what came has another hash; it is deleted.
    """
    import requests

    part = path.with_name(path.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, progress=progress)
            break
        except requests.exceptions.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == requests.codes.requested_range_not_satisfiable:
                break  # there is nothing beyond what we have
            raise OSError(_advice(url, path, f"the server answers {status}")) from error
        except requests.exceptions.RequestException as error:
            if attempt == ATTEMPTS:
                reason = f"{type(error).__name__}; what has come is kept, the next attempt goes on"
                raise OSError(_advice(url, path, reason)) from error
    try:
        found = verify(part, sha256)
    except ValueError:
        part.unlink()
        raise
    part.replace(path)
    return found


def verify(path: Path, sha256: str) -> str:
    """Return the SHA-256 of a file, which must begin with `sha256`.

    Raises:
        ValueError: it does not.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise ValueError(f"{path.name} has the SHA-256 {found}; expected {sha256}")
    return found


def _advice(url: str, path: Path, reason: str) -> str:
    return (
        f"cannot download {url} ({reason}). Download it elsewhere and put it at {path}, or pass "
        f"its path as the weights."
    )


def _transfer(url: str, part: Path, *, progress: bool) -> None:
    """Append to `part` what it lacks of `url`; start anew where the server only sends the whole."""
    import pooch

    with part.open("ab") as file, _bar(part, progress) as bar:
        have = file.tell()

        def started(response: Any, **_: Any) -> None:
            if response.status_code == 200:
                file.truncate(0)
            expected = int(response.headers.get("content-length", 0))
            bar.start(have if response.status_code == 206 else 0, expected)

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        fetch = pooch.HTTPDownloader(chunk_size=CHUNK, headers=headers, hooks={"response": started})
        fetch(url, _Counted(file, bar), None)


class _Bar:
    """How much of a file is there; shows nothing."""

    def start(self, have: int, expected: int) -> None:
        """Say that `have` bytes are there and `expected` are to come."""

    def advance(self, count: int) -> None:
        """Say that `count` bytes have come."""


@contextlib.contextmanager
def _bar(part: Path, shown: bool) -> Iterator[_Bar]:
    """Show a progress bar while the context lasts."""
    if not shown:
        yield _Bar()
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as shower:
        task = shower.add_task(part.stem, total=None)

        class Shown(_Bar):
            def start(self, have: int, expected: int) -> None:
                shower.update(task, completed=have, total=have + expected)

            def advance(self, count: int) -> None:
                shower.advance(task, count)

        yield Shown()


class _Counted:
    """A file that tells a bar what is written."""

    def __init__(self, file: IO[bytes], bar: _Bar):
        self._file, self._bar = file, bar

    def write(self, data: bytes) -> int:
        self._bar.advance(len(data))
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
