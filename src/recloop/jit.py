"""Compiled loops over arrays, for steps that numpy takes in many small calls.

A loop is compiled for one signature, at the import of its module. Its machine code is kept beside the module, in the
folder ``NUMBA_CACHE_DIR``, or in the user's cache; without a writable folder each process compiles it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.core.dispatcher import Dispatcher

Loop = TypeVar("Loop", bound=Callable[..., Any])


def _read(dtype: types.Type, n_axes: int = 1) -> types.Array:
    """Return the type of a contiguous array that a loop reads."""
    return types.Array(dtype, n_axes, "C", readonly=True)


BOOL, INT8, INT8_2D = _read(types.boolean), _read(types.int8), _read(types.int8, 2)
INT32, INT32_2D = _read(types.int32), _read(types.int32, 2)
INT64, INT64_2D = _read(types.int64), _read(types.int64, 2)
FLOAT32, FLOAT32_2D, FLOAT32_3D = (_read(types.float32, n_axes) for n_axes in (1, 2, 3))
FLOAT64, FLOAT64_2D = _read(types.float64), _read(types.float64, 2)
INTEGER: types.Type = types.int64
REAL: types.Type = types.float64
"""Types of arguments: arrays by type and axes, and numbers."""


def written(array: types.Array) -> types.Array:
    """Return the type of an array that a loop writes."""
    return array.copy(readonly=False)


def compiled(returns: types.Type | None, *arguments: types.Type) -> Callable[[Loop], Loop]:
    """Compile a loop for one signature; other arguments raise `TypeError`.

    Division by zero gives infinity or NaN, as in numpy. Other threads run meanwhile.
    """
    signature = (types.void if returns is None else returns)(*arguments)

    def decorate(loop: Loop) -> Loop:
        loop.__qualname__ += f"-{_digest(loop)}"  # in the name of the file with the machine code
        try:
            return cast("Loop", njit(signature, cache=True, error_model="numpy", nogil=True)(loop))
        except RuntimeError:  # no folder for the machine code is writable
            return cast("Loop", njit(signature, error_model="numpy", nogil=True)(loop))

    return decorate


def step(function: Loop) -> Loop:
    """Compile a function as a part of the loops that call it."""
    return cast("Loop", njit(error_model="numpy")(function))


def _digest(loop: Any) -> str:
    """Return a digest of a loop with its steps and constants.

    numba alone compares the file of the loop.
    """
    return hashlib.blake2b(b"".join(_parts(loop)), digest_size=8).hexdigest()


def _parts(function: FunctionType) -> Iterator[bytes]:
    """Yield the code and constants of a function and its steps."""
    code = function.__code__
    yield code.co_code
    yield repr(code.co_consts).encode()
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher):
            yield from _parts(value.py_func)
        elif isinstance(value, np.ndarray):
            yield value.tobytes()
        elif isinstance(value, int | float | str | tuple | np.generic):
            yield repr(value).encode()
