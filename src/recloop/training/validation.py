"""Validation during training: NDCG@10, best weights, log, early stopping."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from recloop.errors import UserError
from recloop.evaluation import metrics
from recloop.files import replacing
from recloop.models.base import TrainData, ValidationQueries
from recloop.training.batches import SequenceDataset, history_before
from recloop.training.fit import Look
from recloop.training.network import OptionalMembers
from recloop.training.schedule import cosine_rate, share_done
from recloop.training.weight_average import WeightAverage

LIST_LENGTH = 10
N_TENTHS = 10
CHUNK_QUERIES = 128  # validation queries scored per pass
MAX_USERS = 1024
"""Maximum users of a validation, those with the smallest hash("valid")."""
MAX_LOOK_SHARE = 0.1
"""Validations at tenths of the budget are skipped above this share of the training seconds."""

Stopped = Literal["patience", "epochs", "time_budget"]


class ValidationSet:
    """NDCG@10 on the validation moments: full ranking, mean over `MAX_USERS` users."""

    def __init__(self, data: TrainData, validation: ValidationQueries, history: int, filter_seen: bool) -> None:
        validation = validation.sample(data.user_ids, MAX_USERS)
        data = history_before(data.history or data, validation)
        has_history = np.diff(data.user_offsets)[validation.user_ix] > 0  # a network cannot score an empty history
        self.users = validation.user_ix[has_history]
        sizes = np.diff(validation.offsets)
        self.targets = validation.items[np.repeat(has_history, sizes)]
        self.offsets = np.concatenate([[0], np.cumsum(sizes[has_history])])
        self.queries = SequenceDataset(data, history).queries(self.users, validation.now[has_history])
        self.seen = self._seen(data) if filter_seen else None

    def _seen(self, data: TrainData) -> tuple[np.ndarray, np.ndarray]:
        """Return (query, item_ix) of all items in the users' histories."""
        rows = data.moment_offsets[data.user_offsets]
        low, high = rows[self.users], rows[self.users + 1]
        query = np.repeat(np.arange(len(self.users)), high - low)
        offset = np.arange(len(query)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        return query, data.items[low[query] + offset]

    def __len__(self) -> int:
        return len(self.users)

    @torch.no_grad()
    def score(self, learner: Any) -> float:
        """Return the current weights' NDCG@10; mode and random state stay unchanged."""
        training = learner.training
        learner.eval()
        table = learner.vectors()  # (N+1, D)
        lists = [self._top(learner, table, slice(i, i + CHUNK_QUERIES)) for i in range(0, len(self), CHUNK_QUERIES)]
        learner.train(training)
        return float(metrics.ranking(np.concatenate(lists), self.targets, self.offsets, LIST_LENGTH)["NDCG"].mean())

    def _top(self, learner: Any, table: Tensor, span: slice) -> np.ndarray:
        items, moments, mask, context = (tensor[span].to(table.device) for tensor in self.queries)
        users = learner.network.forward_user(table[items], moments, mask, context)  # (b, D)
        members = OptionalMembers.from_network(learner.network)
        if members.user_vectors is not None:
            known = members.user_vectors()[torch.from_numpy(self.users[span] + 1).to(table.device)]
            users = torch.where((known != 0).any(1, keepdim=True), known, users)
        score_items = members.score_items
        scores = users @ table.T if score_items is None else score_items(users, table)  # (b, N+1)
        scores[:, 0] = -torch.inf
        if self.seen is not None:
            query, item = self.seen
            in_span = (query >= span.start) & (query < span.stop)
            scores[query[in_span] - span.start, item[in_span]] = -torch.inf
        top = scores.topk(min(LIST_LENGTH, scores.shape[1] - 1))
        return torch.where(top.values > -torch.inf, top.indices, 0).cpu().numpy()


@dataclass
class BestWeights:
    """Best weights of one kind of validation, with the optimizer's state."""

    ndcg: float = -1.0
    epoch: int = 0  # whole epochs
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


class TrainingCallback(lightning.Callback):
    """Lightning callback: validate, keep the best weights, write the log, stop early.

    After each epoch it validates for patience; a run that ends before its budget keeps the best of these weights. At each
    tenth of the budget it validates for runs that the budget stops. The budget counts training seconds from the first
    batch on, excluding validation. A run with as many seconds of validation as its budget ends with the epoch.
    """

    def __init__(
        self,
        examination: ValidationSet | None,
        folder: Path,
        patience: int,
        budget: float,
        bar: bool,
        decay_rate: bool = False,
        ema: float = 0.0,
        on_look: Callable[[Look], None] | None = None,
    ) -> None:
        self.examination = examination
        self.patience = patience
        self.budget = budget
        self.decay_rate = decay_rate
        self.ema = ema
        self.on_look = on_look
        self.average: WeightAverage | None = None
        self.started = time.monotonic()
        self.looking = 0.0
        """Seconds spent on validation."""
        self.steps_per_epoch = self.max_steps = 0
        self.log_file = (folder / "log.jsonl").open("w", encoding="utf-8")
        self.checkpoint = folder / "checkpoint"
        self.by_epoch, self.by_time = BestWeights(), BestWeights()
        self.written_step = 0
        self.tenth = 1
        self.last_look = -1
        self.stopped: Stopped = "epochs"
        self.looks: list[Look] = []
        self.tokens = 0
        self.bar: tqdm[Any] | None = tqdm(file=sys.stderr, unit="step", leave=False, disable=None) if bar else None

    @property
    def seconds(self) -> float:
        """Return the training seconds so far."""
        return time.monotonic() - self.started - self.looking

    @property
    def kept(self) -> BestWeights:
        """Return the weights that this run keeps."""
        return self.by_time if self.stopped == "time_budget" else self.by_epoch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = time.monotonic()
        self.steps_per_epoch = int(trainer.num_training_batches)
        self.max_steps = self.steps_per_epoch * int(trainer.max_epochs)
        if self.ema:
            self.average = WeightAverage(pl_module.network, self.ema)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        if self.bar is not None:
            self.bar.reset(total=trainer.num_training_batches)
            self.bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if self.decay_rate:
            share = share_done(trainer.global_step, self.max_steps, self.seconds, self.budget)
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = pl_module.lr * cosine_rate(share)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        loss = float(outputs["loss"])
        if not np.isfinite(loss):
            raise self.diverged(trainer.global_step, loss, pl_module.lr)
        if self.average is not None:
            self.average.update()
        self.tokens += batch.n_tokens
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
        if self.seconds >= self.budget * self.tenth / N_TENTHS:
            self.tenth = int(self.seconds / self.budget * N_TENTHS) + 1
            if self.looking <= MAX_LOOK_SHARE * self.seconds:
                self._look(trainer, pl_module, "tenth")
        if self.seconds >= self.budget:
            self.stopped = "time_budget"
            trainer.should_stop = True

    def diverged(self, step: int, loss: float, rate: float) -> UserError:
        """Return the error of a loss that is not finite.

        The checkpoint keeps the best weights before it.
        """
        kept = f"; the weights of step {self.written_step} are in {self.checkpoint}" if self.written_step else ""
        expected = f"a rate at which the loss stays finite; it is {loss} at step {step}{kept}"
        return UserError("train.lr", rate, expected, f"--set train.lr={rate / 10:g}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.stopped == "time_budget" and self.last_batch_cut(trainer):
            return
        self._look(trainer, pl_module, "epoch")
        if self.looking >= self.budget:
            self.stopped = "time_budget"
            trainer.should_stop = True
        elif self.examination and trainer.current_epoch + 1 - self.by_epoch.epoch >= self.patience:
            self.stopped = "patience"
            trainer.should_stop = True

    @staticmethod
    def last_batch_cut(trainer: Any) -> bool:
        """Return True if the epoch ended before its last step."""
        return int(trainer.fit_loop.epoch_loop.batch_progress.current.completed) < int(trainer.num_training_batches)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.stopped == "time_budget" and self.last_look < trainer.global_step:
            self._look(trainer, pl_module, "tenth")

    def _look(self, trainer: Any, learner: Any, at: Literal["epoch", "tenth"]) -> None:
        """Validate the weights; without validation moments the newest ones are the best."""
        self.last_look = trainer.global_step
        self.log_file.flush()
        seconds = self.seconds
        begin = time.monotonic()
        step = int(trainer.global_step)
        with nullcontext() if self.average is None else self.average.applied():
            ndcg = self.examination.score(learner) if self.examination else None
            self.looks.append(Look(at, trainer.current_epoch + 1, step, round(seconds, 2), ndcg))
            self.keep(learner, trainer.optimizers[0], ndcg, step // self.steps_per_epoch, step, at)
        self.looking += time.monotonic() - begin
        if self.on_look is not None:
            self.on_look(self.looks[-1])

    def keep(
        self,
        learner: Any,
        optimizer: torch.optim.Optimizer,
        ndcg: float | None,
        epoch: int,
        step: int,
        at: Literal["epoch", "tenth"] = "epoch",
    ) -> None:
        """Copy the current weights if they are the best so far."""
        if not all(torch.isfinite(parameter).all() for parameter in learner.network.parameters()):
            return  # the loss of the next step is not finite and ends the run
        for best in (self.by_time, self.by_epoch)[: 2 if at == "epoch" else 1]:
            if ndcg is None or ndcg > best.ndcg:
                best.ndcg, best.epoch, best.step = ndcg or 0.0, epoch, step
                best.weights = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
                best.optimizer = moments_of(optimizer, learner.network)
                self._write(best)

    def _write(self, best: BestWeights) -> None:
        """Write the kept weights and the optimizer's state atomically, as safetensors."""
        self.written_step = best.step
        with replacing(self.checkpoint / "train.safetensors") as file:
            save_file(train_state(best), file)

    def _best(self) -> str:
        return f", validation NDCG@10 {self.by_time.ndcg:.4f}" if self.by_time.ndcg >= 0 else ""

    def close(self) -> None:
        """Close the log and the progress bar."""
        self.log_file.close()
        if self.bar is not None:
            self.bar.close()


def train_state(best: BestWeights) -> dict[str, Tensor]:
    """Return the tensors of a warm start.

    Their names are ``network.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME`` and ``step.NAME``.
    """
    named = {f"network.{name}": tensor for name, tensor in best.weights.items()} | best.optimizer
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def moments_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Copy AdamW's state by parameter name."""
    copies = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            copies[f"{key}.{name}"] = torch.as_tensor(value).clone()
    return copies
