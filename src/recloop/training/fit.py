"""Fit and export a network in a run folder; torch is imported on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recloop.bundle import UserTable
from recloop.config import Config
from recloop.errors import UserError
from recloop.features.vocabulary import Vocabulary
from recloop.files import JsonTree, replace_json, without_none
from recloop.manifest import Training
from recloop.models.base import TrainData, load_model
from recloop.settings import dump
from recloop.training.network import OptionalMembers
from recloop.training.warm_start import WarmStartState

if TYPE_CHECKING:
    from recloop.training.validation import TrainingCallback

INPUTS = ("sequence", "pairs")
"""Examples of which a network learns: windows of a history, or pairs of user and item."""


@dataclass(frozen=True)
class Look:
    """Validation of the weights at the end of an epoch or after a tenth of the budget."""

    at: Literal["epoch", "tenth"]
    epoch: int
    step: int
    seconds: float
    ndcg: float | None

    def to_json(self) -> JsonTree:
        return {"NDCG@10" if name == "ndcg" else name: value for name, value in vars(self).items()}


@dataclass(frozen=True)
class FitMetrics:
    """Network section of a run's metrics.json.

    Attributes:
        ndcg: NDCG@10 of the kept weights on the validation moments; None without validation moments.
        epochs, step: Position of the kept weights. look_seconds: Time spent on validation, not on training.
        window_steps, window_seconds: Size of the pass over the last moments before the cut; None without such a pass.
    """

    loss: str
    ndcg: float | None
    epochs: int
    step: int
    steps_per_epoch: int
    stopped: str
    seconds: float
    look_seconds: float
    tokens_per_second: int
    looks: Sequence[Look]
    window_steps: int | None = None
    window_seconds: float | None = None

    def to_json(self) -> JsonTree:
        fields = {"NDCG@10" if name == "ndcg" else name: value for name, value in vars(self).items()}
        window = {name: fields.pop(name) for name in ("window_steps", "window_seconds")}
        return {**fields, "looks": [look.to_json() for look in self.looks], **without_none(**window)}


@dataclass(frozen=True)
class TrainedNetwork:
    """Trained network as arrays and bytes.

    Attributes:
        name, config: Name and full options of the model.
        arrays: ``item_vectors`` (N+1, D) float32, for serve.safetensors. graph: user.onnx, or rank.onnx if ``kind`` is
            ``rank``. item_graph: item.onnx of a network that encodes items without a row; empty for others.
        train_state: Weights and optimizer state for a warm start, for train.safetensors.
        epochs, steps: Whole epochs and steps until the kept weights. steps_per_epoch: Steps of a whole epoch.
        stopped: ``patience``, ``epochs`` or ``time_budget``. seconds: Time of training and export.
        metrics: Measurements of the run.
        users: Users of the array ``user_vectors``; None without it.
    """

    name: str
    config: JsonTree
    arrays: dict[str, np.ndarray]
    graph: bytes
    train_state: dict[str, np.ndarray]
    epochs: int
    steps: int
    steps_per_epoch: int
    stopped: str
    seconds: float
    metrics: FitMetrics
    item_graph: bytes = b""
    kind: str = "vectors"
    users: UserTable | None = None

    def training(self, previous: Training) -> Training:
        """Update the manifest's training section and keep all other fields."""
        return replace(
            previous,
            epochs=self.epochs,
            steps=self.steps,
            steps_per_epoch=self.steps_per_epoch,
            stopped=self.stopped,
        )

    @property
    def validation(self) -> float:
        """Return NDCG@10 on the validation moments."""
        return float("nan") if self.metrics.ndcg is None else self.metrics.ndcg


def has_sequences(data: TrainData) -> bool:
    """Return True if a user outside the ``old`` holdout has two moments."""
    return bool(((np.diff(data.user_offsets) > 1) & ~data.old).any())


def validate_network(
    name: str,
    options: Mapping[str, Any],
    data: TrainData,
    config: Config,
    run_folder: Path,
    budget_seconds: float,
    on_look: Callable[[Look], None],
) -> tuple[float, str]:
    """Train a network without exporting it.

    Returns:
        NDCG@10 of its best weights on validation, and what stopped the training.

    Args:
        on_look: Called after each validation; an exception that it raises ends the training.
    """
    from recloop.training.trainer import train

    run_folder.mkdir(parents=True, exist_ok=True)
    _, callback = train(load_model(name, options), data, config, run_folder, budget_seconds, True, on_look=on_look)
    return callback.kept.ndcg, callback.stopped


def fit_network(
    name: str,
    options: Mapping[str, Any],
    data: TrainData,
    config: Config,
    run_folder: Path,
    budget_seconds: float,
    quiet: bool = False,
    warm: WarmStartState | None = None,
) -> TrainedNetwork:
    """Train a network within a budget of training seconds and export it.

    ``run_folder`` receives config.toml, log.jsonl (one line per step), metrics.json and checkpoint/.

    Args:
        name: A built-in network or ``package.module:Class``.
        warm: Start from a parent's weights and learn only the chosen positions, with a share of the learning rate.

    Raises:
        UserError: an option or loss is unknown, torch is missing, the model is not a network, or no user has two moments.
    """
    start_time = time.monotonic()
    network = load_model(name, options)
    if getattr(network, "inputs", None) not in INPUTS:
        raise UserError("model.name", name, 'a network with inputs = "sequence" or "pairs"', 'name = "sasrec"')
    if not has_sequences(data):
        raise UserError("model.name", name, "a log with a user who has two moments", "recloop train popular")
    # torch takes seconds to import and is missing without the extra `train`.
    from recloop.training.export import item_vectors
    from recloop.training.trainer import train
    from recloop.training.validation import train_state

    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / "config.toml").write_text(dump(config), "utf-8")
    learner, callback = train(network, data, config, run_folder, budget_seconds, quiet, warm)
    best, members = callback.kept, OptionalMembers.from_network(network)
    arrays = {"item_vectors": item_vectors(network, learner.item_codes)}
    users = None
    if members.user_vectors is not None:
        arrays["user_vectors"] = members.user_vectors().numpy(force=True)
        users = UserTable(Vocabulary(data.user_ids), np.diff(data.moment_offsets[data.user_offsets]))
    graph, item_graph = _graphs(network, members, data, config.features.dim, warm)
    metrics = _metrics(learner.criterion.name, callback)
    replace_json(run_folder / "metrics.json", metrics.to_json())
    return TrainedNetwork(
        name=name,
        config=network.config.model_dump(mode="json"),
        arrays=arrays,
        users=users,
        graph=graph,
        kind=members.kind,
        item_graph=item_graph,
        train_state={key: tensor.numpy() for key, tensor in train_state(best).items()},
        epochs=best.epoch,
        steps=best.step,
        steps_per_epoch=callback.steps_per_epoch,
        stopped=callback.stopped,
        seconds=time.monotonic() - start_time,
        metrics=metrics,
    )


def _graphs(
    network: Any, members: OptionalMembers, data: TrainData, dim: int, warm: WarmStartState | None
) -> tuple[bytes, bytes]:
    """Return the graph of a network, and that of its cold items; empty without one."""
    from recloop.training.export import EarlierGraphs, item_graph, rank_graph, user_graph

    earlier = None if warm is None else EarlierGraphs(warm.graphs, warm.network_weights)
    n_context = len(data.user_fields) + len(data.context_fields)
    graph = (rank_graph if members.kind == "rank" else user_graph)(network, dim, n_context, earlier)
    has_item_graph = members.cold_item_vectors is not None and bool(data.item_fields)
    return graph, item_graph(network, len(data.item_fields), earlier) if has_item_graph else b""


def _metrics(loss: str, callback: TrainingCallback) -> FitMetrics:
    """Return the facts of a finished training."""
    best = callback.kept
    return FitMetrics(
        loss=loss,
        ndcg=best.ndcg if callback.examination else None,
        epochs=best.epoch,
        step=best.step,
        steps_per_epoch=callback.steps_per_epoch,
        stopped=callback.stopped,
        seconds=round(callback.seconds, 2),
        look_seconds=round(callback.looking, 2),
        tokens_per_second=round(callback.tokens / callback.seconds),
        looks=callback.looks,
    )
