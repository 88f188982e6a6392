"""Two hundred random damages of each kind of file: one clear error, or the right network."""

import jax
import numpy as np
import pytest
from matconvnet_writer import write_matconvnet
from safetensors.numpy import save_file
from tiny_network import Plain, Tiny, state_dict
from torch_writer import write_state_dict

from jaxplain.models.weights import store
from jaxplain.models.weights.sources import Loader

TIMES = 200


def zip_file(path):
    write_state_dict(path, state_dict())


def legacy_file(path):
    write_state_dict(path, state_dict(), legacy=True)


def foreign_safetensors(path):
    save_file(state_dict(), path)


def own_safetensors(path):
    variables = Loader("tiny", Tiny())(state_dict(), 4).variables
    store.save(path, store.Weights(variables, "tiny", 4))


def compressed_mat(path):
    write_matconvnet(path)


def plain_mat(path):
    write_matconvnet(path, compressed=False, average=np.ones((1, 1, 3)))


# How a file is written, its name, the network, and whether it has checksums of its numbers.
KINDS = {
    "zip": (zip_file, "a.pth", Tiny(), True),
    "legacy": (legacy_file, "a.pth", Tiny(), False),
    "safetensors": (foreign_safetensors, "a.safetensors", Tiny(), False),
    "own": (own_safetensors, "a.safetensors", Tiny(), True),
    "compressed mat": (compressed_mat, "a.mat", Plain(), True),
    "mat": (plain_mat, "a.mat", Plain(), False),
}


def damaged(content, draw):
    """Change, remove, insert or exchange some bytes, mostly near the beginning or the end."""
    content = bytearray(content)
    near = min(len(content), 2000)
    start = int(draw.choice([draw.integers(near), len(content) - 1 - draw.integers(near)]))
    stop = start + int(draw.integers(1, 30))
    match draw.integers(6):
        case 0:
            content[start] ^= 1 << int(draw.integers(8))
        case 1:
            content[start:stop] = draw.bytes(stop - start)
        case 2:
            del content[start:]
        case 3:
            del content[start:stop]
        case 4:
            content[start:start] = draw.bytes(stop - start)
        case 5:
            content[start:stop] = bytes(stop - start)
    return bytes(content)


def check(kind, write, name, network, checked, folder):
    path = folder / name
    write(path)
    loader, content = Loader("tiny", network), path.read_bytes()
    right = loader(path, 4).variables
    draw = np.random.default_rng(sum(map(ord, kind)))
    refused = accepted = 0
    for _ in range(TIMES):
        path.write_bytes(damaged(content, draw))
        try:
            found = loader(path, 4).variables
        except ValueError as error:
            refused += str(path) in str(error)
            continue
        accepted += 1
        # Names and shapes are right in any case; numbers where the container has a checksum.
        assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, right)
        if checked:
            assert jax.tree.all(jax.tree.map(np.array_equal, found, right))
    assert refused + accepted == TIMES  # every error names the file
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_never_becomes_a_wrong_network(tmp_path, kind):
    assert check(kind, *KINDS[kind], tmp_path) > TIMES // 2
