"""recloop.toml as one frozen tree: every key typed, defaulted and refused when unknown, with the nearest known one.

Three places set a key, the later beats the earlier: ``recloop.toml``, the environment (``RECLOOP_SERVE__PORT=9000``),
the command line (``--set serve.port=9000``). The tree reads like the file; it imports no torch.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from recloop.errors import UserError

FILE = "recloop.toml"
HEAVIEST = 1000  # of the weights of [events]


class Section(pydantic.BaseModel):
    """A table of the file: frozen, and unknown keys are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


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


class Events(Section):
    """What an event means: types or conditions, asked in the order weights, neutral, negative, positive."""

    neutral: tuple[str, ...] = ("impression",)
    positive: tuple[str, ...] = ("*",)
    negative: tuple[str, ...] = ("dislike", "hide")
    weights: dict[str, float] = {}  # above 0 positive, below 0 negative, 0 neutral; in the order of the file

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
    keep: str = "quantity IS NULL OR quantity > 0"
    max_removed: float = pydantic.Field(0.05, ge=0, le=1)


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
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Counts(Section):
    half_life: Literal["auto", "none"] | float = "auto"  # days


class Train(Section):
    loss: Literal["auto", "ce", "ss_refined", "ss", "ss_logq", "gbce", "bce", "bpr"] = "auto"
    negatives: int = pydantic.Field(256, ge=1)
    windows: Literal["all", "last"] = "all"
    lr: float = pydantic.Field(1e-3, gt=0)
    epochs: int = pydantic.Field(100, ge=1)
    patience: int = pydantic.Field(3, ge=1)
    refit: bool = False
    budget: str = "10m"
    seed: int = 0

    @property
    def budget_seconds(self) -> float:
        return seconds("train.budget", self.budget)


class Placement(Section):
    list: Literal["for_you", "popular", "similar", "latest", "together", "again", "trending"] = "for_you"
    mix: Literal["auto"] | dict[Literal["model", "history", "neighbours", "popular"], float] = "auto"
    filter: str = ""
    k: int = pydantic.Field(10, ge=1, le=1000)


class Evaluate(Section):
    k: tuple[int, ...] = (10,)
    baselines: tuple[Literal["popular", "bought_before", "covisitation"], ...] = (
        "popular",
        "bought_before",
        "covisitation",
    )


class Serve(Section):
    host: str = "127.0.0.1"
    port: int = pydantic.Field(8088, ge=0, le=65535)
    segment: str = ""
    keys: str = ""  # [later]
    replay: bool = False


class Stores(Section):
    log: str = "sqlite:///store/log.db"
    decisions: str = "sqlite:///store/decisions.db"
    control: str = "sqlite:///store/control.db"


class Gates(Section):
    margin: float = 0.03
    slice_drop: float = 0.1
    parity: int = 0
    latency: float = 1.2
    cold_coverage_drop: float = 0.05


class Release(Section):
    shadow: float = pydantic.Field(0.01, ge=0, le=1)
    experiment: float = pydantic.Field(0.5, ge=0, le=1)
    auto: bool = False  # [later]
    gates: Gates = Gates()


class Update(Section):
    replay: float = pydantic.Field(1.0, ge=0, le=100)  # old positions per new position
    mode: Literal["warm", "full"] = "warm"
    input_check: bool = True  # false: what came is learned from whatever live's loss on it says


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


@dataclass(frozen=True)
class Project:
    """A project folder and its configuration: the paths of everything in it (interface, section 3)."""

    root: Path
    config: Config

    @property
    def file(self) -> Path:
        return self.root / FILE

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def store(self) -> Path:
        return self.root / "store"


def seconds(key: str, text: str) -> float:
    """``90s``, ``10m``, ``1h``, ``2d`` in seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if not found or float(found[1]) == 0:
        raise UserError(key, text, "a time such as 90s, 10m or 1h", f'--set {key}="10m"')
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def open_project(root: Path | str = ".", sets: Iterable[str] = ()) -> Project:
    """Read ``recloop.toml`` of a folder, then the environment, then ``a.b=c`` settings.

    Raises:
        UserError: no such file, not TOML, an unknown key (the nearest known one is named), a wrong value, a key
            that must hold its default until a later chapter.
    """
    folder = Path(root)
    file = folder / FILE
    try:
        tree = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError("file", file, "a project folder with recloop.toml", "recloop init FILE") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(FILE, error, "a TOML file in UTF-8", f"mend that line of {file}") from None
    return Project(folder, build(tree, sets))


def build(tree: Mapping[str, Any], sets: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    """The checked tree of a parsed file, environment and settings; see `open_project`."""
    merged = _copy(tree)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith("RECLOOP_") and "__" in name:
            _put(merged, name[len("RECLOOP_") :].lower().split("__"), _value(text))
    for setting in sets:
        key, sep, text = setting.partition("=")
        if not sep or not key:
            raise UserError("--set", setting, "KEY=VALUE, such as serve.port=9000", "recloop --help")
        _put(merged, key.strip().split("."), _value(text))
    _known(Config, merged, "")
    try:
        config = Config.model_validate(merged)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("literal[", "dict[", "Burst")))
        raise UserError(key, first["input"], _expectation(first), f"mend {key} in {FILE}") from None
    _check_later(config)
    _check_lists(config)
    return config


def dump(config: Config) -> str:
    """The whole tree as TOML, for ``runs/RUN/config.toml`` and the fingerprint: equal configs, equal text."""
    return tomli_w.dumps(config.model_dump(mode="json", by_alias=True))


def _expectation(error: Mapping[str, Any]) -> str:
    message = str(error["msg"])
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(error["input"]), re.findall("'([^']*)'", error["ctx"]["expected"]), n=1)
        message += "".join(f"; nearest: {name}" for name in near)
    return message.removeprefix("Input should be ").removeprefix("Value error, ").replace("valid dictionary or ", "")


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = tree.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(".".join(path), value, f"a key: {part} is no table", f"recloop --set {path[0]}=...")
        tree = inner
    tree[path[-1]] = value


def _value(text: str) -> Any:
    """A setting's text as TOML reads it; what is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _known(section: type[pydantic.BaseModel], tree: Mapping[str, Any], prefix: str) -> None:
    """Refuse the first key that no section knows, naming the nearest one that does."""
    names = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    for key, value in tree.items():
        if key not in names:
            if section.model_config.get("extra") == "allow":
                continue
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise UserError(
                prefix + key, value, f"a known key; nearest: {prefix}{near}", f"rename it to {near} in {FILE}"
            )
        if isinstance(value, Mapping):
            _known_inside(names[key], value, f"{prefix}{key}.")


def _known_inside(annotation: Any, value: Mapping[str, Any], prefix: str) -> None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        _known(annotation, value, prefix)
    elif origin is dict and isinstance(arguments[1], type) and issubclass(arguments[1], pydantic.BaseModel):
        for name, inner in value.items():
            if isinstance(inner, Mapping):
                _known(arguments[1], inner, f"{prefix}{name}.")
    elif origin in (typing.Union, types.UnionType):
        for option in arguments:
            if isinstance(option, type) and issubclass(option, pydantic.BaseModel):
                _known(option, value, prefix)


def _check_later(config: Config) -> None:
    for path, allowed in LATER:
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part)
        if value not in allowed:
            _refuse_later(path, value, " or ".join(str(a) for a in allowed if not isinstance(a, Section)))
    for side in ("item", "user"):
        for name, field in getattr(config.features, side).items():
            if field.kind in ("categories", "vector"):
                _refuse_later(f"features.{side}.{name}.kind", field.kind, "category or number")
    for name, placement in config.placement.items():
        if placement.list in ("together", "again", "trending"):
            _refuse_later(f"placement.{name}.list", placement.list, "for_you, popular, similar or latest")


def _check_lists(config: Config) -> None:
    """A list about an item has its own sources; requests without an item ask for home, those of the route for similar."""
    for name, placement in config.placement.items():
        about = placement.list == "similar"
        mixed = set() if placement.mix == "auto" else set(placement.mix)
        if about and mixed - {"model", "neighbours"}:
            key = f"placement.{name}.mix"
            raise UserError(
                key, placement.mix, "model, neighbours: what a list about an item is mixed of", f"mend {key}"
            )
        if about if name == "home" else (name == "similar" and not about):
            expected = (
                "a list for a user: for_you, popular or latest" if about else "similar: its requests name an item"
            )
            raise UserError(f"placement.{name}.list", placement.list, expected, f"mend placement.{name}.list in {FILE}")


def _refuse_later(path: str, value: object, allowed: str) -> None:
    expected = f"{allowed or 'its default'} (other values come with a later version)"
    raise UserError(path, value, expected, f"remove {path} from {FILE}")
