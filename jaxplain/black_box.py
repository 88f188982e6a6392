"""Functions of NumPy images as models: run on the host, from compiled code too.

What such a function raises in compiled code reaches the caller as an error of the runtime, with the
words of the function somewhere in it. `own_words` makes it arrive as it was raised.
"""

import contextlib
import dataclasses
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# What a black box raised last, until somebody is told.
_RAISED: deque[Exception] = deque(maxlen=1)


class _Remembered:
    """Remembers an exception that passes."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: object, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Remember what passes."""
        if isinstance(error, Exception):
            _RAISED.append(error)


@dataclasses.dataclass(frozen=True)
class BlackBox:
    """A function of NumPy images, run on the host wherever it is called from.

    Attributes:
        function: float images (n, H, W, C) -> logits (n, classes).
        classes: how many there are.
    """

    function: Callable[[np.ndarray], Any]
    classes: int

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Return the logits."""
        del params
        if not isinstance(images, Tracer):
            return jnp.asarray(self._logits(images))
        shape = jax.ShapeDtypeStruct((images.shape[0], self.classes), images.dtype)
        return jax.pure_callback(self._remembered, shape, images, vmap_method="expand_dims")

    def _remembered(self, images: Any) -> np.ndarray:
        with _Remembered():
            return self._logits(images)

    def _logits(self, images: Any) -> np.ndarray:
        # A copy: the function may write into it.
        pictures = np.array(images)
        flat = pictures.reshape(-1, *pictures.shape[-3:])
        found = np.asarray(self.function(flat))
        if found.shape != (len(flat), self.classes):
            raise ValueError(
                f"the black box returned shape {found.shape} for {len(flat)} images; "
                f"expected {(len(flat), self.classes)}: a logit a class"
            )
        return found.reshape(*pictures.shape[:-3], self.classes).astype(pictures.dtype)


@contextlib.contextmanager
def own_words() -> Iterator[None]:
    """Raise what a black box raised in compiled code as it was, not as the runtime tells it.

    Compiled code runs on while Python goes ahead: what is called inside must wait for its results.

    Example:
        >>> box = BlackBox(lambda images: images.mean((1, 2)), 4)
        >>> with own_words():
        ...     jax.block_until_ready(jax.jit(box)((), jnp.ones((2, 8, 8, 3))))
        Traceback (most recent call last):
        ...
        ValueError: the black box returned shape (2, 3) for 2 images; expected (2, 4): ...
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _RAISED:
            raise
        raised = _RAISED.pop()
        if type(raised).__name__ not in str(error):
            raise
        raise raised from None
