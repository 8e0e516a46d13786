"""Compiled loops over arrays, for steps that numpy takes in many small calls.

A loop is compiled for one signature, at its first call. Its machine code is kept beside the module, in the folder
``NUMBA_CACHE_DIR``, or in the user's cache; without a writable folder each process compiles it again. numba is imported at
the first call too: that takes 0.7 s of CPU, which a process without lists does not need.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Array(NamedTuple):
    """Type of a contiguous array.

    A loop that only reads it takes read-only arrays too.
    """

    dtype: str
    n_axes: int = 1
    is_written: bool = False


BOOL, INT8, INT8_2D = Array("boolean"), Array("int8"), Array("int8", 2)
INT32, INT32_2D = Array("int32"), Array("int32", 2)
INT64, INT64_2D = Array("int64"), Array("int64", 2)
UINT64 = Array("uint64")
FLOAT32, FLOAT32_2D, FLOAT32_3D = Array("float32"), Array("float32", 2), Array("float32", 3)
FLOAT64, FLOAT64_2D = Array("float64"), Array("float64", 2)
INTEGER, REAL = "int64", "float64"
"""Types of arguments: arrays by type and axes, and numbers."""

_STEPS: set[object] = set()
_LOOPS: list[Loop] = []


def written(array: Array) -> Array:
    """Return the type of an array that a loop writes."""
    return array._replace(is_written=True)


def step(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Mark a function as a part of the loops of its module, compiled with them."""
    _STEPS.add(function)
    return function


def compiled(
    returns: str | None, *arguments: Array | str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Compile a loop for one signature; other arguments raise `TypeError`.

    Division by zero gives infinity or NaN, as in numpy. Other threads run meanwhile.
    """

    def decorate(loop: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        return cast("Callable[Parameters, Result]", Loop(cast("FunctionType", loop), returns, arguments))

    return decorate


class Loop:
    """Function over arrays that is compiled at its first call."""

    def __init__(self, function: FunctionType, returns: str | None, arguments: tuple[Array | str, ...]) -> None:
        self._function = function
        self._returns = returns
        self._arguments = arguments
        functools.update_wrapper(self, function)
        _LOOPS.append(self)

    def __call__(self, *arguments: Any) -> Any:
        return self.machine(*arguments)

    @functools.cached_property
    def machine(self) -> Any:
        """Dispatcher of numba, with machine code for the signature."""
        from numba import njit, types

        arguments = [_numba_type(argument) for argument in self._arguments]
        signature = (types.void if self._returns is None else getattr(types, self._returns))(*arguments)
        function = _with_steps(self._function)
        function.__qualname__ += f"-{_digest(self._function)}"  # in the name of the file with the machine code
        try:
            return njit(signature, cache=True, error_model="numpy", nogil=True)(function)
        except RuntimeError:  # no folder for the machine code is writable
            return njit(signature, error_model="numpy", nogil=True)(function)


def compile_all() -> None:
    """Compile the loops of all imported modules, so that no request waits for it."""
    for loop in _LOOPS:
        _ = loop.machine


def _numba_type(argument: Array | str) -> Any:
    from numba import types

    if isinstance(argument, str):
        return getattr(types, argument)
    return types.Array(getattr(types, argument.dtype), argument.n_axes, "C", readonly=not argument.is_written)


def _with_steps(function: FunctionType) -> FunctionType:
    """Return a copy of a function that calls its steps as compiled ones."""
    from numba import njit

    names = dict(function.__globals__)
    for name, part in _steps_of(function).items():
        names[name] = njit(error_model="numpy")(_with_steps(part))
    copy = FunctionType(function.__code__, names, function.__name__)
    copy.__qualname__ = function.__qualname__
    copy.__module__ = function.__module__
    return copy


def _steps_of(function: FunctionType) -> dict[str, FunctionType]:
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in named.items() if isinstance(value, FunctionType) and value in _STEPS}


def _digest(loop: FunctionType) -> str:
    """Return a digest of a loop with its steps and constants.

    numba alone compares the file of the loop.
    """
    return hashlib.blake2b(b"".join(_parts(loop)), digest_size=8).hexdigest()


def _parts(function: FunctionType) -> Iterator[bytes]:
    """Yield the code and constants of a function and its steps."""
    yield function.__code__.co_code
    yield repr(function.__code__.co_consts).encode()
    for part in _steps_of(function).values():
        yield from _parts(part)
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, np.ndarray):
            yield value.tobytes()
        elif isinstance(value, int | float | str | tuple | np.generic):
            yield repr(value).encode()
