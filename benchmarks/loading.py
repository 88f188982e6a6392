"""How much memory loading VGG-16 takes, whatever kind of file its weights lie in.

python benchmarks/loading.py [--quick] [--json FILE]
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figures import Figures, run

from jaxplain.models.vgg import VGG
from jaxplain.models.weights.fill import torch_plan, variable_shapes
from jaxplain.models.weights.safetensors_file import write_safetensors
from jaxplain.models.weights.store import FORMAT

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # which write what torch writes, without torch

from torch_writer import write_state_dict  # noqa: E402

# What a program of its own says: bytes of the parameters, and its largest resident memory above
# that which it had before. `getrusage` would count the parent's memory, too.
PROGRAM = """
import sys
from pathlib import Path

import jax
import jaxplain

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

jax.device_put(0.0).block_until_ready()
before = peak()
model = jax.block_until_ready(jaxplain.load_model("vgg16", weights=sys.argv[1]))
print(sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)), peak() - before)
"""

Write = Callable[[Path, Mapping[str, np.ndarray]], object]


def legacy(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """As torch wrote before 1.6, and torchvision's VGG-16 still is."""
    write_state_dict(path, tensors, legacy=True)


def torch_names(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Safetensors with the names of torchvision."""
    write_safetensors(path, tensors, {"format": "pt"})


def own_names(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """What a download is converted to; `tensors` only say how large it is."""
    shapes = variable_shapes(VGG(depth=16))
    own = {"/".join(place): values(shape) for place, shape in shapes.items()}
    assert sum(map(np.size, own.values())) == sum(map(np.size, tensors.values()))
    about = {"format": FORMAT, "architecture": '"vgg16"', "num_classes": "1000"}
    write_safetensors(path, own, about)


KINDS: Mapping[str, tuple[str, Write]] = {
    "pth_legacy": (".pth", legacy),
    "pth_zip": (".pth", write_state_dict),
    "safetensors_torchvision": (".safetensors", torch_names),
    "safetensors_own": (".safetensors", own_names),
}


def main(figures: Figures) -> None:
    """Peak resident memory of `load_model("vgg16", weights=FILE)` over that of its parameters."""
    if not Path("/proc/self/status").exists():
        sys.exit("the peak of a program's memory is read from /proc, which this system lacks")
    expected = sum(4 * np.prod(leaf) for leaf in variable_shapes(VGG(depth=16)).values())
    with TemporaryDirectory() as folder:
        for kind in list(KINDS)[: 2 if figures.quick else None]:
            suffix, write = KINDS[kind]
            path = Path(folder) / f"vgg16{suffix}"
            write(path, state_dict())
            size, above = loaded(path)
            path.unlink()
            assert size == expected, (size, expected)
            figures.add(f"loading/vgg16/{kind}/peak_over_parameters", above / size, at_most=1.3)


def values(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that cost no time: a few thousand random ones over and over."""
    numbers = np.random.default_rng(0).standard_normal(4093).astype(np.float32)
    return np.resize(numbers, shape)


def state_dict() -> dict[str, np.ndarray]:
    """Weights of VGG-16 with torchvision's names."""
    shapes = variable_shapes(VGG(depth=16))
    slots = torch_plan(VGG(depth=16), shapes, {}).values()
    return {slot.name: values(slot.shape) for slot in slots}


def loaded(path: Path) -> tuple[int, int]:
    """Return the bytes of the parameters and of the peak above what the program had before."""
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(path)]
    output = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True)
    size, above = map(int, output.stdout.split())
    return size, above


if __name__ == "__main__":
    run(main)
