"""One process of a fit, for tests that start several or kill one: it writes its statistics."""

import argparse
from pathlib import Path

import jax
import numpy as np
from chip_networks import images, small

from jaxplain.data.loaders import ArraySource, batches
from jaxplain.methods.chip import gather
from jaxplain.sharding import data_mesh, join_processes

FIELDS = ("packed", "corr", "energy", "weight", "predicted")


def between(done: object) -> None:
    """Called between two chunks; `chip_killer` puts its own here."""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=21)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(words)
    if told.processes > 1:
        join_processes(f"127.0.0.1:{told.port}", told.processes, told.index)
    source = ArraySource(image=images(told.images))
    loader = batches(
        source,
        told.batch,
        seed=told.seed,
        shuffle=told.checkpoint is not None,
        process_index=told.index,
        process_count=told.processes,
    )
    found = gather(
        small(),
        loader,
        ("conv1", "conv2"),
        key=jax.random.key(0),
        num_gates=8,
        mesh=data_mesh() if told.processes > 1 else None,
        chunk=4,
        every=1,
        checkpoint=told.checkpoint,
        progress=lambda done: between(done),
    )
    arrays = {
        f"{layer}/{name}": np.asarray(getattr(stats, name))
        for layer, stats in found.items()
        for name in FIELDS
    }
    np.savez(told.out, **arrays)


if __name__ == "__main__":
    main()
