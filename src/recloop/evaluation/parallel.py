"""Answers to batches of queries in threads; numpy and onnxruntime release the GIL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from threadpoolctl import threadpool_limits

CHUNK_QUERIES = 256
"""Queries per batch, which bounds the memory for any number of queries."""

Worker = TypeVar("Worker")


def spans(n_queries: int) -> list[slice]:
    """Return the positions of each batch of queries, in order."""
    starts = range(0, n_queries, CHUNK_QUERIES)
    return [slice(start, min(start + CHUNK_QUERIES, n_queries)) for start in starts]


def each_span(workers: Sequence[Worker], n_queries: int, answer: Callable[[Worker, slice], None]) -> Iterator[slice]:
    """Answer the queries in one thread per worker; yield the finished spans in order.

    A worker answers one span at a time. Which one answers a span depends on the load, so results must not depend on it.
    """
    free: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def run(span: slice) -> slice:
        worker = free.get()
        try:
            answer(worker, span)
        finally:
            free.put(worker)
        return span

    # The threads of BLAS would compete with these and wait busily.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(workers)) as pool:
        yield from pool.map(run, spans(n_queries))
