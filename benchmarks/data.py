"""How fast flowers are rendered, built and read.

python benchmarks/data.py [--quick] [--json FILE]
"""

import itertools
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from figures import Figures, run

from jaxplain.data.an8flower import VARIANTS, render, render_many
from jaxplain.data.builder import build, flowers
from jaxplain.data.loaders import batches

CORES = 2


def main(figures: Figures) -> None:
    """Rendering, building and reading the flower data sets, in pictures of 112 x 112 a second.

    Rendering has a rate on two cores for its target, not a ratio: nothing else renders these.
    """
    count = 600 if figures.quick else 3000
    for variant in VARIANTS:
        figures.add(f"data/render/{variant}/per_second", rendering(variant, count), at_least=300)
        # What the figure above would be if nothing else ran on this machine.
        figures.add(f"data/render/{variant}/per_second_of_cpu", CORES / cpu_seconds(variant))
    per_class = (100 if figures.quick else 500, 1, 1)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = build("single_6c", folder, per_class=per_class, workers=CORES)
        pictures = 6 * sum(per_class)
        figures.add("data/build/per_second", pictures / (time.perf_counter() - start))
        figures.add("data/read/per_second", reading(path))


def rendering(variant: str, count: int) -> float:
    """Pictures a second of two processes once they are running."""
    rendered = render_many(range(count + WARM), variant=variant, workers=CORES)
    for _ in itertools.islice(rendered, WARM):
        pass
    start = time.perf_counter()
    for _ in rendered:
        pass
    return count / (time.perf_counter() - start)


def cpu_seconds(variant: str) -> float:
    """Processor time of one picture: the best of five stretches of sixty."""
    times = []
    for first in range(0, 300, 60):
        start = time.process_time()
        for index in range(first, first + 60):
            render(index, variant=variant)
        times.append((time.process_time() - start) / 60)
    return min(times)


# A whole stretch of what the processes are given at once: nothing of the next is rendered yet.
WARM = 256 * CORES


def reading(path: Path) -> float:
    """Pictures a second in shuffled batches of 64."""
    source = flowers(path, "train")
    start = time.perf_counter()
    read = sum(len(batch["label"]) for batch in batches(source, 64, shuffle=True, epochs=2))
    return read / (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
