"""Files of what was fitted to a model: tensors, their meaning, and whose parameters they fit."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.methods.fingerprint import fingerprint
from jaxplain.model import Model

T = TypeVar("T")


class Fitted(NamedTuple):
    """A kind of thing that is fitted to a model.

    Attributes:
        name: what its files say they are, and what they are called.
        entry: of the file's metadata that tells what the tensors mean, as JSON.
        what: the thing, in the plural.
        needed: who needs it.
        remedy: how to get it.
        verb: what `jaxplain` does to get it.

    Example:
        >>> Fitted("scales", "of", "scales", "scaling needs scales", "weigh it").suffix
        'scales.safetensors'
    """

    name: str
    entry: str
    what: str
    needed: str
    remedy: str
    verb: str = "fit"

    @property
    def suffix(self) -> str:
        """What its files' names end with."""
        return f"{self.name}.safetensors"

    @property
    def command(self) -> str:
        """What writes such files."""
        return f"jaxplain {self.verb} {self.name}"

    def write(self, path: str | Path, arrays: Mapping[str, Any], told: Any) -> None:
        """Write tensors and what is told of them; the file appears when complete.

        Raises:
            OSError: the file cannot be written.
        """
        from jaxplain.models.weights.safetensors_file import OWN_FORMAT, write_safetensors

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": OWN_FORMAT, "kind": self.name, self.entry: json.dumps(told)}
        write_safetensors(path, {name: np.asarray(a) for name, a in arrays.items()}, metadata)

    def read(self, path: str | Path, build: Callable[[dict[str, jax.Array], Any], T]) -> T:
        """Return what `build` makes of the tensors and what is told of them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, of another kind, or of another version.
        """
        from jaxplain.models.weights.safetensors_file import read_safetensors

        tensors, metadata = read_safetensors(path)
        if metadata.get("kind") != self.name:
            raise ValueError(f"{path} holds no {self.what}; expected what `{self.command}` wrote")
        try:
            arrays = {
                name: jnp.concatenate([rows for _, rows in tensor.pieces()])
                for name, tensor in tensors.items()
            }
            return build(arrays, json.loads(metadata[self.entry]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds {self.what} of another version: {error!r}") from error

    def shipped(self, model: Model, load: Callable[[Path], T]) -> T:
        """Return what `load` makes of the file that ships with a model.

        Raises:
            ValueError: none does.
        """
        from importlib import resources

        place = resources.files("jaxplain.models.weights") / f"{model.name}.{self.suffix}"
        if not model.name or not place.is_file():
            raise ValueError(self._missing(model, "none ship with it"))
        with resources.as_file(place) as path:
            return load(path)

    def check(self, model: Model, fingerprints: Iterable[int], reason: str) -> None:
        """Raise ValueError, with the reason, unless all fingerprints are those of a model."""
        own = fingerprint(model)
        if any(one != own for one in fingerprints):
            raise ValueError(self._missing(model, reason))

    def _missing(self, model: Model, reason: str) -> str:
        return (
            f"{self.needed} of model {model.name!r}, and {reason}: {self.remedy} or "
            f"`{self.command}`"
        )
