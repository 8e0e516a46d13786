"""Model contract: training data, closed-form and torch models, lookup by name.

*Training* uses a class with a frozen ``Config`` and either ``fit(data) -> arrays`` (closed form) or a torch module that
`recloop.training` trains. *Serving* uses the arrays and graphs of a bundle with numpy and onnxruntime only, so it does
not need a third-party model's package. This file does not import torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pydantic
import scipy.sparse as sp

from recloop.errors import UserError
from recloop.records import DAY, hash_unit_interval

MODELS: dict[str, str] = {
    "popular": "recloop.models.popular:Popular",
    "bought_before": "recloop.models.bought_before:BoughtBefore",
    "covisitation": "recloop.models.covisitation:CoVisitation",
    "buy_again": "recloop.models.buy_again:BuyAgain",
    "ease": "recloop.models.ease:EASE",
    "item_knn": "recloop.models.item_knn:ItemKNN",
    "mf": "recloop.models.mf:MF",
    "sasrec": "recloop.models.sasrec:SASRec",
    "gru4rec": "recloop.models.gru4rec:GRU4Rec",
    "neumf": "recloop.models.neumf:NeuMF",
    "two_tower": "recloop.models.two_tower:TwoTower",
}
"""Dotted path by built-in name; built-in and third-party models are loaded the same way."""

SOURCE_OF: dict[str, str] = {"popular": "popular", "bought_before": "history", "covisitation": "neighbours"}
"""Source by baseline; every network and ``mf`` feed ``model``, others a source of their own name."""
CLOSED_FORM_MODELS = frozenset({*SOURCE_OF, "buy_again", "ease", "item_knn", "mf"})
"""Built-in closed-form models: ``fit`` without torch."""


TRAINING_PACKAGES = ("torch", "lightning")
"""Packages of the extra ``train`` that modules of networks import."""


class ModelConfig(pydantic.BaseModel):
    """Base of a model's ``Config``: frozen; unknown options are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class ValidationQueries:
    """Validation queries: held-out moments, one per user.

    ``user_ix`` (V,), ``now`` (V,) int64 microseconds, ``as_of`` (V,) the seq just before the moment's first row. Query v
    owns the targets ``items[offsets[v]:offsets[v+1]]`` (item_ix, 0 for items outside the table).
    """

    user_ix: np.ndarray
    now: np.ndarray
    as_of: np.ndarray
    offsets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.user_ix)

    def sample(self, user_ids: Sequence[str], max_users: int) -> ValidationQueries:
        """Return the moments of ``max_users`` sampled users (`sample_indices`)."""
        return self if len(self) <= max_users else self.at(self.sample_indices(user_ids, max_users))

    def sample_indices(self, user_ids: Sequence[str], max_users: int) -> np.ndarray:
        """Ascending indices of the moments of ``max_users`` users.

        The users are those with the smallest hash("valid").
        """
        if len(self) <= max_users:
            return np.arange(len(self))
        hashes = np.array([hash_unit_interval("valid", user_ids[ix]) for ix in self.user_ix])
        return np.sort(np.argsort(hashes, kind="stable")[:max_users])

    def at(self, indices: np.ndarray) -> ValidationQueries:
        """Return the moments at these indices."""
        sizes = np.diff(self.offsets)[indices]
        rows = np.repeat(self.offsets[indices] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return ValidationQueries(
            self.user_ix[indices], self.now[indices], self.as_of[indices], offsets, self.items[rows]
        )


@dataclass(frozen=True)
class Negatives:
    """Refused items: R rows by (user, moment stamp, id bytes), with weights above 0."""

    user_ix: np.ndarray  # (R,) from 0
    items: np.ndarray  # (R,) item_ix, from 1
    stamps: np.ndarray  # (R,) int64 microseconds
    seqs: np.ndarray  # (R,) int64
    weights: np.ndarray  # (R,) float32

    def __len__(self) -> int:
        return len(self.user_ix)


def decay_at(stamps: np.ndarray, cut: int, half_life: float | None) -> np.ndarray:
    """(M,) weight of each stamp: 0.5^(age at the cut / half_life in days), or 1."""
    if half_life is None:
        return np.ones(len(stamps))
    age: np.ndarray = np.maximum(0, cut - stamps) / DAY
    weights: np.ndarray = 0.5 ** np.minimum(age / half_life, 1000.0)
    return weights


@dataclass(frozen=True)
class GuestBaskets:
    """Baskets without a user: M baskets with E rows of distinct items, by stamp.

    They count for popularity and for what is bought together. They have no user, so they are never queries.
    """

    offsets: np.ndarray  # (M+1,) int64 rows of each basket
    stamps: np.ndarray  # (M,) int64 microseconds
    items: np.ndarray  # (E,) int32 item_ix, from 1
    targets: np.ndarray  # (E,) bool
    counts: np.ndarray  # (N+1,) int64 targets of an item, as rows

    @property
    def row_basket(self) -> np.ndarray:
        """(E,) basket index of each row."""
        return np.repeat(np.arange(len(self.stamps), dtype=np.int64), np.diff(self.offsets))


@dataclass(frozen=True)
class TrainData:
    """Training inputs as flat arrays, one row per item and moment.

    Rows are sorted by (user, moment stamp, id bytes). ``targets`` marks the rows that are targets too; None means all.
    A moment without a target is only history.

    E rows, M moments, U users, N items. ``user_offsets`` (U+1,) counts moments, ``moment_offsets`` (M+1,) counts rows.
    ``user_ix`` counts from 0, ``item_ix`` from 1 (row 0 of every item array is padding). ``seq`` is the row's number in the
    log, the smallest one if a moment holds the item twice. ``old`` marks users that networks do not learn from.
    """

    item_ids: list[str]
    user_ids: list[str]
    user_offsets: np.ndarray  # (U+1,) int64
    moment_offsets: np.ndarray  # (M+1,) int64
    stamps: np.ndarray  # (M,) int64 microseconds
    items: np.ndarray  # (E,) int32
    seqs: np.ndarray  # (E,) int64
    weights: np.ndarray  # (E,) float32
    old: np.ndarray  # (U,) bool
    user_codes: np.ndarray  # (U, Cu) int32, columns as user_fields
    item_codes: np.ndarray  # (N+1, Ci) int32, columns as item_fields
    user_fields: list[tuple[str, int, int]]  # name, number of codes (0 = missing included), dim
    item_fields: list[tuple[str, int, int]]
    context_fields: list[tuple[str, int, int]]
    cut: int
    counts: np.ndarray  # (N+1,) int64, training targets of an item, as rows; those of guests included
    held: ValidationQueries | None = None
    negatives: Negatives | None = None
    targets: np.ndarray | None = None  # (E,) bool; None: every row is a target
    guests: GuestBaskets | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)  # fields and timezone for `encode.context_codes`
    history: TrainData | None = None  # source of states if it has later rows; None: these rows
    targeted: np.ndarray | None = None  # (M,) bool, moments that are targets of this run; None: `moments_with_past`

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def events(self) -> np.ndarray:
        """(N+1,) int64 training rows per item, including inputs."""
        rows = np.bincount(self.items, minlength=self.n_items + 1)
        return np.asarray(np.maximum(self.counts, rows))

    @property
    def target_rows(self) -> np.ndarray:
        """(E,) bool mask of rows that are targets."""
        return np.ones(len(self.items), dtype=bool) if self.targets is None else self.targets

    @property
    def has_target(self) -> np.ndarray:
        """(M,) bool mask of moments that contain a target."""
        if self.targets is None or not len(self.stamps):
            return np.ones(len(self.stamps), dtype=bool)
        return np.asarray(np.logical_or.reduceat(self.targets, self.moment_offsets[:-1]))

    @property
    def moment_user(self) -> np.ndarray:
        """(M,) user_ix of each moment."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.user_offsets))

    @property
    def row_moment(self) -> np.ndarray:
        """(E,) moment index of each row."""
        return np.repeat(np.arange(len(self.stamps), dtype=np.int64), np.diff(self.moment_offsets))

    def decay(self, half_life: float | None) -> np.ndarray:
        """(M,) weight of each moment.

        It is 0.5^(age at the cut / half_life in days), or 1 if half_life is None.
        """
        return decay_at(self.stamps, self.cut, half_life)

    def popularity(self, half_life: float | None) -> np.ndarray:
        """(N+1,) targets of each item, with those of guests, each weighted by `decay`."""
        if half_life is None:
            return self.counts
        weights = self.decay(half_life)[self.row_moment] * self.target_rows
        counts = np.bincount(self.items, weights=weights, minlength=self.n_items + 1)
        if self.guests is not None:
            guest_weights = decay_at(self.guests.stamps, self.cut, half_life)[self.guests.row_basket]
            weights = guest_weights * self.guests.targets
            counts += np.bincount(self.guests.items, weights=weights, minlength=self.n_items + 1)
        return counts

    def moments_with_past(self) -> np.ndarray:
        """(M,) bool mask of moments that a network can learn as targets.

        Such a moment contains a target and is not its user's first; its user is not in ``old``.
        """
        learnable: np.ndarray = ~self.old[self.moment_user]
        learnable[self.user_offsets[:-1][np.diff(self.user_offsets) > 0]] = False
        has_target: np.ndarray = learnable & self.has_target
        return has_target

    def target_share(self) -> np.ndarray:
        """(N+1,) float64: expected share of each item among an epoch's targets.

        The shares sum to 1, or to 0 without targets. A target moment counts once, spread evenly over its target items,
        because one of them is drawn (docs/definitions/sequence-models.md).
        """
        is_target = self.moments_with_past() if self.targeted is None else self.targeted
        sizes = np.bincount(self.row_moment, weights=self.target_rows, minlength=len(self.stamps))  # (M,) targets
        moment_share = np.where(is_target, 1.0 / np.maximum(1, sizes), 0.0)  # (M,)
        weights = moment_share[self.row_moment] * self.target_rows
        total = np.bincount(self.items, weights=weights, minlength=self.n_items + 1)
        share: np.ndarray = total / max(1.0, total.sum())
        return share

    def owned(self) -> np.ndarray:
        """(P,) int64 keys of the distinct training targets of all users.

        The keys user_ix * (N+1) + item_ix ascend.
        """
        is_target = self.target_rows
        user = self.moment_user[self.row_moment][is_target].astype(np.int64)
        pairs: np.ndarray = np.unique(user * (self.n_items + 1) + self.items[is_target])
        return pairs


def user_items(data: TrainData) -> sp.csr_array:
    """(U, N+1) float64: 1 for each item in the history of a user, inputs included."""
    users = data.moment_user[data.row_moment]
    pairs = sp.csr_array((np.ones(len(users)), (users, data.items)), shape=(data.n_users, data.n_items + 1))
    pairs.sum_duplicates()
    pairs.data[:] = 1
    return pairs


@runtime_checkable
class ClosedFormModel(Protocol):
    """Closed-form model without torch.

    ``source`` names the source that it feeds in the fusion: one of the four of every bundle, whose built-in model it
    replaces, or a name of its own, which it adds. ``kind`` says what ``fit`` returns:

    - ``neighbours``: the three ``neighbours.*`` arrays of a CSR matrix (N+1, N+1). A user's scores are the sum of the rows
      of the newest moments, by ``recent`` in its Config, or without ``recent`` of all items of the history.
    - ``vectors``: ``item_vectors`` (N+1, D) and ``user_vectors`` (U+1, D), with ``l2`` and ``unseen`` in its Config; users
      outside the table are folded in (`recloop.models.als`).
    - ``counts``: ``popular`` (N,) item_ix in order for the source ``popular``; nothing for ``history``, which uses the
      counts of the state.
    """

    kind: ClassVar[str]
    source: ClassVar[str]

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit and return the arrays for ``serve.safetensors``.

        Serving reads them by name.
        """
        ...


def model_class(name: str) -> Any:
    """Load the class of a built-in name or a dotted path ``package.module:Class``.

    Raises:
        UserError: the name, module or class is unknown, or torch is missing for a network.
    """
    path = MODELS.get(name, name)
    module, sep, attribute = path.partition(":")
    if not sep or not module or not attribute:
        raise _no_such_model(name, list(MODELS))
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name in TRAINING_PACKAGES:
            raise UserError("model.name", name, "the extra train (torch)", 'pip install "recloop[train]"') from None
        raise UserError("model.name", name, f"an importable module {module}", "pip install its package") from None
    except AttributeError:
        names = vars(importlib.import_module(module))
        raise _no_such_model(name, [member for member in names if isinstance(names[member], type)], module) from None


def check_model(name: str) -> None:
    """Check that ``model.name`` names a model before a run starts.

    It also works without torch: if a module cannot be imported, the class is looked up in its source text.

    Raises:
        UserError: the name is unknown (the error names the nearest ones), or the class does not fulfil the model contract.
    """
    if name in MODELS:
        return
    try:
        model = model_class(name)
    except UserError:
        module, _, attribute = name.partition(":")
        names = _top_level_names(module) if attribute else None
        if names is None:
            raise
        if attribute not in names:
            raise _no_such_model(name, names, module) from None
        return
    config = getattr(model, "Config", None)
    if not (isinstance(model, type) and isinstance(config, type) and issubclass(config, pydantic.BaseModel)):
        expected = "a model: a class with a Config (pydantic) and `fit`, or a torch module (docs/stability.md, Python)"
        raise UserError("model.name", name, expected, 'name = "sasrec"')


def _no_such_model(name: str, names: list[str], module: str = "") -> UserError:
    class_name = name.rpartition(":")[2] if module else name
    matches = difflib.get_close_matches(class_name, names, n=3, cutoff=0.5)
    paths = [f"{module}:{match}" if module else match for match in matches]
    nearest = f"; nearest: {', '.join(paths)}" if matches else ""
    expected = f"a class in {module}" if module else f"one of {', '.join(MODELS)} or package.module:Class"
    return UserError("model.name", name, expected + nearest, f'name = "{paths[0] if paths else "sasrec"}"')


def _top_level_names(module: str) -> list[str] | None:
    """Names that a module's source defines or imports.

    None with torch or without source.
    """
    try:
        if all(importlib.util.find_spec(package) is not None for package in TRAINING_PACKAGES):
            return None
    except ModuleNotFoundError:
        pass  # an import hook that blocks torch
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    names: list[str] = []
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def is_closed_form(name: str) -> bool:
    """True if a model is fitted in closed form (a class with ``fit``).

    Built-in networks are recognized by name, without importing torch.

    Raises:
        UserError: the model does not exist.
    """
    if name in MODELS:
        return name in CLOSED_FORM_MODELS
    return callable(getattr(model_class(name), "fit", None))


def load_model(name: str, options: Mapping[str, Any]) -> Any:
    """Create a model with its validated ``Config``.

    Raises:
        UserError: an option is unknown or its value is invalid.
    """
    cls = model_class(name)
    try:
        return cls(cls.Config(**options))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        option_names = ", ".join(cls.Config.model_fields)
        raise UserError(
            f"model.{key}",
            first["input"],
            f"{first['msg']} (known: {option_names})",
            f"correct model.{key} in recloop.toml",
        ) from None
