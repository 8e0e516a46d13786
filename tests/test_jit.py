"""Compiled loops: their types, and what their machine code depends on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recloop import jit

LOOP = """
import numpy as np
from numbers_of_loop import FACTOR, TABLE
from recloop import jit

@jit.step
def scaled(value):
    return value * FACTOR + TABLE[0]

@jit.compiled(jit.REAL, jit.FLOAT64)
def total(values):
    result = 0.0
    for value in values:
        result += scaled(value)
    return result

print(total(np.array([1.0, 2.0])), sum(total.machine.stats.cache_hits.values()))
"""
NUMBERS = "import numpy as np\nFACTOR = {}\nTABLE = np.array([{}])\n"


@jit.compiled(jit.REAL, jit.FLOAT64)
def total_of(values: np.ndarray) -> float:
    result = 0.0
    for value in values:
        result += value
    return result


def run(folder: Path, factor: float, first: float, **environment: str) -> tuple[float, int]:
    """Run the loop in a process of its own; return its result and the loops that were read from a file."""
    (folder / "numbers_of_loop.py").write_text(NUMBERS.format(factor, first))
    (folder / "loop.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, folder / "loop.py"], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    value, n_read = done.stdout.split()
    return float(value), int(n_read)


def test_compiled_reads_read_only_arrays_and_refuses_other_types() -> None:
    values = np.array([1.0, 2.5])
    values.flags.writeable = False
    assert total_of(values) == 3.5
    for other in (values.astype(np.float32), np.zeros((2, 2)), np.zeros(4)[::2]):
        with pytest.raises(TypeError, match="No matching definition"):
            total_of(other)


def test_machine_code_is_kept_until_a_constant_of_another_module_changes(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert run(tmp_path, 2.0, 0.0, NUMBA_CACHE_DIR=cache) == (6.0, 0)
    assert run(tmp_path, 2.0, 0.0, NUMBA_CACHE_DIR=cache) == (6.0, 1)
    assert run(tmp_path, 3.0, 0.0, NUMBA_CACHE_DIR=cache) == (9.0, 0)
    assert run(tmp_path, 3.0, 1.0, NUMBA_CACHE_DIR=cache) == (11.0, 0)


def test_loops_run_where_no_folder_is_writable(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert run(tmp_path, 2.0, 0.0, NUMBA_CACHE_DIR=str(nowhere / "cache")) == (6.0, 0)
