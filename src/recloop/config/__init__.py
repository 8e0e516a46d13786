"""Typed tree of recloop.toml: every key with its type, bounds and default.

`recloop.settings` fills the tree. It imports no torch. The docstring below a key is its description in
docs/reference/config.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import pydantic

from recloop.config.catalog import Catalog
from recloop.config.data import Cell, Columns, Data, Fallback
from recloop.config.durations import seconds
from recloop.config.release import ExperimentPlan, Gates, Release
from recloop.config.section import FILE, Section
from recloop.config.serve import Disk, Limits, Serve
from recloop.config.store_address import without_password
from recloop.config.training import Baselines, Model, Ranker, Train
from recloop.errors import UserError

__all__ = [
    "FILE",
    "LEAVE_ONE_OUT",
    "Baselines",
    "Catalog",
    "Cell",
    "Columns",
    "Config",
    "Data",
    "Disk",
    "ExperimentPlan",
    "Fallback",
    "Gates",
    "Limits",
    "Model",
    "Ranker",
    "Release",
    "Serve",
    "Train",
    "seconds",
]

HEAVIEST = 1000  # largest weight in [events]


class Events(Section):
    """Meaning of events: types or conditions.

    The first match decides, in the order ``weights``, ``neutral``, ``negative``, ``positive``.
    """

    neutral: tuple[str, ...] = ("impression",)
    """Types or conditions of rows that are kept but are neither target nor history."""
    positive: tuple[str, ...] = ("*",)
    """Types or conditions of rows that a model learns to predict."""
    negative: tuple[str, ...] = ("dislike", "hide")
    """Types or conditions that remove an item from the user's lists until a later positive event."""
    weights: dict[str, float] = {}
    """Weight of a type or condition: above 0 positive, below 0 negative, 0 neutral; first match decides."""
    history: tuple[str, ...] = ()
    """Types or conditions of rows that are model input and not targets."""
    undo: dict[str, str] = {"quantity < 0": "*"}
    """Type or condition of a return = the event type that it undoes; `*`: the heaviest target."""

    @pydantic.field_validator("undo", mode="before")
    @classmethod
    def _undo(cls, undo: Any) -> Any:
        """Check ``undo``: a type or a condition = the type that it undoes.

        A bundle's spec keeps pairs, as for ``weights``.
        """
        rules = dict(undo) if isinstance(undo, list | tuple) else undo
        for text, pair in rules.items() if isinstance(rules, Mapping) else ():
            if not isinstance(pair, str) or not pair:
                raise UserError(
                    f"events.undo.{text}", pair, 'an event type, or "*"', f'undo = {{ "{text}" = "*" }} in {FILE}'
                )
        return rules

    @pydantic.field_validator("weights", mode="before")
    @classmethod
    def _checked(cls, weights: Any) -> Any:
        """Check that all weights are numbers within the bounds.

        A bundle's spec keeps the rules as pairs: their order decides, and sorted JSON would lose it.
        """
        rules = dict(weights) if isinstance(weights, list | tuple) else weights
        for text, weight in rules.items() if isinstance(rules, Mapping) else ():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= HEAVIEST:
                expected = f"a number from -{HEAVIEST} to {HEAVIEST}"
                raise UserError(f"events.weights.{text}", weight, expected, f'weights = {{ "{text}" = 1 }} in {FILE}')
        return rules


class Burst(Section):
    events: int = pydantic.Field(10, ge=2)
    """Number of events of one user within the window that marks a burst."""
    seconds: float = pydantic.Field(1.0, gt=0)
    """Length of the window in seconds."""


class Clean(Section):
    duplicates: Literal["exact", "off"] = "exact"
    """Removal of rows that repeat an earlier row exactly."""
    burst: Burst | Literal["off"] = Burst()
    """Rule that removes rows of a user who acts faster than a person can; `"off"` disables it."""
    keep: str = "quantity IS NULL OR quantity <> 0"
    """Condition that a row must meet to be kept; empty: every row."""
    exclude_items: tuple[str, ...] = ()
    """Ids that are not products, such as postage; their rows are removed."""
    future: str = "5m"
    """Largest lead of a timestamp over its arrival before the row is quarantined; `"off"` disables it."""
    max_removed: float = pydantic.Field(0.05, ge=0, le=1)
    """Largest share of rows that one cleaning rule may remove before the run stops."""
    max_rejected: float = pydantic.Field(0.05, ge=0, le=1)
    """Largest share of unreadable rows before the run stops."""

    @pydantic.field_validator("future")
    @classmethod
    def _time(cls, text: str) -> str:
        if text != "off":
            seconds("clean.future", text)
        return text

    @property
    def future_seconds(self) -> float | None:
        """Largest lead of a stamp over its arrival; None: the rule is off."""
        return None if self.future == "off" else seconds("clean.future", self.future)


LEAVE_ONE_OUT: Final = "leave-one-out"
"""Protocol with one target per user: its last positive."""


class Split(Section):
    protocol: Literal["temporal", "leave-one-out"] = "temporal"
    """Protocol that splits the log into train, validation and test."""
    quantile: float = pydantic.Field(0.9, gt=0, lt=1)
    """Share of the events that lies before the temporal cut."""
    targets: Literal["next", "successive", "last"] = "successive"
    """Events after the cut that are predicted: each user's next one, every successive one, or the last."""
    ties: Literal["moment", "row"] = "moment"
    """Treatment of equal timestamps: they form one moment, or the order of rows counts."""
    k_core: int = pydantic.Field(1, ge=1)
    """Users and items with fewer events than this are left out of the split."""
    validation_users: int = pydantic.Field(1024, ge=0)
    """Maximum number of users for the choice of half-lives, epochs and weights; 0: no validation."""
    validation_rows: Literal["all", "sampled"] = "all"
    """Under `leave-one-out`, validation holds the row before the target of every user, or that of `validation_users` users alone."""
    filter_seen: bool = False
    """Leave items of the user's history out of lists."""


class Field(Section):
    """One feature of an item or a user; ``source`` is written ``from`` in the file."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    kind: Literal["category", "categories", "number", "text", "vector"] = "category"
    """Encoding: a vocabulary (`category`, `categories`), quantile buckets (`number`) or nearest clusters (`text`, `vector`)."""
    separator: str = ""
    """Text between two `categories`, or numbers of a `vector`, in a text; empty: a list, or the text of one."""
    source: str = pydantic.Field("", alias="from")
    """Name of the attribute in the catalog or user file; empty: the name of the feature."""
    dim: int = pydantic.Field(16, ge=1)
    """Size of the embedding."""


class Features(Section):
    dim: int = pydantic.Field(64, ge=1)
    """Size of item and user vectors."""
    max_history: int = pydantic.Field(200, ge=1)
    """Newest items of a user's history that a sequence model reads, in whole moments."""
    context: tuple[Literal["hour", "weekday", "days_since_last"], ...] = ("hour", "weekday", "days_since_last")
    """Features of the request time in `data.timezone`; `days_since_last`: since the last moment."""
    item: dict[str, Field] = {}
    """Features of items, one table each."""
    user: dict[str, Field] = {}
    """Features of users, one table each."""


class Placement(Section):
    list: Literal["for_you", "again", "popular", "similar", "latest"] = "for_you"
    """Kind of list that the placement shows; `again`: items that the user had, the most due first."""
    weights: Literal["auto"] | dict[str, float] = "auto"
    """Weight of each source in the fusion; `auto` chooses weights on validation."""
    filter: str = ""
    """Condition over item attributes that every listed item must meet; empty: none."""
    filter_seen: Literal["auto"] | bool = "auto"
    """Leave items that the user has taken out of the list; `auto`: as `split.filter_seen`."""
    min_new: float = pydantic.Field(0, ge=0, le=1)
    """Smallest share of a `for_you` list that is new to the user; the best new items replace the lowest seen ones."""
    cold_share: float = pydantic.Field(0, ge=0, le=0.5)
    """Share of a `for_you` list, rounded down, for catalog items without events before the training; they end the list."""
    cold_own: int = pydantic.Field(1, ge=0, le=100)
    """Largest number of slots that end a `for_you` list, for items that the user took twice after the training."""
    n: int = pydantic.Field(10, ge=1, le=1000)
    """Length of the list when a request names none."""


class Evaluate(Section):
    k: tuple[Annotated[int, pydantic.Field(ge=1, le=1000)], ...] = pydantic.Field((10,), min_length=1)
    """Cut-offs of the metrics."""
    baselines: tuple[Literal["popular", "bought_before", "covisitation"], ...] = (
        "popular",
        "bought_before",
        "covisitation",
    )
    """Baselines in the evaluation table."""
    candidates: str = ""
    """Parquet file of `user_id` and `item_id`: each target of a leave-one-out test is ranked among its user's items; empty: all."""


class Stores(Section):
    log: str = "sqlite:///store/log.db"
    """Address of the event log; `postgresql://` needs the extra `postgres`."""
    decisions: str = "sqlite:///store/decisions.db"
    """Address of the decision log."""
    control: str = "sqlite:///store/control.db"
    """Address of the release history; `postgresql://` needs the extra `postgres`."""

    @pydantic.field_serializer("log", "decisions", "control")
    def _shown(self, address: str) -> str:
        """Write an address without its password into files of runs and bundles."""
        return without_password(address)


class Update(Section):
    replay_ratio: float = pydantic.Field(1.0, ge=0, le=100)
    """Old training positions per new position in an update."""
    mode: Literal["warm", "full"] = "warm"
    """Initial weights of an update: those of the live bundle (`warm`) or random ones (`full`)."""
    refit_share: float = pydantic.Field(0.05, ge=0, le=1)
    """Share of new rows from which an update fits EASE, ItemKNN and MF again; 0: always."""
    input_check: bool = True
    """Stop the update if the live bundle does unusually badly on the new rows."""


class Retention(Section):
    """Retention periods; `recloop update` and `recloop gc` remove what is older.

    Ages are measured from the newest row.
    """

    bundles: int = pydantic.Field(5, ge=1)
    """Number of newest bundles to keep, and of bundles before the live one."""
    runs: int = pydantic.Field(20, ge=1)
    """Number of finished training runs to keep, the newest ones."""
    decisions: str = "30d"
    """Age after which decisions are removed."""
    log: str = "8d"
    """Age after which rows of the event log that `data/` holds are removed."""
    backups: str = "90d"
    """Age at which you delete your backups; `recloop forget` prints the date of the last one."""

    rejected: str = "30d"
    """Age after which rejected rows of requests are removed, from today."""
    rejected_bytes: int = pydantic.Field(64 * 2**20, ge=0)
    """Largest size of the rejected rows; above it the oldest are dropped and counted."""

    @property
    def decision_seconds(self) -> float:
        return seconds("retention.decisions", self.decisions)

    @property
    def rejected_seconds(self) -> float:
        return seconds("retention.rejected", self.rejected)

    @property
    def log_seconds(self) -> float:
        return seconds("retention.log", self.log)


class Config(Section):
    """The whole file."""

    data: Data = Data()
    """Input files and their columns."""
    events: Events = Events()
    """Meaning of events: types or conditions."""
    clean: Clean = Clean()
    """Cleaning rules."""
    split: Split = Split()
    """Split into train, validation and test."""
    features: Features = Features()
    """Features of items, users and requests."""
    model: Model = Model()
    """Model to train."""
    baselines: Baselines = Baselines()
    """Counting models."""
    ranker: Ranker = Ranker()
    """Second stage that orders the recalled items."""
    train: Train = Train()
    """Training of networks."""
    placement: dict[str, Placement] = {"home": Placement()}
    """Placements by name; `home` always exists."""
    catalog: Catalog = Catalog()
    """Attributes of items with a meaning of their own."""
    evaluate: Evaluate = Evaluate()
    """Offline evaluation."""
    serve: Serve = Serve()
    """HTTP service."""
    stores: Stores = Stores()
    """Addresses of the stores."""
    release: Release = Release()
    """Releases, experiments and gates."""
    update: Update = Update()
    """Retraining."""
    retention: Retention = Retention()
    """Retention periods; ages are measured from the newest row."""

    @pydantic.field_validator("placement")
    @classmethod
    def _with_home(cls, placements: dict[str, Placement]) -> dict[str, Placement]:
        """Add ``home``, the placement of requests without one."""
        return placements if "home" in placements else {"home": Placement(), **placements}
