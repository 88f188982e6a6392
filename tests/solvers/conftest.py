"""Solver tests run in float64 unless they say otherwise; other tests never see it."""

import types
from pathlib import Path

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def flipped():
    """Copies a module with one line of its source changed, as a mutation test."""

    def mutate(module, line, instead):
        source = Path(module.__file__).read_text()
        assert line in source
        mutant = types.ModuleType(module.__name__ + "_mutant")
        exec(compile(source.replace(line, instead), module.__file__, "exec"), mutant.__dict__)
        return mutant

    return mutate
