"""recloop.toml as one frozen tree: every key with its type, bounds and default.

The tree reads like the file; how it is filled is `recloop.settings`. It imports no torch.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from recloop.errors import UserError
from recloop.json_object import JsonTree

FILE = "recloop.toml"
HEAVIEST = 1000  # of the weights of [events]


class Section(pydantic.BaseModel):
    """A table of the file: frozen, and unknown keys are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Columns(Section):
    """Ours = theirs; an empty name: the file has no such column."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    event_type: str = ""
    value: str = ""
    quantity: str = ""
    group_id: str = ""
    event_id: str = ""
    name: str = ""


class Data(Section):
    events: str = "log.csv"
    items: str = ""
    users: str = ""
    encoding: Literal["auto", "utf-8", "gb18030", "cp1252", "utf-16"] = "auto"
    time_unit: Literal["auto", "s", "ms", "us", "iso"] = "auto"
    timezone: str = "UTC"
    columns: Columns = Columns()

    @pydantic.field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise UserError("data.timezone", name, "a zone such as UTC or Europe/Berlin", "set it") from None
        return name


class Events(Section):
    """What an event means: types or conditions, asked in the order weights, neutral, negative, positive."""

    neutral: tuple[str, ...] = ("impression",)
    positive: tuple[str, ...] = ("*",)
    negative: tuple[str, ...] = ("dislike", "hide")
    weights: dict[str, float] = {}  # above 0 positive, below 0 negative, 0 neutral; in the order of the file
    history: tuple[str, ...] = ()  # input and not target
    undo: dict[str, str] = {
        "quantity < 0": "*"
    }  # takes back the newest earlier event of that type; * the heaviest target

    @pydantic.field_validator("undo", mode="before")
    @classmethod
    def _undo(cls, undo: Any) -> Any:
        """A type or a condition = the type that it takes back. A bundle's spec keeps pairs, as of ``weights``."""
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
        """Numbers only. A bundle's spec keeps the rules as pairs: their order decides, and sorted JSON would lose it."""
        rules = dict(weights) if isinstance(weights, list | tuple) else weights
        for text, weight in rules.items() if isinstance(rules, Mapping) else ():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= HEAVIEST:
                expected = f"a number from -{HEAVIEST} to {HEAVIEST}"
                raise UserError(f"events.weights.{text}", weight, expected, f'weights = {{ "{text}" = 1 }} in {FILE}')
        return rules


class Burst(Section):
    events: int = pydantic.Field(10, ge=2)
    seconds: float = pydantic.Field(1.0, gt=0)


class Clean(Section):
    duplicates: Literal["exact", "off"] = "exact"
    burst: Burst | Literal["off"] = Burst()
    keep: str = "quantity IS NULL OR quantity <> 0"
    future: str = "5m"  # a stamp further ahead of its arrival, or before 1970, is a wrong clock's; "off"
    max_removed: float = pydantic.Field(0.05, ge=0, le=1)
    max_rejected: float = pydantic.Field(0.05, ge=0, le=1)

    @pydantic.field_validator("future")
    @classmethod
    def _time(cls, text: str) -> str:
        if text != "off":
            seconds("clean.future", text)
        return text

    @property
    def future_seconds(self) -> float | None:
        """How far ahead of its arrival a stamp may lie; None: the rule is off."""
        return None if self.future == "off" else seconds("clean.future", self.future)


class Split(Section):
    protocol: Literal["temporal", "leave-one-out", "sampled-99"] = "temporal"
    quantile: float = pydantic.Field(0.9, gt=0, lt=1)
    targets: Literal["next", "successive", "last"] = "successive"
    ties: Literal["moment", "row"] = "moment"
    k_core: int = pydantic.Field(1, ge=1)
    validation_users: int = pydantic.Field(1024, ge=0)
    filter_seen: bool = False


class Field(Section):
    """One feature of an item or a user; ``source`` is written ``from`` in the file."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    kind: Literal["category", "number", "categories", "vector"] = "category"
    source: str = pydantic.Field("", alias="from")
    dim: int = pydantic.Field(16, ge=1)


class Features(Section):
    dim: int = pydantic.Field(64, ge=1)
    history: int = pydantic.Field(200, ge=1)
    request: tuple[Literal["hour", "weekday", "gap"], ...] = ("hour", "weekday", "gap")
    item: dict[str, Field] = {}
    user: dict[str, Field] = {}


class Model(pydantic.BaseModel):
    """A shelf name or ``package.module:Class``; other keys are the model's own Config and are checked by it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow")
    name: str = "sasrec"

    @property
    def options(self) -> JsonTree:
        return dict(self.model_extra or {})


class Counts(Section):
    half_life: Literal["auto", "none"] | Annotated[float, pydantic.Field(gt=0)] = "auto"  # days


class Train(Section):
    loss: Literal["auto", "ce", "ss_refined", "ss", "ss_logq", "gbce", "bce", "bpr"] = "auto"
    negatives: int = pydantic.Field(256, ge=1)
    windows: Literal["all", "last"] = "all"
    lr: float = pydantic.Field(1e-3, gt=0)
    epochs: int = pydantic.Field(100, ge=1)
    patience: int = pydantic.Field(3, ge=1)
    refit: bool = False
    budget: str = "10m"
    seed: int = pydantic.Field(0, ge=0)

    @pydantic.field_validator("budget")
    @classmethod
    def _readable(cls, budget: str) -> str:
        seconds("train.budget", budget)
        return budget

    @property
    def budget_seconds(self) -> float:
        return seconds("train.budget", self.budget)


class Placement(Section):
    list: Literal["for_you", "popular", "similar", "latest", "together", "again", "trending"] = "for_you"
    mix: Literal["auto"] | dict[Literal["model", "history", "neighbours", "popular"], float] = "auto"
    filter: str = ""
    k: int = pydantic.Field(10, ge=1, le=1000)


class Evaluate(Section):
    k: tuple[Annotated[int, pydantic.Field(ge=1, le=1000)], ...] = pydantic.Field((10,), min_length=1)
    baselines: tuple[Literal["popular", "bought_before", "covisitation"], ...] = (
        "popular",
        "bought_before",
        "covisitation",
    )


HOST_NAME = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


class Serve(Section):
    host: str = "127.0.0.1"
    port: int = pydantic.Field(8088, ge=0, le=65535)
    hosts: tuple[str, ...] = ()
    segment: str = ""
    keys: str = ""  # [later]
    replay: bool = False

    @pydantic.field_validator("hosts")
    @classmethod
    def _host_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for name in hosts:
            if not HOST_NAME.fullmatch(name):
                raise ValueError(f"host names without scheme and port, such as shop.example; {name!r} is not one")
        return hosts


class Stores(Section):
    log: str = "sqlite:///store/log.db"
    decisions: str = "sqlite:///store/decisions.db"
    control: str = "sqlite:///store/control.db"


class Gates(Section):
    margin: float = pydantic.Field(0.03, ge=0)
    min_users: int = pydantic.Field(20, ge=1)  # over fewer users or queries `new` waits for more rows
    min_queries: int = pydantic.Field(30, ge=1)
    slice_drop: float = pydantic.Field(0.1, ge=0)
    parity: int = pydantic.Field(0, ge=0)
    latency: float = pydantic.Field(1.2, gt=0)
    cold_coverage_drop: float = pydantic.Field(0.05, ge=0)


class ExperimentPlan(Section):
    """The plan of the next experiment; the release row that starts it keeps it."""

    metric: Literal["hit_rate", "clicks_per_request", "positives_from_lists", "value_from_lists"] = "hit_rate"
    users: int = pydantic.Field(4000, ge=1)  # of both arms, at the last look
    looks: int = pydantic.Field(4, ge=1, le=50)
    margin: float = pydantic.Field(0.01, gt=0, lt=1)  # largest relative loss that counts as no harm
    alpha: float = pydantic.Field(0.05, gt=0, lt=0.5)


class Release(Section):
    shadow: float = pydantic.Field(0.01, ge=0, le=1)
    experiment: float = pydantic.Field(0.5, ge=0, le=1)
    plan: ExperimentPlan = ExperimentPlan()
    refresh: Literal["gate", "shadow", "manual"] = "gate"  # of a child with live's recipe that passed its gate
    auto: bool = False  # [later]
    gates: Gates = Gates()


class Update(Section):
    replay: float = pydantic.Field(1.0, ge=0, le=100)  # old positions per new position
    mode: Literal["warm", "full"] = "warm"
    input_check: bool = True  # false: what came is learned from whatever live's loss on it says


class Retention(Section):
    """What is kept; `recloop update` and `recloop gc` remove the rest. Ages are measured from the newest row."""

    bundles: int = pydantic.Field(5, ge=1)  # the newest ones, and as many before the live one for rollback
    runs: int = pydantic.Field(20, ge=1)  # the newest finished ones
    decisions: str = "30d"
    log: str = "8d"  # rows of log.db that data/ holds

    @property
    def decision_seconds(self) -> float:
        return seconds("retention.decisions", self.decisions)

    @property
    def log_seconds(self) -> float:
        return seconds("retention.log", self.log)


class Config(Section):
    """The whole file."""

    data: Data = Data()
    events: Events = Events()
    clean: Clean = Clean()
    split: Split = Split()
    features: Features = Features()
    model: Model = Model()
    counts: Counts = Counts()
    train: Train = Train()
    placement: dict[str, Placement] = {"home": Placement()}
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()
    stores: Stores = Stores()
    release: Release = Release()
    update: Update = Update()
    retention: Retention = Retention()

    @pydantic.field_validator("placement")
    @classmethod
    def _with_home(cls, placements: dict[str, Placement]) -> dict[str, Placement]:
        """A request that names no placement asks for ``home``: it is always there."""
        return placements if "home" in placements else {"home": Placement(), **placements}


LATER: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("split.protocol", ("temporal", "leave-one-out")),
    ("serve.keys", ("",)),
    ("stores.log", (Stores().log,)),
    ("stores.decisions", (Stores().decisions,)),
    ("stores.control", (Stores().control,)),
    ("release.auto", (False,)),
)
"""Keys that are read from the start and must hold one of these values until the chapter that uses them is built."""


def seconds(key: str, text: str) -> float:
    """``90s``, ``10m``, ``1h``, ``2d`` in seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if not found or float(found[1]) == 0:
        raise UserError(key, text, "a time such as 90s, 10m or 1h", f'--set {key}="10m"')
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
