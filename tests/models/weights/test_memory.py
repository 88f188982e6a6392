"""Loading a large network needs little more memory than the network."""

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch_writer import Storage, Tensor, dump

from jaxplain.models.vgg import VGG
from jaxplain.models.weights.fill import torch_plan, variable_shapes

# The largest memory of this program since it began; `getrusage` would count its parent's too.
STATUS = Path("/proc/self/status")
PROGRAM = """
import sys
from pathlib import Path
import jax
from jaxplain.models.vgg import VGG
from jaxplain.models.weights.fill import variable_shapes
from jaxplain.models.weights.sources import Loader

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

network = VGG(depth=16)
variable_shapes(network)
jax.device_put(0.0).block_until_ready()
before = peak()
variables = Loader("vgg16", network)(sys.argv[1], 1000).variables
size = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(variables)))
print(size, (peak() - before) / size)
"""


def write_zeros(path, network):
    """Write a state dict of zeros in the older container, which leaves holes in the file."""
    plan = torch_plan(network, variable_shapes(network), {})
    tensors, sizes = {}, {}
    for i, slot in enumerate(plan.values()):
        strides = tuple(int(np.prod(slot.shape[axis + 1 :])) for axis in range(len(slot.shape)))
        storage = Storage(str(i), np.zeros(0, np.float32))
        tensors[slot.name] = Tensor(storage, 0, slot.shape, strides)
        sizes[str(i)] = int(np.prod(slot.shape))
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        file.write(dump(tensors, legacy=True, sizes=sizes))
        pickle.dump(list(sizes), file, 2)
        for size in sizes.values():
            file.write(struct.pack("<q", size))
            file.seek(4 * size, os.SEEK_CUR)
        file.truncate()


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_the_peak_of_loading_vgg16_is_below_1_3_times_its_parameters(tmp_path):
    path = tmp_path / "vgg16.pth"
    write_zeros(path, VGG(depth=16))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    program = [sys.executable, "-c", PROGRAM, str(path)]
    output = subprocess.run(program, env=environment, check=True, capture_output=True, text=True)
    size, ratio = output.stdout.split()
    assert int(size) == 4 * 138_357_544
    assert 0.9 < float(ratio) < 1.3
