"""Codes of texts and vectors: the nearest clusters of their training values.

A text is a sum of hashed words and character n-grams, reduced by a singular value decomposition. A vector is used as it is.
Both are scaled to length 1 and coded by the nearest centres of a k-means (docs/definitions/attributes.md).
"""

from __future__ import annotations

import base64
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import scipy.sparse as sp

from recloop.features.value_text import as_text
from recloop.files import JsonTree

N_HASHES: Final = 2_048
"""Buckets of words and n-grams."""
N_FACTORS: Final = 24
"""Numbers of a text after the decomposition."""
NGRAM: Final = 4
"""Characters of an n-gram within a word."""
MAX_CHARACTERS: Final = 4_096
"""First characters of a text that are read."""
MAX_LENGTH: Final = 4_096
"""Most numbers of a vector."""
MAX_CLUSTERS: Final = 128
MAX_FITTED: Final = 20_000
"""Distinct values that the clusters are fitted on, spread evenly."""
MAX_SWEEPS: Final = 20
COLUMNS: Final = 2
"""Nearest clusters of a value."""
MIN_NORM: Final = 1e-6
"""Smallest share of a text's length that the decomposition must keep."""
WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Clusters:
    """Centres (K, D) float32 of length 1; code c is centre c - 1."""

    centres: np.ndarray

    @property
    def columns(self) -> int:
        return max(1, min(COLUMNS, len(self.centres)))

    def nearest(self, points: Sequence[np.ndarray | None]) -> np.ndarray:
        """(n, columns) int32 codes of the nearest centres; 0 without a point.

        A row does not depend on the others.
        """
        codes = np.zeros((len(points), self.columns), dtype=np.int32)
        for row, point in enumerate(points):
            if point is not None and len(self.centres):
                codes[row] = np.argsort(-(self.centres @ point), kind="stable")[: self.columns] + 1
        return codes

    @classmethod
    def fit(cls, points: np.ndarray) -> Clusters:
        """Fit spherical k-means on distinct points (n, D) of length 1.

        K is the root of n. The first centres are the points that are farthest from those before them.
        """
        if not len(points):
            return cls(np.zeros((0, points.shape[1] if points.ndim == 2 else 0), dtype=np.float32))
        points = points[np.unique(np.linspace(0, len(points) - 1, MAX_FITTED).astype(np.int64))]
        n_clusters = min(MAX_CLUSTERS, max(1, round(len(points) ** 0.5)))
        centres = _farthest(points, n_clusters)
        nearest = np.full(len(points), -1)
        for _ in range(MAX_SWEEPS):
            previous, nearest = nearest, (points @ centres.T).argmax(axis=1)
            if np.array_equal(previous, nearest):
                break
            sums = np.zeros_like(centres)
            np.add.at(sums, nearest, points)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres).astype(np.float32)
        return cls(centres)


def _farthest(points: np.ndarray, n: int) -> np.ndarray:
    """Return up to ``n`` points (n, D), each the least similar to those before it."""
    mean = points.mean(axis=0)
    chosen = [int((points @ mean).argmax())]
    similarity = points @ points[chosen[0]]
    while len(chosen) < n and similarity.min() < 1 - 1e-6:
        chosen.append(int(similarity.argmin()))
        similarity = np.maximum(similarity, points @ points[chosen[-1]])
    return points[chosen]


@dataclass(frozen=True)
class TextCodes:
    """Codes of a text feature.

    Attributes:
        idf: (N_HASHES,) float32 weight of each bucket. factors: (N_HASHES, D) float32 of the decomposition.
    """

    idf: np.ndarray
    factors: np.ndarray
    clusters: Clusters

    @property
    def size(self) -> int:
        return len(self.clusters.centres) + 1

    @property
    def columns(self) -> int:
        return self.clusters.columns

    def codes(self, raws: Iterable[Any]) -> np.ndarray:
        """(n, columns) int32; 0 for a missing value and for a text without a known word."""
        return self.clusters.nearest([self._point(raw) for raw in raws])

    def _point(self, raw: Any) -> np.ndarray | None:
        counts = hashed(raw)
        if not counts or not self.factors.size:
            return None
        buckets = np.array(sorted(counts))
        weights = _weights(np.array([counts[bucket] for bucket in buckets.tolist()])) * self.idf[buckets]
        point = weights @ self.factors[buckets]
        norm = np.linalg.norm(point)
        return point / norm if norm > MIN_NORM * max(1e-12, float(np.linalg.norm(weights))) else None

    def to_json(self) -> JsonTree:
        arrays = {"idf": _packed(self.idf), "factors": _packed(self.factors), "centres": _packed(self.clusters.centres)}
        return {"kind": "text", "width": self.factors.shape[1], **arrays}

    @classmethod
    def from_json(cls, tree: JsonTree) -> TextCodes:
        factors, centres = (_unpacked(tree[name]).reshape(-1, int(tree["width"])) for name in ("factors", "centres"))
        return cls(_unpacked(tree["idf"]), factors, Clusters(centres))

    @classmethod
    def fit(cls, raws: Iterable[Any]) -> TextCodes:
        """Fit weights, decomposition and clusters on the distinct texts."""
        from scipy.sparse.linalg import norm  # takes 0.1 s, which a service does not need

        counts = [found for found in map(hashed, sorted({as_text(raw) for raw in raws if raw is not None})) if found]
        idf = np.ones(N_HASHES, dtype=np.float32)
        if not counts:
            return cls(idf, np.zeros((N_HASHES, 1), np.float32), Clusters.fit(np.zeros((0, 1), np.float32)))
        indptr = np.concatenate([[0], np.cumsum([len(found) for found in counts])])
        buckets = np.concatenate([sorted(found) for found in counts])
        values = _weights(np.array([found[bucket] for found in counts for bucket in sorted(found)]))
        shared = np.bincount(buckets, minlength=N_HASHES)
        idf = np.log((1 + len(counts)) / (1 + shared)).astype(np.float32) + np.float32(1)
        matrix = sp.csr_array((values * idf[buckets], buckets, indptr), shape=(len(counts), N_HASHES))
        factors = _factors(sp.csr_array(sp.diags_array(1 / norm(matrix, axis=1)) @ matrix))
        points = matrix @ factors
        norms = np.linalg.norm(points, axis=1)
        kept = norms > MIN_NORM * norm(matrix, axis=1)
        points = (points[kept] / norms[kept, None]).astype(np.float32)
        return cls(idf, factors, Clusters.fit(points))


@dataclass(frozen=True)
class VectorCodes:
    """Codes of a vector feature of one length."""

    length: int
    clusters: Clusters

    @property
    def size(self) -> int:
        return len(self.clusters.centres) + 1

    @property
    def columns(self) -> int:
        return self.clusters.columns

    def codes(self, raws: Iterable[Any]) -> np.ndarray:
        """(n, columns) int32; 0 for a missing vector.

        A vector of another length, of zeros or with a value that is not a finite number is missing.
        """
        return self.clusters.nearest([_direction(raw, self.length) for raw in raws])

    def to_json(self) -> JsonTree:
        return {"kind": "vector", "length": self.length, "centres": _packed(self.clusters.centres)}

    @classmethod
    def from_json(cls, tree: JsonTree) -> VectorCodes:
        length = int(tree["length"])
        return cls(length, Clusters(_unpacked(tree["centres"]).reshape(-1, max(1, length))))

    @classmethod
    def fit(cls, raws: Iterable[Any]) -> VectorCodes:
        """Fit clusters on the vectors of the most frequent length."""
        vectors = [vector for raw in raws if (vector := as_vector(raw)) is not None]
        lengths = Counter(len(vector) for vector in vectors)
        length = min(lengths, key=lambda n: (-lengths[n], n), default=0)
        points = [point for vector in vectors if (point := _direction(vector, length)) is not None]
        empty = np.zeros((0, max(1, length)), dtype=np.float32)
        return cls(length, Clusters.fit(np.unique(np.stack(points), axis=0) if points else empty))


def as_vector(raw: Any, separator: str = "") -> list[float] | None:
    """Return the numbers of a value; None for other values.

    The value is a list, the text of a JSON list, or a text split at ``separator``.
    """
    if isinstance(raw, str):
        raw = _listed(raw, separator)
    if not isinstance(raw, list | tuple) or not 0 < len(raw) <= MAX_LENGTH:
        return None
    if any(isinstance(value, bool) or not isinstance(value, int | float | str) for value in raw):
        return None
    try:
        return [float(value) for value in raw]
    except ValueError:
        return None


def _listed(text: str, separator: str) -> list[Any] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text.split(separator or None) if text.strip() else None
    return value if isinstance(value, list) else None


def _direction(raw: Any, length: int) -> np.ndarray | None:
    """Vector of a length as float32 of norm 1; None for other values."""
    vector = as_vector(raw)
    if vector is None or len(vector) != length:
        return None
    values = np.array(vector, dtype=np.float64)
    largest = np.abs(values).max()
    if not np.isfinite(largest) or largest == 0:
        return None
    values /= largest  # the squares of large numbers overflow
    return (values / np.linalg.norm(values)).astype(np.float32)


def hashed(raw: Any) -> Counter[int]:
    """Count the words of a text and the n-grams of its words by bucket."""
    counts: Counter[int] = Counter()
    if raw is None:
        return counts
    for word in WORD.findall(as_text(raw)[:MAX_CHARACTERS].lower()):
        counts[_bucket(word)] += 1
        padded = f"<{word}>"
        for start in range(len(padded) - NGRAM + 1):
            counts[_bucket(padded[start : start + NGRAM])] += 1
    return counts


def _bucket(token: str) -> int:
    return zlib.crc32(token.encode("utf-8", "surrogatepass")) % N_HASHES


def _weights(counts: np.ndarray) -> np.ndarray:
    weights: np.ndarray = (1 + np.log(counts)).astype(np.float32)
    return weights


def _factors(matrix: sp.csr_array) -> np.ndarray:
    """Right singular vectors (N_HASHES, D) float32, the largest first."""
    rank = min(N_FACTORS, min(matrix.shape) - 1)
    if rank < 1:
        factors = matrix.toarray()[:1].T
    else:
        from scipy.sparse.linalg import svds

        start = np.ones(min(matrix.shape)) / min(matrix.shape) ** 0.5
        factors = svds(matrix.astype(np.float64), k=rank, v0=start, return_singular_vectors="vh")[2][::-1].T
    return np.ascontiguousarray(factors, dtype=np.float32)


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
