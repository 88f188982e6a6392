"""Checkpoints of long work: a pytree of arrays, kept by Orbax, and a little JSON.

A checkpoint counts when its seal is written, last of all: a file that says what work it belongs to
and holds checksums of everything. So a process can be killed at any moment, and the next one goes
on from the newest checkpoint that is whole; the two newest are kept.

Where several processes work together, one of them keeps the checkpoints and tells the others.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jaxplain.outputs import replacing

_KEPT = 2
_SPARE = 1 << 20
"""Bytes for what is written beside the arrays."""

_PIECE = 1 << 24
"""Bytes read at once for a checksum."""


class Checkpoints:
    """The checkpoints of one piece of work, in one folder.

    Args:
        folder: where; made if it is missing.
        work: JSON values that say what is being computed; a checkpoint of other work is refused.

    Raises:
        OSError: the folder cannot be made or written.

    Under `jax.distributed`, only one process may make one: see `jaxplain.sharding`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, {"task": "count"}) as checkpoints:
        ...         checkpoints.save(3, {"total": np.float32(6)}, {"seen": [1, 2, 3]})
        ...         step, state, notes = checkpoints.resume({"total": np.float32(0)})
        >>> step, float(state["total"]), notes
        (3, 6.0, {'seen': [1, 2, 3]})
    """

    def __init__(self, folder: str | Path, work: Mapping[str, Any]):
        import orbax.checkpoint as ocp

        self._folder = Path(folder).absolute()
        self._states, self._seals = self._folder / "states", self._folder / "seals"
        for made in (self._states, self._seals):
            made.mkdir(parents=True, exist_ok=True)
        self._work = json.loads(json.dumps(dict(work)))
        # Orbax would wait for all processes; this one works alone.
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"jaxplain{here}"
        )
        self._manager = ocp.CheckpointManager(
            self._states,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT,
                enable_async_checkpointing=False,
                create=False,
                multiprocessing_options=alone,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            step: how far the work is; more than before.
            state: a pytree of arrays.
            notes: JSON values.

        Raises:
            OSError: it cannot be written, because the disk is full, say. What was written of it is
                removed; the checkpoints before it are as they were.
        """
        import orbax.checkpoint as ocp

        arrays = jax.tree.map(np.asarray, state)
        with self._written(step):
            self._check_room(sum(array.nbytes for array in jax.tree.leaves(arrays)))
            self._manager.save(step, args=ocp.args.StandardSave(arrays), force=True)
        kept = {str(number) for number in self._manager.all_steps()}
        for seal in self._seals.iterdir():
            if seal.name not in kept:
                seal.unlink()
        said = {"work": self._work, "notes": dict(notes), "files": self._checksums(step)}
        text = json.dumps(said)
        with replacing(self._seals / str(step)) as part:
            part.write_text(f"{zlib.crc32(text.encode()):08x}{text}", "utf-8")

    def resume(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Return (step, state, notes) of the newest whole checkpoint, None if there is none.

        What was written after it is deleted.

        Args:
            like: a pytree of arrays, or of their shapes, as was saved.

        Raises:
            ValueError: a checkpoint is of other work (the message says what differs), or there were
                some and none is whole any more.
        """
        import orbax.checkpoint as ocp

        steps = sorted(self._manager.all_steps(), reverse=True)
        whole = next((step for step in steps if self._seal(step) is not None), None)
        if whole is None and any((self._seals / str(step)).exists() for step in steps):
            raise ValueError(
                f"the checkpoints in {self._folder} are damaged; delete them to begin anew"
            )
        said = {} if whole is None else self._seal(whole) or {}
        if said:
            self._check_work(said["work"])
        for step in steps:
            if whole is None or step > whole:
                (self._seals / str(step)).unlink(missing_ok=True)
                shutil.rmtree(self._states / str(step))
        self._manager.reload()
        if whole is None:
            return None
        # Arrays of NumPy come back as such, and so with 64 bits, which JAX may have turned off.
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        state = self._manager.restore(whole, args=ocp.args.StandardRestore(like))
        return whole, state, said["notes"]

    def _check_room(self, size: int) -> None:
        """Raise OSError if a state cannot be kept: before Orbax's many threads find out."""
        free = shutil.disk_usage(self._folder).free
        if free < size + _SPARE:
            raise OSError(errno.ENOSPC, f"{size:,} bytes are needed, {free:,} are free")

    @contextlib.contextmanager
    def _written(self, step: int) -> Iterator[None]:
        """Turn what Orbax raises where it cannot write into the operating system's error."""
        absl = logging.getLogger("absl")
        before = absl.level
        absl.setLevel(logging.CRITICAL)  # it would print the traceback of every thread
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            found = re.search(r"os_error_code='(\d+)'", str(error))
            code = int(found[1]) if found else getattr(error, "errno", None)
            if code is None:
                raise
            for unfinished in self._states.glob(f"{step}.*tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(
                code,
                f"{os.strerror(code)}: the checkpoint of step {step} could not be written. The "
                "checkpoints before it are whole: make room, and the same command goes on",
                str(self._folder),
            ) from error
        finally:
            absl.setLevel(before)

    def _seal(self, step: int) -> dict[str, Any] | None:
        """Return what the seal of a step says, None unless it and the files are as they were."""
        try:
            text = (self._seals / str(step)).read_bytes()
        except FileNotFoundError:
            return None
        if text[:8] != f"{zlib.crc32(text[8:]):08x}".encode():
            return None
        said = json.loads(text[8:])
        return said if said["files"] == self._checksums(step) else None

    def _checksums(self, step: int) -> dict[str, int]:
        folder = self._states / str(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): _checksum(path) for path in files}

    def _check_work(self, work: Mapping[str, Any]) -> None:
        keys = sorted({*work, *self._work})
        differ = [key for key in keys if work.get(key) != self._work.get(key)]
        if differ:
            listed = "; ".join(
                f"{key} was {work.get(key)!r}, now {self._work.get(key)!r}" for key in differ
            )
            raise ValueError(
                f"the checkpoints in {self._folder} are of other work: {listed}. Give another "
                f"folder, or the same settings"
            )


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum
