"""Work on many devices and in many processes: a mesh with one axis, and what passes between them.

Everything that is sharded here lies along the mesh axis "data". One code path, `jax.shard_map`,
serves one device, the devices of one machine, and several processes that `jax.distributed` has
joined (a TPU pod slice, a cluster).

>>> mesh = data_mesh()
>>> whole = spread(np.arange(16.0), mesh, PartitionSpec("data"))
>>> total = jax.shard_map(
...     lambda x: jax.lax.psum(x.sum(), "data"),
...     mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(),
... )
>>> float(total(whole)), fetch(whole).shape
(120.0, (16,))
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
"""The mesh axis along which images, and what is computed of them, are sharded."""


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with the one axis "data".

    Args:
        devices: which; None for all devices of all processes.

    Example:
        >>> dict(data_mesh(jax.devices()[:1]).shape)
        {'data': 1}
    """
    chosen = jax.devices() if devices is None else devices
    # Sharding in types is for programs that are written for it.
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def check_mesh(mesh: Mesh | None) -> Mesh:
    """Return the mesh, or one of the first device for None.

    Raises:
        ValueError: it has no axis "data", or further axes.

    Example:
        >>> check_mesh(jax.make_mesh((1,), ("rows",)))
        Traceback (most recent call last):
        ...
        ValueError: mesh has the axes ('rows',); expected the one axis 'data', as
        jaxplain.sharding.data_mesh() makes it
    """
    if mesh is None:
        return data_mesh(jax.local_devices()[:1])
    if tuple(mesh.axis_names) != (AXIS,):
        raise ValueError(
            f"mesh has the axes {tuple(mesh.axis_names)}; expected the one axis {AXIS!r}, "
            "as jaxplain.sharding.data_mesh() makes it"
        )
    return mesh


def join_processes(
    coordinator: str | None = None, processes: int | None = None, index: int | None = None
) -> None:
    """Join the processes of one job, before anything else of JAX is used.

    On TPU pod slices, under SLURM, Open MPI and Kubernetes' indexed jobs JAX finds everything
    itself; elsewhere, give all three.

    Args:
        coordinator: "host:port" of process 0, which all can reach.
        processes: how many there are.
        index: which of them this is, from 0.

    Raises:
        ValueError: only some of the three are given, or the index is out of range.
        RuntimeError: they could not be joined.
    """
    given = {"coordinator": coordinator, "processes": processes, "index": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(f"{', '.join(missing)} missing; give coordinator, processes and index")
    if processes is not None and index is not None and not 0 <= index < processes:
        raise ValueError(f"index is {index}; expected 0 to {processes - 1}")
    jax.distributed.initialize(coordinator, processes, index)


def processes_of(mesh: Mesh) -> int:
    """Return how many processes hold devices of a mesh.

    Raises:
        ValueError: this process, or another one that is joined, holds none.

    Example:
        >>> processes_of(data_mesh())
        1
    """
    found = {device.process_index for device in mesh.devices.flat}
    if jax.process_count() > 1 and len(found) not in (1, jax.process_count()):
        raise ValueError(
            f"mesh has devices of {len(found)} of {jax.process_count()} processes; "
            "expected all, or this one alone"
        )
    if jax.process_index() not in found:
        raise ValueError(f"mesh has no device of this process, number {jax.process_index()}")
    return len(found)


def local_devices_of(mesh: Mesh) -> int:
    """Return how many devices of a mesh this process holds.

    Example:
        >>> local_devices_of(data_mesh(jax.devices()[:1]))
        1
    """
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def spread(values: Any, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Return an array on a mesh, made of what each process holds of it.

    Args:
        values: this process's part along the sharded axis, or the whole where nothing is sharded.
        mesh: the mesh.
        spec: how the array lies on it.

    Example:
        >>> spread(np.zeros((8, 3)), data_mesh(), PartitionSpec("data")).shape
        (8, 3)
    """
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(values))


def place(values: np.ndarray, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Return an array on a mesh, of which every process holds the whole.

    Example:
        >>> place(np.zeros((8, 3)), data_mesh(), PartitionSpec("data")).shape
        (8, 3)
    """
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def fetch(array: jax.Array) -> np.ndarray:
    """Return the whole of an array, in every process.

    Example:
        >>> fetch(jax.numpy.ones(3))
        array([1., 1., 1.], dtype=float32)
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def exchange(values: Any) -> np.ndarray:
    """Return what each process says: its numbers, stacked by process.

    Example:
        >>> exchange([3, 4]).tolist()
        [[3, 4]]
    """
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def from_first(tree: Any) -> Any:
    """Return what process 0 holds, in every process; the others give arrays of the same shapes.

    Example:
        >>> from_first({"x": np.arange(3)})["x"].tolist()
        [0, 1, 2]
    """
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def exchange_texts(text: str) -> list[str]:
    """Return what each process says.

    Example:
        >>> exchange_texts("here")
        ['here']
    """
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = exchange(len(own))
    filled = np.zeros(int(lengths.max()) or 1, np.uint8)
    filled[: len(own)] = own
    return [
        row[:length].tobytes().decode()
        for row, length in zip(exchange(filled), lengths, strict=True)
    ]
