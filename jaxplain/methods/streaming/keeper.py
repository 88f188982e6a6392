"""The checkpoints of a fit: process 0 keeps them, and all processes go on from the same one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxplain.checkpoints import Checkpoints
from jaxplain.methods.streaming.stream import Position
from jaxplain.sharding import exchange_texts, from_first


class Kept(NamedTuple):
    """A checkpoint.

    Attributes:
        chunks: how many chunks are in it.
        state: a pytree of NumPy arrays.
        images: how many images of all processes.
        position: where the stream of this process was.
    """

    chunks: int
    state: Any
    images: int
    position: Position


class Keeper:
    """The checkpoints of a fit. All processes call the same methods at the same time.

    Args:
        folder: where; only process 0 uses it.
        work: what is fitted; a checkpoint of anything else is refused.
        processes: how many work together.
    """

    def __init__(self, folder: str | Path, work: Mapping[str, Any], processes: int):
        self._together = processes > 1
        self._checkpoints: Checkpoints | None = None
        with self._agreement():
            if not self._together or jax.process_index() == 0:
                self._checkpoints = Checkpoints(folder, work)

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._checkpoints is not None:
            self._checkpoints.__exit__(kind, error, trace)

    def save(self, kept: Kept) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        positions = self._told(json.dumps(kept.position))
        with self._agreement():
            if self._checkpoints is not None:
                notes = {"images": kept.images, "positions": positions}
                self._checkpoints.save(kept.chunks, kept.state, notes)

    def resume(self, like: Any) -> Kept | None:
        """Return the newest whole checkpoint, None if there is none.

        Args:
            like: arrays of the shapes that were saved.

        Raises:
            ValueError: it is of other work.
        """
        found = None
        with self._agreement():
            if self._checkpoints is not None:
                found = self._checkpoints.resume(like)
        chunks, state, notes = found or (0, like, {})
        if self._together:
            notes = json.loads(self._told(json.dumps(notes))[0])
            state, chunks = from_first((state, np.asarray(chunks)))
            state = jax.tree.map(np.asarray, state)
        if not notes:
            return None
        own = jax.process_index() if self._together else 0
        position = Position(*json.loads(notes["positions"][own]))
        return Kept(int(chunks), state, notes["images"], position)

    def agree(self, error: Exception | None) -> None:
        """Raise this process's error, or say which process has one."""
        told = self._told("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for number, text in enumerate(told):
            if text:
                raise ValueError(f"process {number} stopped: {text}")

    def _told(self, text: str) -> Sequence[str]:
        return exchange_texts(text) if self._together else [text]

    def _agreement(self) -> "_Agreement":
        return _Agreement(self)


class _Agreement:
    """A block after which all processes go on, or none."""

    def __init__(self, keeper: Keeper):
        self._keeper = keeper

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, (ValueError, OSError)):
            self._keeper.agree(error)
