"""SASRec of RecTools with softmax loss: lists of its looks, for `learning_curves.py`.

    python3.11 -m venv rectools
    rectools/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0" pytorch-lightning==2.5.2 pandas==2.3.3 numpy==1.26.4
    python benchmarks/learning_curves.py --run rectools --python rectools/bin/python

Model, optimizer, loss and data loading are those of the library: the newest 51 items of each user once an epoch, Adam with a rate
of 0.001, no schedule. RecTools trains in one thread. Items that none of these windows holds are in no list.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from looks import Looks, Sequences, arguments
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

LENGTH: Final = 50
WIDTH: Final = 64
BATCH: Final = 128
CHUNK_QUERIES: Final = 128
FIRST_DAY: Final = pd.Timestamp("2000-01-01")


class LookCallback(Callback):
    """Count steps, print looks, and end the run with the budget."""

    def __init__(self, looks: Looks, sequences: Sequences) -> None:
        self.looks = looks
        self.sequences = sequences
        self.items = np.zeros(0, np.int64)  # (n,) item of each row of the library's table, without its padding row 0
        self.histories = torch.zeros(0, LENGTH, dtype=torch.int64)  # (Q, LENGTH) rows of the table, padding on the left

    def __deepcopy__(self, memo: dict[int, Any]) -> LookCallback:
        """Keep one clock: the library copies its trainer."""
        return self

    def know_items(self, items: np.ndarray) -> None:
        """Number the histories by the rows of the library's table."""
        self.items = items
        rows = np.zeros(self.sequences.n_items + 1, np.int64)
        rows[items] = np.arange(1, len(items) + 1)
        known = [rows[history][rows[history] > 0] for history in self.sequences.queries]
        padded = [np.r_[np.zeros(LENGTH, np.int64), history][-LENGTH:] for history in known]
        self.histories = torch.from_numpy(np.stack(padded))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        self.looks.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        tokens = int((batch["x"] > 0).sum())
        trainer.should_stop = self.looks.after_step(tokens, lambda: self.lists(pl_module.torch_model))

    @torch.no_grad()
    def lists(self, model: Any) -> list[list[int]]:
        """Rank the catalog for each query; mode and random state stay unchanged."""
        model.eval()
        table = model.item_model.get_all_embeddings()
        users = [model.encode_sessions({"x": x}, table)[:, -1] for x in self.histories.split(CHUNK_QUERIES)]
        model.train()
        scores = np.full((len(self.histories), self.sequences.n_items), -np.inf, np.float32)
        scores[:, self.items - 1] = (torch.cat(users) @ table[1:].T).numpy()
        return self.sequences.best(scores)


class Model(SASRecModel):  # type: ignore[misc]
    """SASRec whose callback learns the item numbers before the first step."""

    callback: LookCallback

    def _build_model_from_dataset(self, dataset: Dataset) -> None:
        super()._build_model_from_dataset(dataset)
        self.callback.know_items(self.data_preparator.get_known_item_ids().astype(np.int64))


def main() -> None:
    """Train for the CPU seconds of the command line."""
    options = arguments()
    looks = Looks(options.seconds, options.every, ("rectools", "torch", "pytorch-lightning"))
    sequences = Sequences(options.file)
    torch.set_num_threads(1)
    seed_everything(options.seed)
    callback = LookCallback(looks, sequences)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=-1,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
        )

    lengths = [len(items) for items in sequences.train]
    numbers = np.concatenate([np.arange(length) for length in lengths])
    rows = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: np.concatenate(sequences.train).astype(np.int64),
            Columns.Weight: 1.0,
            Columns.Datetime: FIRST_DAY + pd.to_timedelta(numbers, unit="s"),
        }
    )
    model = Model(
        n_blocks=2,
        n_heads=2,
        n_factors=WIDTH,
        dropout_rate=0.2,
        session_max_len=LENGTH,
        lr=0.001,
        batch_size=BATCH,
        loss="softmax",
        get_trainer_func=trainer,
    )
    model.callback = callback
    model.fit(Dataset.construct(rows))


if __name__ == "__main__":
    main()
