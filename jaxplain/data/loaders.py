"""Batches from any source of examples, with Grain: the same again for the same seed, and resumable.

    for batch in batches(flowers(path, "train"), 64, shuffle=True, epochs=10):
        state = step(state, batch["image"], batch["label"])

The order depends on the seed and the epoch alone, not on threads or processes. An iterator's
`get_state()` is a small dict of plain data to keep in a checkpoint; `set_state()` on a new iterator
of the same arguments goes on behind the last batch that was given out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

Example = Mapping[str, Any]
Batch = dict[str, np.ndarray]


@runtime_checkable
class Source(Protocol):
    """Examples by number: a list, a TFDS data source, `FlowerSource`, `ArraySource`."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Example:
        """One example: names and arrays, the same names and shapes in all."""
        ...


class ArraySource:
    """Arrays in memory as a source: example i holds entry i of each.

    Example:
        >>> source = ArraySource(image=np.zeros((5, 8, 8, 1), np.uint8), label=np.arange(5))
        >>> len(source), source[3]["image"].shape, int(source[3]["label"])
        (5, (8, 8, 1), 3)
    """

    def __init__(self, **arrays: np.ndarray):
        """Keeps the arrays, without copying them.

        Raises:
            ValueError: there are none, or they are not equally long.
        """
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays must be equally long, got {lengths}")
        self._arrays = arrays
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self._arrays.items()}


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = False,
    epochs: int | None = 1,
    drop_remainder: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> grain.DatasetIterator[Batch]:
    """Iterates over batches of a source.

    Args:
        source: the examples.
        batch_size: examples in each batch of this process.
        seed: of the shuffling.
        shuffle: draw the examples in random order, anew in each epoch.
        epochs: how often to go through the source; None for ever.
        drop_remainder: leave out, at the end of each epoch, what does not fill a batch on every
            process. Otherwise the last batch may be smaller.
        process_index: which process this is, `jax.process_index()`.
        process_count: how many share the work. All see the same order, and process p takes the
            examples p, p + process_count, ... of it.
        num_threads: how many examples are read at once, ahead of time; 0 reads when asked. The
            batches do not depend on it.

    Returns:
        An iterator over dicts of arrays with a new first axis, with `get_state`, `set_state` and
        `close`.

    Raises:
        ValueError: a number is out of range, or there is not one batch to give out.

    Example:
        >>> source = ArraySource(label=np.arange(5))
        >>> [batch["label"].tolist() for batch in batches(source, 2)]
        [[0, 1], [2, 3], [4]]
        >>> [batch["label"].tolist() for batch in batches(source, 2, process_count=2)]
        [[0, 2], [4]]
    """
    for name, number, least in (
        ("batch_size", batch_size, 1),
        ("epochs", 1 if epochs is None else epochs, 1),
        ("process_count", process_count, 1),
        ("num_threads", num_threads, 0),
        ("seed", seed, 0),
    ):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be 0 to {process_count - 1}, got {process_index}")
    share = len(range(process_index, len(source), process_count))
    if drop_remainder:
        share = len(source) // process_count // batch_size * batch_size
    if share == 0:
        raise ValueError(
            f"source of {len(source)} examples gives no batch of {batch_size}"
            f" to process {process_index} of {process_count}"
        )

    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.slice(slice(process_index, None, process_count)).slice(slice(share))
    dataset = dataset.batch(batch_size, batch_fn=_stack).repeat(epochs)
    reading = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(reading))


def _stack(examples: Sequence[Example]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
