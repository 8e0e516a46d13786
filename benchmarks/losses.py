"""Time the step of each loss by catalog size.

    .venv/bin/python benchmarks/losses.py          # about a minute on 2 cores; prints a table

The numbers are CPU seconds of loss, gradient and AdamW over the table, with 1,000 targets of width 64 per step and 256
negatives: the median of three steps after a warm-up step. Learning per epoch is not measured: a step of the full softmax
sees every item, a step of ``ss_refined`` only the drawn ones.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from types import SimpleNamespace
from typing import Final

import numpy as np
import torch

from recloop.config import Train
from recloop.training.losses import Criterion, LossRows

SIZES: Final = (3_000, 10_000, 30_000, 100_000, 300_000)
LOSSES: Final = ("ce", "ss_refined", "gbce", "bpr")
ROWS: Final = 1_000
DIM: Final = 64
STEPS: Final = 4


def main() -> None:
    """Time every loss at every size and print the table."""
    sys.stdout.write("| items | " + " | ".join(LOSSES) + " |\n|---" + "|---" * len(LOSSES) + "|\n")
    for size in SIZES:
        cells = [f"{seconds(name, size):.3f} s" for name in LOSSES]
        sys.stdout.write(f"| {size:,} | " + " | ".join(cells) + " |\n")
        sys.stdout.flush()


def seconds(name: str, size: int) -> float:
    """Median seconds of a loss step over a number of items."""
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(size, DIM) / 10)
    optimizer = torch.optim.AdamW([table], fused=True)
    counts = np.ceil(size / np.arange(1, size + 2)).astype(np.int64)
    data = SimpleNamespace(n_items=size, counts=counts)
    criterion = Criterion(torch.nn.Module(), data, Train.model_validate({"loss": name}))  # type: ignore[arg-type]
    taken = []
    for _ in range(STEPS):
        vectors = torch.randn(ROWS, DIM, requires_grad=True)
        rows = LossRows(vectors, torch.randint(size, (ROWS,)), torch.ones(ROWS))
        started = time.process_time()
        optimizer.zero_grad()
        criterion(table, rows, None).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        taken.append(time.process_time() - started)
    return median(taken[1:])


if __name__ == "__main__":
    main()
