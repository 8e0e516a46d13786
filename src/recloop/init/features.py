"""Feature and title detection for the columns of items and users files."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from recloop.data.tables import Table
from recloop.features.categories import as_categories
from recloop.files import JsonTree
from recloop.init.columns import ColumnGuess
from recloop.init.long_values import text_field, vector_field
from recloop.init.names import TITLE_NAMES, leaf, normalize_name

MAX_CATEGORIES: Final = 1_000
MAX_FEATURES: Final = 8
"""Maximum number of features per side; others can be added manually."""

SEPARATORS: Final = ("|", " > ", ";", ",")
"""Separators of categories in a text, the first one that fits."""
MAX_MISSING_SHARE: Final = 0.9
"""Largest share of missing values of a feature."""
MIN_LIST_SHARE: Final = 0.9
MIN_SEVERAL_SHARE: Final = 0.1
"""Share of the texts with more than one category from which a separator is one."""
MAX_DISTINCT_SHARE: Final = 0.5
MAX_WORDS: Final = 3
"""Largest mean number of words of a category."""

Side = tuple[Table, list[JsonTree]]
"""Items or users file: the table, and its rows as objects."""


def choose_title(side: Side | None, key: str) -> ColumnGuess:
    """Choose the title column, or a template of the most distinctive text columns."""
    if side is None:
        return ColumnGuess("", "no items file")
    table, rows = side
    for title in TITLE_NAMES:
        for name in table.columns:
            if normalize_name(leaf(name)) == title and name != key:
                return ColumnGuess(name, "its name")
    texts = {
        name: [text if isinstance(text := row.get(name), str) else None for row in rows]
        for name in table.columns
        if name != key and any(isinstance(row.get(name), str) for row in rows) and not _links(rows, name)
    }
    n_distinct = {name: len(set(values)) for name, values in texts.items() if _words(values)}
    if not n_distinct or max(n_distinct.values()) < 3:
        return ColumnGuess("", "no distinctive text column")
    best = max(n_distinct, key=lambda name: n_distinct[name])
    n_pairs = {name: len(set(zip(texts[best], values, strict=True))) for name, values in texts.items() if name != best}
    second = max(n_pairs, key=lambda name: n_pairs[name], default="")
    if second and n_pairs[second] > 1.2 * n_distinct[best]:
        return ColumnGuess(f"{{{best}}}, {{{second}}}", "no title column; these two are the most distinctive")
    return ColumnGuess(f"{{{best}}}", "no title column; this one is the most distinctive")


def _links(rows: list[JsonTree], name: str) -> bool:
    return any("://" in str(row.get(name)) for row in rows[:100])


def _words(values: list[Any]) -> bool:
    """True if most characters of a column are letters, as in words."""
    texts = [value for value in values if isinstance(value, str)]
    letters = sum(sum(character.isalpha() for character in text) for text in texts)
    return bool(texts) and letters > 0.6 * sum(map(len, texts))


def title_columns(title: str) -> set[str]:
    """Columns of a title.

    The columns of a template are excluded, because they stay features.
    """
    return set() if "{" in title else {title}


def choose_fields(side: Side | None, key: str, excluded: set[str], with_texts: bool = True) -> dict[str, JsonTree]:
    """Choose features among the columns of an items or users file, by name.

    Args:
        excluded: Columns that are not features. with_texts: Propose long texts; those of users may identify a person.
    """
    if side is None:
        return {}
    table, rows = side
    candidates: list[tuple[float, JsonTree]] = []
    for name in table.columns:
        if name == key or name in excluded:
            continue
        field = _field(name, [row.get(name) for row in rows], with_texts)
        is_name = normalize_name(name) in TITLE_NAMES and field is not None and field["kind"] != "text"
        if field is not None and not is_name:
            candidates.append((field["missing"], field))
    chosen = [field for _, field in sorted(candidates, key=lambda entry: entry[0])[:MAX_FEATURES]]
    order = {name: position for position, name in enumerate(table.columns)}
    chosen.sort(key=lambda field: order[field["from"]])
    features: dict[str, JsonTree] = {}
    for field in chosen:
        features[_name(field["from"], features)] = field
    return features


def _field(name: str, values: list[Any], with_texts: bool) -> JsonTree | None:
    present = [value for value in values if value is not None and value != ""]
    missing = 1 - len(present) / max(1, len(values))
    if missing > MAX_MISSING_SHARE or not present:
        return None
    several = vector_field(name, present, missing) or _several(name, present, missing)
    if several is not None:
        return several
    if any(isinstance(value, list | dict) for value in present):
        return None
    if with_texts and (text := text_field(name, present, missing)) is not None:
        return text
    distinct = len({str(value) for value in present})
    near_unique = distinct > 0.5 * len(present) and distinct > 20
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)
    is_code = re.search(r"(id|code|zip|plz|no|number)$", normalize_name(name)) is not None
    if numbers and not is_code and distinct > (30 if all(isinstance(value, int) for value in present) else 10):
        return {"kind": "number", "from": name, "dim": 8, "missing": missing, "values": distinct,
                "why": f"{distinct:,} distinct numbers: buckets"}  # fmt: skip
    if (
        distinct < 2
        or distinct > MAX_CATEGORIES
        or near_unique
        or not all(isinstance(v, str | int | float) for v in present)
    ):
        return None
    dim = 4 if distinct <= 10 else 8 if distinct <= 100 else 16
    return {"kind": "category", "from": name, "dim": dim, "missing": missing, "values": distinct,
            "why": f"{distinct:,} distinct values"}  # fmt: skip


def _several(name: str, present: list[Any], missing: float) -> JsonTree | None:
    """Feature of several categories.

    Its values are lists, texts of lists, or texts whose parts repeat.
    """
    as_list = [value for value in present if isinstance(value, list) or _is_list_text(value)]
    separator = "" if len(as_list) >= MIN_LIST_SHARE * len(present) else _separator(present)
    if separator is None:
        return None
    parts = [as_categories(value, separator) or [] for value in present]
    distinct = len({part for row in parts for part in row})
    n_parts = sum(map(len, parts))
    if not 2 <= distinct <= MAX_CATEGORIES or (distinct > 20 and distinct > 0.5 * n_parts):
        return None
    dim = 4 if distinct <= 10 else 8 if distinct <= 100 else 16
    how = f"separated by {separator.strip()!r}" if separator else "in lists"
    return {"kind": "categories", "from": name, "dim": dim, "missing": missing, "values": distinct, "separator": separator,
            "why": f"{distinct:,} distinct values, several of an entry {how}"}  # fmt: skip


def _is_list_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")


def _separator(present: list[Any]) -> str | None:
    """Separator of categories in the texts; None without one.

    Its parts repeat in different texts.
    """
    texts = [value for value in present if isinstance(value, str)]
    if len(texts) < len(present):
        return None
    for separator in SEPARATORS:
        split_texts = [[part.strip() for part in text.split(separator)] for text in texts]
        n_several = sum(len(parts) > 1 for parts in split_texts)
        parts = [part for row in split_texts for part in row if part]
        is_short = bool(parts) and sum(len(part.split()) for part in parts) <= MAX_WORDS * len(parts)
        distinct = {text: set(row) for text, row in zip(texts, split_texts, strict=True)}
        is_shared = sum(map(len, distinct.values())) > len(set(parts))  # a part is in two different texts
        repeats = is_shared and len(set(parts)) <= MAX_DISTINCT_SHARE * len(parts)
        if n_several >= MIN_SEVERAL_SHARE * len(texts) and is_short and repeats:
            return separator
    return None


def _name(column: str, used: Collection[str]) -> str:
    """Unique feature name of a column: lower-case letters, digits, underscores."""
    base = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_") or "field"
    name, number = base, 2
    while name in used:
        name, number = f"{base}_{number}", number + 1
    return name
