"""What every benchmark shares: fair ratios, one line a figure, an exit code and a JSON record.

A benchmark is a script with a function that takes `Figures`::

    from figures import Figures, run

    def main(figures: Figures) -> None:
        '''Gradient over a bare forward and backward pass.'''
        figures.ratio("overhead/gradient", explain, bare, at_most=1.10)

    if __name__ == "__main__":
        run(main)

It prints `name value target ok|short` for each figure and exits with 1 if any falls short. A
figure is a ratio of two things measured in the same run, in turns, because on a shared machine a
time alone says little. `--quick` asks for less work, `--json FILE` keeps the figures with the
machine and the versions they were measured on.
"""

import argparse
import dataclasses
import inspect
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "jaxplain")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number and what it should be.

    Attributes:
        name: words joined by `/`, no spaces.
        value: the number.
        target: "<=1.1", ">=0.95", or "-" for a number that is only told.
        ok: whether the value meets the target.
    """

    name: str
    value: float
    target: str
    ok: bool

    def __str__(self) -> str:
        """The line that is printed: `name value target ok|short`."""
        return f"{self.name} {self.value:.4g} {self.target} {'ok' if self.ok else 'short'}"


class Figures:
    """Collects figures and prints each as it comes.

    Attributes:
        quick: whether to measure with less work; a whole benchmark should then end within a minute.
        collected: the figures so far.
    """

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self.collected: list[Figure] = []

    def add(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> Figure:
        """Records one figure, which has no target if no bound is given; NaN always falls short.

        Raises:
            ValueError: if the name has spaces, or both bounds are given.
        """
        if not name or any(character.isspace() for character in name):
            raise ValueError(f"name must be one word, got {name!r}")
        if at_most is not None and at_least is not None:
            raise ValueError(f"{name}: give at_most or at_least, not both")
        value = float(value)
        target, ok = "-", not math.isnan(value)
        if at_most is not None:
            target, ok = f"<={at_most:g}", value <= at_most
        elif at_least is not None:
            target, ok = f">={at_least:g}", value >= at_least
        figure = Figure(name, value, target, ok)
        self.collected.append(figure)
        print(figure, flush=True)
        return figure

    def ratio(
        self,
        name: str,
        function: Callable[[], Any],
        baseline: Callable[[], Any],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        pairs: int | None = None,
    ) -> Figure:
        """Records the time of `function` over the time of `baseline`, as `time_ratio` measures it.

        Args:
            name: the figure's name.
            function: what is measured.
            baseline: what it is measured against.
            at_most: the largest ratio that is good enough.
            at_least: the smallest one.
            pairs: how many pairs to time; 5 when quick, 15 otherwise.
        """
        pairs = pairs or (5 if self.quick else 15)
        return self.add(
            name, time_ratio(function, baseline, pairs=pairs), at_most=at_most, at_least=at_least
        )

    def record(self) -> dict[str, Any]:
        """The figures with the machine and the versions, ready for JSON."""
        return {
            "quick": self.quick,
            "machine": machine(),
            "versions": versions(),
            "figures": [dataclasses.asdict(figure) for figure in self.collected],
        }


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call, until every array of its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def time_ratio(function: Callable[[], Any], baseline: Callable[[], Any], *, pairs: int) -> float:
    """Median over pairs of time(function) / time(baseline).

    Both are called once before, so that compilation does not count. Within a pair they follow
    each other at once, and the order changes from pair to pair, so that a load which comes or goes
    hits both.

    Args:
        function: what is measured.
        baseline: what it is measured against.
        pairs: how many pairs, at least 1.
    """
    seconds(function), seconds(baseline)
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            over, under = seconds(function), seconds(baseline)
        else:
            under, over = seconds(baseline), seconds(function)
        ratios.append(over / under)
    return statistics.median(ratios)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    models = []
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
    return {
        "system": platform.platform(),
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter for speed."""
    installed = {distribution.name for distribution in metadata.distributions()}
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in VERSIONS if name in installed
    }


def run(main: Callable[[Figures], None], arguments: list[str] | None = None) -> None:
    """The command line of a benchmark; exits with 1 if a figure falls short.

    Args:
        main: the benchmark; its docstring is what `--help` says.
        arguments: the command line, or None for the script's own.
    """
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    parser.add_argument("--quick", action="store_true", help="less work: ends within a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in FILE")
    options = parser.parse_args(arguments)
    figures = Figures(quick=options.quick)
    main(figures)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures.record(), indent=2) + "\n")
    sys.exit(not all(figure.ok for figure in figures.collected))
