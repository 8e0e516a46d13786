"""Typical service for comparison: FastAPI, torch eager SASRec, masks of -inf, argsort, decisions in SQLite.

    python benchmarks/typical.py PROJECT --port 8099

It reads the events and items of a project of `serve_project.py`. The weights are random, because their quality does not
change the cost. Per request it encodes the newest 50 items, scores the whole catalog, excludes other categories and seen
items by -inf, sorts, and commits the decision. It is written as such services are: a thread pool of FastAPI, one torch
thread, WAL, histories and masks prepared at the start.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
import uvicorn
from fastapi import FastAPI
from torch import Tensor, nn

HISTORY: Final = 50
DIM: Final = 64
BLOCKS: Final = 2
HEADS: Final = 2


class Block(nn.Module):
    """Attention and point-wise network, each after a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.before_attention, self.before_network = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.network = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))

    def forward(self, hidden: Tensor, causal: Tensor) -> Tensor:
        normed = self.before_attention(hidden)
        hidden = hidden + self.attention(normed, normed, normed, attn_mask=causal, need_weights=False)[0]
        mixed: Tensor = hidden + self.network(self.before_network(hidden))
        return mixed


class SASRec(nn.Module):
    """Self-attention over the newest items (T,); returns the vector (D,) of the user."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, DIM)
        self.positions = nn.Embedding(HISTORY, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, items: Tensor) -> Tensor:
        length = len(items)
        hidden = (self.items(items) + self.positions.weight[-length:])[None]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in self.blocks:
            hidden = block(hidden, causal)
        vector: Tensor = self.norm(hidden)[0, -1]
        return vector


class Decisions:
    """Decisions in SQLite; one connection per thread, one commit per decision."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE decisions (id TEXT PRIMARY KEY, user_id TEXT, at REAL, items TEXT)")

    def add(self, user_id: str, items: list[str]) -> str:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = sqlite3.connect(self._path, timeout=60)
            connection.execute("PRAGMA synchronous = NORMAL")
        key = uuid.uuid4().hex
        with connection:
            connection.execute(
                "INSERT INTO decisions VALUES (?, ?, ?, ?)", (key, user_id, time.time(), json.dumps(items))
            )
        return key


def make_app(project: Path, database: Path) -> FastAPI:
    """Build the service of a project."""
    items = pl.read_parquet(project / "items.parquet")
    ids = items["item_id"].to_list()
    rows = {item_id: row for row, item_id in enumerate(ids)}
    categories = items["category"].to_numpy()
    masks = {str(name): torch.from_numpy(categories == name) for name in np.unique(categories)}
    events = pl.read_parquet(project / "events.parquet").sort("timestamp", maintain_order=True)
    grouped = events.group_by("user_id").agg(pl.col("item_id").replace_strict(rows, return_dtype=pl.Int64))
    histories = {user_id: torch.from_numpy(np.array(past)) for user_id, past in grouped.iter_rows()}
    torch.manual_seed(0)
    model = SASRec(len(ids)).eval()
    decisions = Decisions(database)
    app = FastAPI()

    @app.get("/constant")
    def constant() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/recommend/{user_id}")
    def recommend(user_id: str, category: str, n: int = 10) -> dict[str, Any]:
        history = histories[user_id]
        with torch.inference_mode():
            vector = model(history[-HISTORY:])
            scores = model.items.weight @ vector
            scores[~masks[category]] = -torch.inf
            scores[history] = -torch.inf
            best = torch.argsort(scores, descending=True)[:n]
            found = [(ids[row], score) for row, score in zip(best.tolist(), scores[best].tolist(), strict=True)]
        key = decisions.add(user_id, [item_id for item_id, _ in found])
        return {"request_id": key, "items": [{"item_id": item_id, "score": score} for item_id, score in found]}

    return app


def main() -> None:
    """Serve a project until stopped."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("project", type=Path)
    words.add_argument("--port", type=int, required=True)
    words.add_argument("--database", type=Path, required=True, help="file of the decisions, which must not exist")
    asked = words.parse_args()
    torch.set_num_threads(1)
    uvicorn.run(make_app(asked.project, asked.database), port=asked.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
