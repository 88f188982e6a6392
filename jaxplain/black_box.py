"""Functions of NumPy images as models: run on the host, from compiled code too.

What such a function raises in compiled code reaches the caller as an error of the runtime, with the
words of the function somewhere in it. `own_words` makes it arrive as it was raised.
"""

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MOST = 16
"""Exceptions kept while somebody waits: as many threads may ask black boxes at once, and fail."""


class _Heard:
    """What black boxes raised while somebody waits to be told; nothing once nobody does.

    A callback runs in a thread of the runtime: who waits for it cannot be told from its context.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting = 0
        self.errors: deque[Exception] = deque(maxlen=MOST)

    def __enter__(self) -> None:
        """Begin to wait."""
        with self.lock:
            self.waiting += 1

    def __exit__(self, *_: object) -> None:
        """Forget what was not told, and with it the frames and arrays that it holds."""
        with self.lock:
            self.waiting -= 1
            if not self.waiting:
                self.errors.clear()

    def remember(self, error: Exception) -> None:
        """Keep an exception if somebody waits."""
        with self.lock:
            if self.waiting:
                self.errors.append(error)

    def told_by(self, text: str) -> Exception | None:
        """Return, and forget, the last exception whose type and words are in a text."""
        with self.lock:
            for error in reversed(self.errors):
                if type(error).__name__ in text and str(error) in text:
                    self.errors.remove(error)
                    return error
        return None


_HEARD = _Heard()


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
        try:
            return self._logits(images)
        except Exception as error:
            _HEARD.remember(error)
            raise

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
    with _HEARD:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raised = _HEARD.told_by(str(error))
            if raised is None:
                raise
            try:
                raise raised from None
            finally:
                # This frame is in its traceback: without the name, no circle keeps the arrays.
                del raised
