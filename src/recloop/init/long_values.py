"""Detection of columns with long texts or vectors."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

from recloop.features.clusters import WORD, as_vector
from recloop.files import JsonTree

MIN_TEXT_WORDS: Final = 5
"""Smallest mean number of words of a long text."""
IDEOGRAM: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
"""Character of a writing without spaces; two count as a word."""
MIN_LETTERS: Final = 0.6
"""Smallest share of letters among the characters of a long text; codes and JSON have fewer."""
MIN_DISTINCT: Final = 0.5
"""Smallest share of distinct texts; the same few texts are categories."""
MIN_VECTOR_LENGTH: Final = 8
"""Fewest numbers of a vector; a few numbers are coordinates or sizes."""
MIN_VECTOR_SHARE: Final = 0.9
"""Smallest share of values that are vectors of the most frequent length."""
VECTOR_SEPARATORS: Final = ("", ";", ",", "|")
"""Separators of the numbers in a text, the first one that fits; empty: a list, the text of one, or spaces."""
CLUSTER_DIM: Final = 16
"""Width of the embedding of a text or a vector."""


def vector_field(name: str, present: list[Any], missing: float) -> JsonTree | None:
    """Return the feature of a column of vectors; None for another column.

    Lists of whole numbers are ids or counts.
    """
    for separator in VECTOR_SEPARATORS:
        vectors = [vector for value in present if (vector := as_vector(value, separator)) is not None]
        lengths = Counter(map(len, vectors))
        length, n_equal = lengths.most_common(1)[0] if lengths else (0, 0)
        if length < MIN_VECTOR_LENGTH or n_equal < MIN_VECTOR_SHARE * len(present):
            continue
        if all(number.is_integer() for vector in vectors for number in vector):
            return None
        return {"kind": "vector", "from": name, "dim": CLUSTER_DIM, "missing": missing, "values": n_equal,
                "separator": separator, "why": f"{length:,} numbers an entry: nearest clusters"}  # fmt: skip
    return None


def text_field(name: str, present: list[Any], missing: float) -> JsonTree | None:
    """Return the feature of a column of long texts; None for another column."""
    if not all(isinstance(value, str) for value in present):
        return None
    texts: list[str] = present
    distinct = len(set(texts))
    n_characters = sum(map(len, texts))
    n_words = sum(len(WORD.findall(text)) + len(IDEOGRAM.findall(text)) // 2 for text in texts)
    n_letters = sum(character.isalpha() for text in texts for character in text)
    mean_words = n_words / max(1, len(texts))
    is_prose = mean_words >= MIN_TEXT_WORDS and n_letters >= MIN_LETTERS * n_characters
    if not is_prose or distinct < max(2, MIN_DISTINCT * len(texts)) or any(map(_is_link, texts)):
        return None
    return {"kind": "text", "from": name, "dim": CLUSTER_DIM, "missing": missing, "values": distinct,
            "why": f"texts of {mean_words:.0f} words on average: nearest clusters"}  # fmt: skip


def _is_link(text: str) -> bool:
    return "://" in text and not any(map(str.isspace, text.strip()))
