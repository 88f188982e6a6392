"""Checkpoints of long work: a pytree of arrays and a little JSON, kept by Orbax.

Each stands in a folder of its own, which appears when it is complete; the two newest are kept. Each
says what work it belongs to, and holds a checksum, so that the work goes on from the newest one
that is whole.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

_KEPT = 2


class Checkpoints:
    """The checkpoints of one piece of work, in one folder.

    Args:
        folder: where; made if it is missing.
        work: JSON values that say what is being computed; a checkpoint of other work is refused.

    Raises:
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, {"task": "count"}) as checkpoints:
        ...         checkpoints.save(3, {"total": np.float32(6)}, {"seen": [1, 2, 3]})
        ...         step, state, notes = checkpoints.newest({"total": np.float32(0)})
        >>> step, float(state["total"]), notes
        (3, 6.0, {'seen': [1, 2, 3]})
    """

    def __init__(self, folder: str | Path, work: Mapping[str, Any]):
        import orbax.checkpoint as ocp

        self._folder = Path(folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._work = dict(work)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, enable_async_checkpointing=False
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
            OSError: it cannot be written.
        """
        import orbax.checkpoint as ocp

        state = jax.tree.map(np.asarray, state)
        about = {"work": self._work, "notes": dict(notes), "checksum": _checksum(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
            ),
            force=True,
        )

    def newest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Return (step, state, notes) of the newest whole checkpoint, None if there is none.

        Args:
            like: a pytree of arrays, or of their shapes, as was saved.

        Raises:
            ValueError: a checkpoint is of other work; the message says what differs.
        """
        import orbax.checkpoint as ocp

        shapes = jax.eval_shape(lambda: jax.tree.map(np.asarray, like))
        for step in sorted(self._manager.all_steps(), reverse=True):
            # A damaged file shows itself in these two ways; an older one may be whole.
            try:
                read = ocp.args.Composite(about=ocp.args.JsonRestore())
                about = self._manager.restore(step, args=read)["about"]
            except (OSError, ValueError):
                continue
            self._check_work(about["work"])
            try:
                read = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
                state = self._manager.restore(step, args=read)["state"]
            except (OSError, ValueError):
                continue
            state = jax.tree.map(np.asarray, state)
            if _checksum(state) == about["checksum"]:
                return step, state, about["notes"]
        return None

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


def _checksum(state: Any) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, checksum)
    return checksum
