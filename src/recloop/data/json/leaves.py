"""Search of JSON records for the paths of their values."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any, Final

from recloop.data.json.paths import EACH, key_path
from recloop.files import JsonTree

MAX_PATH_DEPTH: Final = 8
"""Levels of keys and lists in a path; deeper objects are one value."""
MAX_KEYS: Final = 500
"""Keys of a nested object, or names of entries; one with more is a map, which is one value."""
MAX_SAMPLES: Final = 5
ENTRY_VALUE: Final = "value"
ID_NAME: Final = re.compile(
    r"(?i).*(id|sku|asin|ean|gtin|isbn|code|slug|url|item|product|article|track|movie|song|book|video|content)"
)


@dataclass(frozen=True)
class Leaf:
    """Values at one path.

    Attributes:
        path: Keys, ``[]`` for every element of a list, ``[NAME]`` for an entry; see `recloop.data.json.paths`.
        list: Path of the innermost list around it, which ends with ``[]``; empty: the path has one value per record.
        n_values: Values that are not null.
        n_objects: Records, or elements of the list.
        samples: Some different values.
    """

    path: str
    list: str
    n_values: int
    n_objects: int
    samples: tuple[Any, ...]

    @property
    def share(self) -> float:
        """Share of the records or elements that have a value."""
        return self.n_values / self.n_objects if self.n_objects else 0.0


def find_leaves(objects: list[JsonTree]) -> dict[str, Leaf]:
    """Paths of the values in some records, in the order of the first record."""
    leaves: dict[str, Leaf] = {}
    _visit("", objects, "", len(objects), 0, leaves)
    return leaves


def main_list(leaves: dict[str, Leaf]) -> str:
    """Path of the list with most objects that have an id; empty if there is none."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        if leaf.list and leaf.path != leaf.list and ID_NAME.fullmatch(re.split(r"[.\[]", leaf.path)[-1]):
            sizes[leaf.list] = leaf.n_objects
    return max(sizes, key=sizes.__getitem__, default="")


def _visit(path: str, values: list[Any], in_list: str, n_objects: int, depth: int, leaves: dict[str, Leaf]) -> None:
    """Add the leaves at and below a path."""
    kinds = set(map(type, values))
    is_leaf = bool(path) and (
        bool(kinds - {dict, list, type(None)}) or kinds <= {type(None)} or depth >= MAX_PATH_DEPTH
    )
    if dict in kinds and depth < MAX_PATH_DEPTH:
        objects = values if len(kinds) == 1 else [value for value in values if type(value) is dict]
        keys = dict.fromkeys(itertools.chain.from_iterable(objects))
        if path and (not keys or len(keys) > MAX_KEYS):
            is_leaf = True
        else:
            for key in keys:
                inner = [value.get(key) for value in objects]
                _visit(key_path(path, key), inner, in_list, n_objects, depth + 1, leaves)
    if list in kinds and depth < MAX_PATH_DEPTH:
        is_leaf |= not _visit_elements(path, values, in_list, n_objects, depth, leaves)
    if is_leaf:
        _add(path, values, in_list, n_objects, leaves)


def _visit_elements(
    path: str, values: list[Any], in_list: str, n_objects: int, depth: int, leaves: dict[str, Leaf]
) -> bool:
    """Add the leaves of the elements of lists; False if no element is an object."""
    lists = [value for value in values if type(value) is list]
    elements = [element for element in itertools.chain.from_iterable(lists) if element is not None]
    each = path + EACH
    if not any(type(element) is dict for element in elements):
        if elements:
            _add(each, elements, each, len(elements), leaves)
        return False
    names = _entry_names(elements)
    if names:
        for name in names:
            inner = [entry_of(value, name) for value in lists]
            _visit(f"{path}[{name}]", inner, in_list, n_objects, depth + 1, leaves)
    else:
        _visit(each, elements, each, len(elements), depth + 1, leaves)
    return True


def _add(path: str, values: list[Any], in_list: str, n_objects: int, leaves: dict[str, Leaf]) -> None:
    present = [value for value in values if value is not None]
    samples = list[Any]()
    for value in present[:100]:
        if value not in samples and len(samples) < MAX_SAMPLES:
            samples.append(value)
    leaves.setdefault(path, Leaf(path, in_list, len(present), n_objects, tuple(samples)))


# -- entries


def entry_of(value: Any, name: str) -> Any:
    """Value of an entry of a list, or of a key of an object."""
    if type(value) is dict:
        return value.get(name)
    if type(value) is list:
        for element in value:
            if type(element) is dict and (element.get("key") == name or element.get("name") == name):
                return _entry_value(element.get(ENTRY_VALUE))
    return None


def _entry_value(value: Any) -> Any:
    """The value of an entry, or the given one of several typed values."""
    if type(value) is dict:
        for name, inner in value.items():
            if inner is not None and name.endswith("_value"):
                return inner
        return None
    return value


def _entry_name(element: Any) -> str:
    """Key of an entry, or an empty text for another value."""
    if type(element) is not dict:
        return ""
    name = element.get("key", element.get("name") if len(element) <= 2 else None)
    return name if type(name) is str and (ENTRY_VALUE in element or len(element) == 1) else ""


def _entry_names(elements: list[Any]) -> dict[str, None]:
    """Names of the entries; empty if an element is not an entry."""
    if ENTRY_VALUE not in elements[0] if type(elements[0]) is dict else True:
        return {}
    names: dict[str, None] = {}
    for element in elements:
        name = _entry_name(element)
        if not name or "]" in name or len(names) > MAX_KEYS:
            return {}
        names[name] = None
    return names
