"""Settings of every test and doctest; they must stand before JAX or jaxplain is imported."""

import functools
import gc
import os
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

ROOT = Path(__file__).parent

# Of memory, in a worker's process: half of what Linux allows.
MOST_MAPS = 32_000

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Sharded code is tested on eight simulated devices; programs that a test starts inherit all this.
# Tests compile much and compute little, so XLA is told to spend little on making code fast.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_experimental_ynn_fusion_type=",  # as the command line has it
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # programs do without line numbers
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["MPLBACKEND"] = "agg"

# Traced programs are many small objects that live on: looking through them often costs time.
gc.set_threshold(20_000, 20, 20)

# Shapes in signatures are checked at every call, in the modules that state shapes.
STATED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "jaxplain").rglob("*.py")
    if "from jaxtyping import" in path.read_text()
]
jaxtyping.install_import_hook(STATED, "beartype.beartype")

import jax  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

# A program is lowered in an MLIR context of its own, and making that costs more time and memory
# than lowering a small one. The tests lower thousands: one context serves them all.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# The same examples everywhere, so that a failure is everybody's; "thorough" searches on.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=15)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forgets compiled programs between two files, when there are very many.

    Each one maps memory, and Linux lets a process have 65,530 maps: the whole suite has more, and
    the process would end. Looking is not free, so only the last test of a file looks.
    """
    maps = Path("/proc/self/maps")
    if (nextitem is not None and nextitem.path == item.path) or not maps.exists():
        return
    if maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
