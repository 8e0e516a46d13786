"""The one Lightning module, and its trainer: a step, a look at the validation moments, when to stop, what is kept."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from recloop import metrics
from recloop.config import Config
from recloop.errors import UserError
from recloop.learn.batches import Batch, Epoch, Sequences, Steps, past_of
from recloop.learn.losses import loss_function
from recloop.learn.start import item_start
from recloop.models.base import Held, TrainData

K = 10
CLIP = 1.0  # largest norm of a step's gradient
DECAY = 0.01  # of matrices; tables, biases and norms are not decayed
TENTHS = 10
QUERIES = 128  # validation queries scored at a time

Stopped = Literal["patience", "epochs", "budget"]


class Learner(lightning.LightningModule):
    """A network of `recloop.models`, its loss and its optimizer."""

    def __init__(self, network: nn.Module, data: TrainData, loss: str, lr: float) -> None:
        super().__init__()
        self.network: Any = network
        self.loss, self.lr = loss_function(loss), lr
        self.item_codes: Tensor
        self.register_buffer("item_codes", torch.from_numpy(data.item_codes.astype(np.int64)), persistent=False)

    def vectors(self) -> Tensor:
        """(N+1, D) the item vectors as they are now."""
        vectors: Tensor = self.network.items(self.item_codes)
        return vectors

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss of every moment end of the batch that has a next moment."""
        table = self.vectors()  # (N+1, D)
        history = F.embedding(batch.items, table)  # (B, T, D)
        ends = self.network.ends(history, batch.moments, batch.mask, batch.context, batch.arrived)  # (B, M, D)
        told = batch.targets > 0  # (B, M)
        return self.loss(ends[told], table[1:], batch.targets[told] - 1, batch.weights[told])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; only the matrices between layers decay."""
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear | nn.RNNBase)]
        inner = {id(p) for layer in layers for p in layer.parameters() if p.ndim > 1}
        decayed = [p for p in self.network.parameters() if id(p) in inner]
        free = [p for p in self.network.parameters() if id(p) not in inner]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.lr, fused=True)


class Examination:
    """NDCG@10 on the validation moments, full ranking, mean over their users."""

    def __init__(self, data: TrainData, held: Held, history: int, filter_seen: bool) -> None:
        data = past_of(data, held)
        known = np.diff(data.user_offsets)[held.user_ix] > 0  # without a history a network gives no score
        self.users = held.user_ix[known]
        sizes = np.diff(held.offsets)
        self.targets = held.items[np.repeat(known, sizes)]
        self.offsets = np.concatenate([[0], np.cumsum(sizes[known])])
        self.queries = Sequences(data, history).queries(self.users, held.now[known])
        self.seen = self._seen(data) if filter_seen else None

    def _seen(self, data: TrainData) -> tuple[np.ndarray, np.ndarray]:
        """(query, item_ix) of everything in the users' histories."""
        rows = data.moment_offsets[data.user_offsets]
        low, high = rows[self.users], rows[self.users + 1]
        query = np.repeat(np.arange(len(self.users)), high - low)
        place = np.arange(len(query)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        return query, data.items[low[query] + place]

    def __len__(self) -> int:
        return len(self.users)

    @torch.no_grad()
    def score(self, learner: Learner) -> float:
        """The number for the weights as they are; leaves mode and random state alone."""
        training = learner.training
        learner.eval()
        table = learner.vectors()  # (N+1, D)
        lists = [self._top(learner, table, slice(i, i + QUERIES)) for i in range(0, len(self), QUERIES)]
        learner.train(training)
        return float(metrics.ranking(np.concatenate(lists), self.targets, self.offsets, K)["NDCG"].mean())

    def _top(self, learner: Learner, table: Tensor, part: slice) -> np.ndarray:
        items, moments, mask, context = (tensor[part].to(table.device) for tensor in self.queries)
        users = learner.network.users(F.embedding(items, table), moments, mask, context)  # (b, D)
        scores = users @ table.T  # (b, N+1)
        scores[:, 0] = -torch.inf
        if self.seen is not None:
            query, item = self.seen
            own = (query >= part.start) & (query < part.stop)
            scores[query[own] - part.start, item[own]] = -torch.inf
        top = scores.topk(min(K, scores.shape[1] - 1))
        return torch.where(top.values > -torch.inf, top.indices, 0).cpu().numpy()


@dataclass
class Kept:
    """The best weights of one kind of look, with the optimizer's state at that moment."""

    ndcg: float = -1.0
    epoch: int = 0  # epochs begun
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


class Watch(lightning.Callback):
    """Looks at the validation moments, keeps the best weights, writes the log, says when to stop.

    After each epoch: patience counts these, and a run that stops by itself keeps the best of them. At each tenth of
    the budget: only a run that the budget stops may keep those.
    """

    def __init__(
        self, examination: Examination | None, folder: Path, patience: int, started: float, budget: float, bar: bool
    ) -> None:
        self.examination, self.patience, self.started, self.budget = examination, patience, started, budget
        self.log_file = (folder / "log.jsonl").open("w", encoding="utf-8")
        self.checkpoint = folder / "checkpoint"
        self.by_epoch, self.by_time = Kept(), Kept()
        self.tenth = 1
        self.last_look = -1
        self.stopped: Stopped = "epochs"
        self.looks: list[dict[str, Any]] = []
        self.tokens = 0
        self.bar: tqdm[Any] | None = tqdm(file=sys.stderr, unit="step", leave=False) if bar else None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def kept(self) -> Kept:
        """The weights that this run keeps."""
        return self.by_time if self.stopped == "budget" else self.by_epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        if self.bar is not None:
            self.bar.reset(total=trainer.num_training_batches)
            self.bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        loss = float(outputs["loss"])
        if not np.isfinite(loss):
            raise UserError("train.lr", pl_module.lr, "a rate at which the loss stays finite", "--set train.lr=3e-4")
        self.tokens += int(batch.mask.sum())
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "loss": round(loss, 6),
            "seconds": round(self.seconds, 3),
        }
        self.log_file.write(json.dumps(row) + "\n")
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}" + self._best(), refresh=False)
            self.bar.update()
        if self.seconds >= self.budget * self.tenth / TENTHS:
            self.tenth = int(self.seconds / self.budget * TENTHS) + 1
            self._look(trainer, pl_module, "tenth")
        if self.seconds >= self.budget:
            self.stopped = "budget"
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.stopped == "budget" and self.last_batch_cut(trainer):
            return
        self._look(trainer, pl_module, "epoch")
        if self.examination and trainer.current_epoch + 1 - self.by_epoch.epoch >= self.patience:
            self.stopped = "patience"
            trainer.should_stop = True

    @staticmethod
    def last_batch_cut(trainer: Any) -> bool:
        """Whether the epoch ended before its last step."""
        return int(trainer.fit_loop.epoch_loop.batch_progress.current.completed) < int(trainer.num_training_batches)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.stopped == "budget" and self.last_look < trainer.global_step:
            self._look(trainer, pl_module, "tenth")

    def _look(self, trainer: Any, learner: Learner, at: Literal["epoch", "tenth"]) -> None:
        """Examine the weights; without validation moments the newest are the best."""
        self.last_look = trainer.global_step
        self.log_file.flush()
        ndcg = self.examination.score(learner) if self.examination else None
        epoch = trainer.current_epoch + 1
        self.looks.append(
            {"at": at, "epoch": epoch, "step": trainer.global_step, "seconds": round(self.seconds, 2), "NDCG@10": ndcg}
        )
        for kept in (self.by_time, self.by_epoch)[: 2 if at == "epoch" else 1]:
            if ndcg is None or ndcg > kept.ndcg:
                kept.ndcg, kept.epoch, kept.step = ndcg or 0.0, epoch, trainer.global_step
                kept.weights = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
                kept.optimizer = moments_of(trainer.optimizers[0], learner.network)
                self._write(kept)

    def _write(self, kept: Kept) -> None:
        """The kept weights and the optimizer's state, written beside and renamed: safetensors, no pickle."""
        self.checkpoint.mkdir(exist_ok=True)
        beside = self.checkpoint / "train.safetensors.part"
        save_file(train_state(kept), beside)
        beside.replace(self.checkpoint / "train.safetensors")

    def _best(self) -> str:
        return f", validation NDCG@10 {self.by_time.ndcg:.4f}" if self.by_time.ndcg >= 0 else ""

    def close(self) -> None:
        """End the log and the bar."""
        self.log_file.close()
        if self.bar is not None:
            self.bar.close()


def train_state(kept: Kept) -> dict[str, Tensor]:
    """``network.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME``, ``step.NAME``: what a warm start needs."""
    named = {f"network.{name}": tensor for name, tensor in kept.weights.items()} | kept.optimizer
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def moments_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Copies of AdamW's state by the parameter's name."""
    copies = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            copies[f"{key}.{name}"] = torch.as_tensor(value).clone()
    return copies


def learn(
    network: Any, data: TrainData, config: Config, folder: Path, started: float, budget: float, quiet: bool
) -> tuple[Learner, Watch]:
    """Train a network on the training moments until patience, epochs or budget end; the learner holds the kept weights.

    Args:
        network: A module of the shelf or a stranger's, not yet built.
        started: `time.monotonic` at which the budget began.
    """
    settings = config.train
    with repeatable(settings.seed), calm():
        network.build(data, config.features.dim, config.features.history)
        if getattr(network.config, "start", "") == "counts":
            network.start(torch.from_numpy(item_start(data, config.features.dim, settings.seed)))
        sequences = Sequences(data, config.features.history)
        windows = sequences.training(settings.windows)
        steps = Steps(sequences.lengths(windows), settings.seed)
        held = data.held
        seen = config.split.filter_seen
        examination = Examination(data, held, config.features.history, seen) if held is not None else None
        learner = Learner(network, data, settings.loss, settings.lr)
        watch = Watch(examination or None, folder, settings.patience, started, budget, not quiet)
        trainer = lightning.Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
            max_epochs=settings.epochs,
            min_epochs=0,
            gradient_clip_val=CLIP,
            callbacks=[watch],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        loader = DataLoader(Epoch(sequences, windows, settings.seed, steps), sampler=steps, batch_size=None)
        try:
            _interruptible(lambda: trainer.fit(learner, loader))
        finally:
            watch.close()
    network.load_state_dict(watch.kept.weights)
    learner.eval()
    return learner, watch


def _interruptible(run: Callable[[], None]) -> None:
    """Run; Ctrl-C stays a KeyboardInterrupt, which Lightning would make an exit with 1."""
    try:
        run()
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """The same numbers again on the same machine and thread count; the caller's random state is left alone."""
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # a fifth of a step, and nothing here reads it
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            memory.fill_uninitialized_memory = before[1]


@contextmanager
def calm() -> Iterator[None]:
    """Lightning without its advice: what it tells is about loaders and loggers that we do not use."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are arrays in memory
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # Lightning asks torch so
            yield
    finally:
        logger.setLevel(level)
