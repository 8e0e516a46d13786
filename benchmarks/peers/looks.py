"""Sequences, clock and looks of a training run of another library; needs NumPy only.

A program reads the file of `validation_moments.write_sequences` and prints JSON lines to stdout: the versions, then a look for
each ``--every`` CPU seconds of training. A look holds the lists of all queries; it knows no targets. All other output goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

LIST_LENGTH: Final = 10


def split(items: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each run of a flat array."""
    return np.split(items, offsets[1:-1])


class Sequences:
    """Training sequences and query histories, oldest first, with items from 1 to ``n_items``."""

    def __init__(self, file: Path) -> None:
        arrays = np.load(file)
        self.n_items = int(arrays["n_items"])
        self.train = split(arrays["train_items"], arrays["train_offsets"])
        self.queries = split(arrays["query_items"], arrays["query_offsets"])

    def best(self, scores: np.ndarray) -> list[list[int]]:
        """Return the unseen items with the highest of (Q, n_items) scores; column i is item i + 1."""
        for row, history in zip(scores, self.queries, strict=True):
            row[history - 1] = -np.inf
        lists: list[list[int]] = (np.argsort(-scores, axis=1, kind="stable")[:, :LIST_LENGTH] + 1).tolist()
        return lists


class Looks:
    """Clock of CPU seconds of training, without looks, that prints a look at fixed seconds."""

    def __init__(self, seconds: float, every: float, packages: tuple[str, ...]) -> None:
        self.seconds = seconds
        self.every = every
        self.started = time.process_time()
        self.looking = 0.0
        self.step = self.tokens = 0
        self.next = every
        self.out = sys.stdout
        sys.stdout = sys.stderr
        self.write({name: version(name) for name in packages})

    def write(self, line: dict[str, Any]) -> None:
        """Print a JSON line to the stdout of the program."""
        self.out.write(json.dumps(line) + "\n")
        self.out.flush()

    def start(self) -> None:
        """Start the clock; before it are imports and the library's own preparation."""
        self.started = time.process_time()

    def after_step(self, tokens: int, lists: Callable[[], list[list[int]]]) -> bool:
        """Count a step of this many tokens, look if it is time, and return True at the end of the budget."""
        self.step += 1
        self.tokens += tokens
        now = time.process_time()
        spent = now - self.started - self.looking
        if spent >= self.next:
            self.write(
                {
                    "seconds": round(spent, 2),
                    "start_seconds": round(self.started, 2),
                    "step": self.step,
                    "tokens": self.tokens,
                    "lists": lists(),
                }
            )
            self.looking += time.process_time() - now
            self.next = (spent // self.every + 1) * self.every
        return spent >= self.seconds


def arguments() -> argparse.Namespace:
    """Read file, seconds and seed from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="CPU seconds of training")
    parser.add_argument("--every", type=float, required=True, help="CPU seconds between looks")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()
