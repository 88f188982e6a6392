"""What commands keep of their work, so that the same command goes on where it was stopped."""

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.outputs import replacing

if TYPE_CHECKING:
    from jaxplain.methods import Method

FORMAT = "jaxplain.localization.method/1"


@dataclass
class Kept:
    """What is known so far of a method, or of the network's answers.

    Attributes:
        path: its file.
        work: whose figures they are.
        arrays: name -> one row a picture.
        done: how many pictures.
        title: for people.
        method: None for what is no method.
    """

    path: Path
    work: Mapping[str, Any]
    arrays: dict[str, np.ndarray]
    done: int
    title: str
    method: "Method | None" = None

    def take(self, rows: slice, found: Mapping[str, np.ndarray]) -> None:
        """Fill in some pictures."""
        for name, values in found.items():
            self.arrays[name][rows] = values[: rows.stop - rows.start]
        self.done = rows.stop

    def write(self) -> None:
        """Write the file; it appears whole or not at all."""
        told = json.dumps({"format": FORMAT, "work": self.work, "done": self.done}, sort_keys=True)
        # None of objects: there is nothing that NumPy would pickle.
        content: dict[str, Any] = {"told": np.array(told), **self.arrays}
        with replacing(self.path) as part, part.open("wb") as file:
            np.savez(file, **content)

    def read(self) -> None:
        """Go on from the file, if there is a whole one of this work."""
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as found:
                told = json.loads(str(found["told"]))
                arrays = {name: found[name] for name in self.arrays}
            same = told["format"] == FORMAT and told["work"] == self.work
            shapes = all(arrays[name].shape == own.shape for name, own in self.arrays.items())
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return
        if same and shapes:
            self.arrays, self.done = arrays, int(told["done"])


def digest_of(tree: Any) -> str:
    """Return a SHA-256 of the arrays of a model, or of any other pytree, in hexadecimal."""
    import jax

    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Return whose figures they are: the versions of what computes them, and our code itself."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("jaxplain", "jax")} | {"code": code_digest()}


@functools.cache
def code_digest() -> str:
    """Return a digest of the package's modules: between two releases, too, methods change.

    Example:
        >>> len(code_digest())
        16
    """
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def kept_path(folder: Path, work: Mapping[str, Any]) -> Path:
    """Return where a method's figures are kept: another file for whatever else is asked."""
    said = json.dumps(work, sort_keys=True).encode()
    return folder / "kept" / f"{work['method']}-{hashlib.sha256(said).hexdigest()[:12]}.json"
