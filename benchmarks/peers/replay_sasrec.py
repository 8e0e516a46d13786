"""SASRec of RePlay with cross-entropy: lists of its looks, for `learning_curves.py`.

    python3.11 -m venv replay
    replay/bin/pip install torch==2.13.0 "replay-rec[torch]==0.22.0" lightning==2.6.6 pandas==2.3.3 pyarrow==23.0.1
    python benchmarks/learning_curves.py --run replay --python replay/bin/python

Model, optimizer, loss and data loading are those of the library: the newest 51 items of each user once an epoch, Adam with a rate
of 0.001, no schedule. RePlay trains in one thread.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import lightning
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from looks import Looks, Sequences, arguments
from replay.data import FeatureHint, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms

LENGTH: Final = 50
WIDTH: Final = 64
BATCH: Final = 128
CHUNK_QUERIES: Final = 128


class LookCallback(lightning.Callback):
    """Count steps, print looks, and end the run with the budget."""

    def __init__(self, looks: Looks, sequences: Sequences) -> None:
        self.looks = looks
        self.sequences = sequences
        padded = [np.r_[np.full(LENGTH, sequences.n_items), items - 1][-LENGTH:] for items in sequences.queries]
        self.histories = torch.from_numpy(np.stack(padded).astype(np.int64))  # (Q, LENGTH), padding on the left

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        self.looks.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        tokens = int((batch["padding_mask"] & batch["target_padding_mask"][..., 0]).sum())
        trainer.should_stop = self.looks.after_step(tokens, lambda: self.lists(pl_module))

    @torch.no_grad()
    def lists(self, module: Any) -> list[list[int]]:
        """Rank the catalog for each query; mode and random state stay unchanged."""
        module.eval()
        scores = [self.scores(module, histories) for histories in self.histories.split(CHUNK_QUERIES)]
        module.train()
        return self.sequences.best(torch.cat(scores).numpy())

    def scores(self, module: Any, histories: torch.Tensor) -> torch.Tensor:
        """Score all items, (q, n_items)."""
        mask = histories < self.sequences.n_items
        scores: torch.Tensor = module({"feature_tensors": {"item_id": histories}, "padding_mask": mask})["logits"]
        return scores[:, : self.sequences.n_items]


def main() -> None:
    """Train for the CPU seconds of the command line."""
    options = arguments()
    looks = Looks(options.seconds, options.every, ("replay-rec", "torch", "lightning"))
    sequences = Sequences(options.file)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    lightning.seed_everything(options.seed)
    item = TensorFeatureInfo(
        name="item_id",
        is_seq=True,
        padding_value=sequences.n_items,
        cardinality=sequences.n_items,
        embedding_dim=WIDTH,
        feature_type=FeatureType.CATEGORICAL,
        feature_hint=FeatureHint.ITEM_ID,
    )
    schema = TensorSchema([item])
    model = SasRec.from_params(
        schema=schema, embedding_dim=WIDTH, max_sequence_length=LENGTH, num_heads=2, num_blocks=2, dropout=0.2
    )
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "train.parquet")
        pd.DataFrame({"item_id": [items.astype(np.int64) - 1 for items in sequences.train]}).to_parquet(file)
        shape = {"item_id": {"shape": LENGTH + 1, "padding": sequences.n_items}}
        data = ParquetModule(
            train_path=file,
            validate_path=file,  # never read; Lightning asks for the loader
            batch_size=BATCH,
            metadata={"train": shape, "validate": shape},
            transforms=make_default_sasrec_transforms(schema),
        )
        trainer = lightning.Trainer(
            max_epochs=-1,
            limit_val_batches=0,
            callbacks=[LookCallback(looks, sequences)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
        )
        trainer.fit(LightningModule(model), datamodule=data)


if __name__ == "__main__":
    main()
