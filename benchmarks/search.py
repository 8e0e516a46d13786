"""Measure exact and approximate first passes of the inner-product search, one thread.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/search.py    # about five minutes; writes benchmarks/results/search.json

Every method returns the best 100 of N item vectors (D = 64, float32) for one query at a time. The methods are alternated
query by query in one process; ``ms`` is the median CPU time and ``ratio`` its quotient by faiss ``IndexFlatIP``. ``recall`` is the
mean share of the exact best 100 over 1,000 held-out queries. Items and queries are Gaussian with a decaying spectrum
(d^-0.5) and log-normal item norms (sigma 0.3), as trained tables have. ``filtered`` allows a random tenth of the items.
Needs faiss-cpu (extra ``dev``).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import faiss
import numpy as np
from provenance import git, processor

from recloop.recommend.filters import CandidateMask
from recloop.recommend.search import ScanTable, VectorSearch
from recloop.recommend.table_mask import TableMask

RESULT: Final = Path(__file__).resolve().parent / "results" / "search.json"
SIZES: Final = (3_700, 100_000, 1_000_000)
DIM: Final = 64
DEPTH: Final = 100
N_QUERIES: Final = 1_000
N_TIMED: Final = 60
SEED: Final = 0

Method = Callable[[np.ndarray], np.ndarray]


def main(sizes: list[int]) -> None:
    """Run all sizes; print one line per method and write the result file."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("OMP_NUM_THREADS is not 1; run OMP_NUM_THREADS=1 python benchmarks/search.py")
    rows = []
    for size in sizes:
        vectors, queries = draw(size)
        for filtered in (False, True):
            mask = np.ones(size + 1, dtype=bool)
            if filtered:
                mask = np.random.default_rng(SEED).random(size + 1) < 0.1
            mask[0] = False
            for row in measure(methods(vectors, mask), vectors, mask, queries):
                rows.append({"items": size, "filtered": filtered, **row})
                sys.stdout.write(json.dumps(rows[-1]) + "\n")
                sys.stdout.flush()
    facts = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/search.py",
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{os.cpu_count()} x {processor()}, one thread",
        "faiss": faiss.__version__,
        "numpy": np.__version__,
    }
    RESULT.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", "utf-8")


def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return item vectors (N+1, D), row 0 is padding, and queries (1,000, D)."""
    generator = np.random.default_rng(SEED)
    spectrum = (np.arange(1, DIM + 1) ** -0.5).astype(np.float32)
    spectrum = generator.permutation(spectrum)
    vectors = generator.standard_normal((size + 1, DIM), dtype=np.float32) * spectrum
    vectors *= np.exp(0.3 * generator.standard_normal((size + 1, 1), dtype=np.float32))
    vectors[0] = 0
    return vectors, generator.standard_normal((N_QUERIES, DIM), dtype=np.float32) * spectrum


def methods(vectors: np.ndarray, mask: np.ndarray) -> dict[str, Method]:
    """Return the methods by name; each maps a query (D,) to the item_ix of its best items."""
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    parameters = faiss.SearchParameters(sel=selector)
    scan = VectorSearch(ScanTable.build(vectors))
    allowed = CandidateMask(TableMask.of(mask), [np.zeros(0, dtype=np.int32)], [frozenset()], "")
    scores = np.empty(len(vectors), dtype=np.float32)
    transposed = np.ascontiguousarray(vectors.T)
    excluded = np.flatnonzero(~mask)

    def blas(query: np.ndarray) -> np.ndarray:
        np.matmul(query, transposed, out=scores)
        scores[excluded] = -np.inf
        return np.argpartition(scores, len(scores) - DEPTH)[-DEPTH:]

    def blas_maxima(query: np.ndarray) -> np.ndarray:
        np.matmul(query, transposed, out=scores)
        scores[excluded] = -np.inf
        group = 32 if len(scores) > 32 * 400 else 1
        whole = scores[: len(scores) // group * group].reshape(group, -1).max(axis=0)
        found = np.flatnonzero(scores >= np.partition(whole, len(whole) - DEPTH)[-DEPTH])
        return found[np.argsort(-scores[found])[:DEPTH]]

    found: dict[str, Method] = {
        "faiss IndexFlatIP": lambda query: flat.search(query[None], DEPTH, params=parameters)[1][0],
        "integer scan (recloop)": lambda query: scan.best(query, allowed, 0, DEPTH)[0],
        "float32 BLAS, partition": blas,
        "float32 BLAS, block maxima": blas_maxima,
    }
    if mask[1:].all():
        found["faiss IndexFlatIP"] = lambda query: flat.search(query[None], DEPTH)[1][0]
        for name, kind in (
            ("float16", faiss.ScalarQuantizer.QT_fp16),
            ("8 bits", faiss.ScalarQuantizer.QT_8bit),
            ("4 bits", faiss.ScalarQuantizer.QT_4bit),
        ):
            coded = faiss.IndexScalarQuantizer(DIM, kind, faiss.METRIC_INNER_PRODUCT)
            coded.train(vectors[:100_000])
            coded.add(vectors)
            found[f"faiss {name}, 2 x rescored"] = refined(coded, flat, 2)
        fast = faiss.IndexPQFastScan(DIM, DIM // 2, 4, faiss.METRIC_INNER_PRODUCT)
        fast.train(vectors[:50_000])
        fast.add(vectors)
        for factor in (4, 20):
            found[f"faiss PQ{DIM // 2}x4 fast scan, {factor} x rescored"] = refined(fast, flat, factor)
    return found


def refined(coded: faiss.Index, flat: faiss.Index, factor: int) -> Method:
    """Return a search of codes whose best ``factor`` x 100 items are scored in float32."""
    index = faiss.IndexRefine(coded, flat)
    index.k_factor = factor
    return lambda query: index.search(query[None], DEPTH)[1][0]


def measure(found: dict[str, Method], vectors: np.ndarray, mask: np.ndarray, queries: np.ndarray) -> list[dict]:
    """Return time, ratio and recall of each method."""
    faiss.omp_set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in found}
    for query in queries[:N_TIMED]:
        for name, method in found.items():
            started = time.thread_time()
            method(query)
            times[name].append(time.thread_time() - started)
    truth = exact(vectors, mask, queries)
    rows = []
    for name, method in found.items():
        shares = [
            len(np.intersect1d(method(query), best)) / len(best) for query, best in zip(queries, truth, strict=True)
        ]
        milliseconds = float(np.median(times[name][5:])) * 1e3
        base = float(np.median(times["faiss IndexFlatIP"][5:])) * 1e3
        recall = float(np.mean(shares))
        rows.append({"method": name, "ms": round(milliseconds, 3), "ratio": round(milliseconds / base, 3),
                     "min_ms": round(min(times[name]) * 1e3, 3), "recall": round(recall, 5)})  # fmt: skip
    return rows


def exact(vectors: np.ndarray, mask: np.ndarray, queries: np.ndarray) -> list[np.ndarray]:
    """Return the exact best items of each query by a full float32 product."""
    columns = np.flatnonzero(mask)
    table = vectors[columns]
    best = []
    for start in range(0, len(queries), 20):
        scores = queries[start : start + 20] @ table.T
        best += [columns[np.argpartition(row, len(row) - DEPTH)[-DEPTH:]] for row in scores]
    return best


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or list(SIZES))
