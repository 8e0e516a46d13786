"""Arrays of a bundle: mapped from safetensors and checked against its tables.

Serving indexes with these arrays, and an index out of range would read or write memory outside them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from recloop.errors import BundleError
from recloop.features import item_statistics
from recloop.features.rhythm import BINS, HAZARD_DAYS

CHUNK_VALUES: Final = 2**20
"""Values that are checked together; bounds the memory of a check."""
MAX_HEADER_BYTES: Final = 16 * 2**20
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""Safetensors types that serving reads."""


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file, read-only.

    Processes and bundles that map one file share its memory, and the system can drop pages that are not used. A file
    stays readable after its folder is removed.
    """
    size = path.stat().st_size
    arrays: dict[str, np.ndarray] = {}
    fix = "recloop update --full"
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > min(size, MAX_HEADER_BYTES):
            raise BundleError(path.name, f"a header of {start:,} bytes", f"at most {MAX_HEADER_BYTES:,}", fix)
        header = msgspec.json.decode(file.read(start - 8))
        mapped = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype=np.uint8)
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        low, high = facts["data_offsets"]
        if start + high > size:
            raise BundleError("bundle file", path, "a complete file (it ends early)", fix)
        dtype, shape = DTYPES.get(facts["dtype"]), facts["shape"]
        if dtype is None or not 0 <= low <= high or min(shape, default=0) < 0:
            raise BundleError(f"{name} of {path.name}", facts["dtype"], f"one of {', '.join(DTYPES)}", fix)
        if prod(shape) * np.dtype(dtype).itemsize != high - low:
            raise BundleError(f"{name} of {path.name}", shape, f"a shape of {high - low} bytes", fix)
        arrays[name] = mapped[start + low : start + high].view(dtype).reshape(shape)
    return arrays


def check_arrays(arrays: Mapping[str, np.ndarray], n_items: int, n_users: int | None) -> None:
    """Check the arrays of serve.safetensors.

    Args:
        n_items: Items N of the bundle. n_users: Users U of the bundle; None without a table of users.

    Raises:
        BundleError: a shape, type or value that serving cannot use.
    """
    for name, array in arrays.items():
        _check_finite(name, array)
        if name == "popular" or name.startswith("segment."):
            _check_items(name, array, 1, n_items)
        elif name.endswith("indptr"):
            _check_neighbours(name, arrays, n_items)
        elif name.endswith(("item_vectors", "user_vectors")):
            n_rows = n_items if name.endswith("item_vectors") else n_users
            _require(name, n_rows is not None, "a table of users")
            _require(name, array.ndim == 2 and len(array) == (n_rows or 0) + 1, f"{n_rows} + 1 rows of numbers")
            _require(name, array.dtype.kind == "f", "floating-point numbers")
        elif name.endswith("log_gaps"):
            _require(name, array.shape == (n_items + 1,) and array.dtype.kind == "f", f"{n_items} + 1 numbers")
    _require("popular", "popular" in arrays, "this array")
    _check_widths(arrays)
    if "attributes.affinity" in arrays:
        _check_affinity(arrays, n_items)
    if "ranking.values" in arrays:
        _check_ranking(arrays, n_items)


def _check_finite(name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "f":
        _require(name, all(np.isfinite(chunk).all() for chunk in _chunks(array)), "finite numbers", "NaN or infinite")


def _check_items(name: str, array: np.ndarray, lowest: int, highest: int) -> None:
    _require(name, array.ndim == 1 and array.dtype.kind == "i", "a list of integers")
    is_inside = all(chunk.min() >= lowest and chunk.max() <= highest for chunk in _chunks(array))
    _require(name, is_inside, f"numbers from {lowest} to {highest}")


def _check_neighbours(name: str, arrays: Mapping[str, np.ndarray], n_items: int) -> None:
    """Check the rows of neighbours that an ``indptr`` (N+2,) divides."""
    prefix = name.removesuffix("indptr")
    indptr = arrays[name]
    _require(name, indptr.ndim == 1 and indptr.dtype.kind == "i", "a list of integers")
    _require(name, len(indptr) == n_items + 2, f"{n_items} + 2 numbers")
    is_ascending = all((chunk[1:] >= chunk[:-1]).all() for chunk in _chunks(indptr, overlap=1))
    _require(name, int(indptr[0]) == 0 and is_ascending, "ascending numbers from 0")
    for part in ("ids", "weights"):
        values = arrays.get(prefix + part)
        _require(prefix + part, values is not None and values.shape == (int(indptr[-1]),), f"{indptr[-1]} values")
    _check_items(f"{prefix}ids", arrays[f"{prefix}ids"], 0, n_items)
    _require(f"{prefix}weights", arrays[f"{prefix}weights"].dtype.kind == "f", "floating-point numbers")


def _check_widths(arrays: Mapping[str, np.ndarray]) -> None:
    """Check that the vectors of users and items of a source have equal widths."""
    for name, users in arrays.items():
        items = arrays.get(f"{name.removesuffix('user_vectors')}item_vectors")
        if name.endswith("user_vectors") and items is not None:
            _require(name, users.shape[1] == items.shape[1], f"{items.shape[1]} columns")


def _check_affinity(arrays: Mapping[str, np.ndarray], n_items: int) -> None:
    """Check the arrays of `recloop.features.attribute_affinity.AttributeAffinity`."""
    affinity, prior, values, strengths = (
        _required(arrays, f"attributes.{name}") for name in ("affinity", "prior", "value_prior", "strengths")
    )
    _require("attributes.prior", prior.shape == (n_items + 1,), f"{n_items} + 1 numbers")
    _require("attributes.value_prior", values.ndim == 1 and len(values) > 0, "a list of numbers")
    _require("attributes.strengths", strengths.shape == (2,), "2 numbers")
    is_table = affinity.ndim == 2 and affinity.shape[1] == len(values) and len(affinity) >= len(values)
    _require("attributes.affinity", is_table, f"rows of {len(values)} numbers")
    n_user_slots = len(affinity) - len(values)
    for name, highest in (("user_slots", n_user_slots), ("item_slots", len(values) - 1)):
        _check_items(f"attributes.{name}", _required(arrays, f"attributes.{name}"), 0, highest)


def _check_ranking(arrays: Mapping[str, np.ndarray], n_items: int) -> None:
    """Check the item statistics that the loops of a ranker index."""
    for name, axis, dtype in (("values", 0, np.float32), ("codes", 1, np.int32), ("amounts", 1, np.float32)):
        array = _required(arrays, f"ranking.{name}")
        is_table = array.ndim == 2 and array.shape[axis] == n_items + 1
        _require(f"ranking.{name}", is_table, f"{n_items} + 1 {'columns' if axis else 'rows'}")
        _require(f"ranking.{name}", array.dtype == dtype, f"{np.dtype(dtype).name} numbers")
    n_columns = len(item_statistics.NAMES)
    _require("ranking.values", arrays["ranking.values"].shape[1] == n_columns, f"{n_columns} columns")
    _require("ranking.codes", int(arrays["ranking.codes"].min(initial=0)) >= 0, "codes from 0")
    if "rhythm.times" not in arrays and "rhythm.hazard" not in arrays:
        return
    n_fields, n_codes = len(arrays["ranking.codes"]), int(arrays["ranking.codes"].max(initial=0)) + 1
    for name, width in (("times", BINS), ("hazard", len(HAZARD_DAYS) + 1)):
        table = _required(arrays, f"rhythm.{name}")
        is_table = table.shape == (n_fields, n_codes, width) and table.dtype == np.float32
        _require(f"rhythm.{name}", is_table, f"{n_fields} x {n_codes} x {width} float32 numbers")


def _required(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    _require(name, name in arrays, "this array")
    return arrays[name]


def _require(name: str, holds: bool, expected: str, found: str = "invalid") -> None:
    if not holds:
        raise BundleError(f"{name} of serve.safetensors", found, expected, "recloop update --full")


def _chunks(array: np.ndarray, overlap: int = 0) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    for start in range(0, len(flat), CHUNK_VALUES):
        yield flat[start : start + CHUNK_VALUES + overlap]
