"""Log of a fit: rows, catalog, users and the settings that they suggest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import narwhals as nw
import polars as pl

from recloop.api.ids import IdType
from recloop.config import LEAVE_ONE_OUT, Columns, Config, Data, Fallback
from recloop.data import rejected_rows
from recloop.data.doctor.profile import timestamp_resolution
from recloop.data.frames import as_polars, frame_as_table, objects
from recloop.data.read import REQUIRED_COLUMNS, RawEvents, parse_events
from recloop.data.timestamps.numbers import looks_compact
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.init.columns import ColumnGuess, guess_columns
from recloop.init.detect import guess_rules
from recloop.init.events import guess_events
from recloop.init.features import Side, choose_fields, choose_title, title_columns
from recloop.init.guess_data import GuessedData, guess_data
from recloop.init.headless import guess_headless
from recloop.init.log_input import GuessedSetting, Guesses, LogInput
from recloop.models.base import is_closed_form
from recloop.records import DEFAULT_EVENT_TYPE, ITEM_ID, TIMESTAMP, USER_ID
from recloop.settings import build

Holdout = Literal["temporal", "leave-one-out"]
HOLDOUTS: Final = ("temporal", LEAVE_ONE_OUT)
FIELDS: Final = tuple(name for name in Columns.model_fields if name != "name")
FEATURE_OPTIONS: Final = ("kind", "from", "dim", "separator")
"""Keys of a feature in recloop.toml that a guess sets."""
NUMBERED_NAMES: Final = re.compile(r"(column_|c|f|v|field_?)?\d+", re.IGNORECASE)
"""Names that data frame libraries give to the columns of a file without a header."""
MIN_SIMILARITY: Final = 0.6
"""Similarity below which a message does not name the nearest column."""


@dataclass(frozen=True)
class FitInput:
    """Log as read from frames.

    Attributes:
        events: Rows as read, before cleaning.
        items, users: Versions of the catalog and of user attributes; None if not given.
        tree: Settings, given and guessed, as the tables of recloop.toml.
        guesses: Guessed settings, each with its reason.
        model: Model to fit.
        user_ids, item_ids: Types of the ids in the caller's frame.
        native: Name of the caller's data frame library.
        unused_names: Columns named like a field that another column was read for.
    """

    events: RawEvents
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    tree: JsonTree
    guesses: tuple[GuessedSetting, ...]
    model: str
    user_ids: IdType
    item_ids: IdType
    native: str
    unused_names: tuple[str, ...] = ()

    def config(self, holdout: Holdout | None) -> Config:
        """Settings of a fit with this holdout.

        Leave-one-out has one row per moment and no seen items.
        """
        split = dict(self.tree.get("split", {}))
        if holdout is not None:
            split["protocol"] = holdout
        if holdout == LEAVE_ONE_OUT:
            split = {"ties": "row", "filter_seen": True, **split}
        return build({**self.tree, "split": split}, (), {})


def read_input(
    events: Any, items: Any, users: Any, model: str, config: Mapping[str, Any], columns: Mapping[str, str]
) -> FitInput:
    """Read frames and guess the settings that are not given, as `recloop init` does.

    Raises:
        UserError: a frame, a column, a value or a setting is invalid, or too many rows are unreadable.
    """
    frame = as_polars(events)
    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    frame = frame.drop(nested)  # no field of an event is nested
    sides = {name: _side(side, name) for name, side in (("items", items), ("users", users))}
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    given_data = dict(tree.get("data", {}))
    given = {**dict(given_data.pop("columns", {})), **checked_columns(columns)}
    guesses = Guesses()
    try:
        guessed = _guess_data(frame, sides, given, build({"data": given_data}, (), {}).data, guesses)
    except UserError as error:
        if not nested or error.name != "columns":
            raise
        expected = f"{error.expected}; {', '.join(nested)} holds lists or objects"
        fix = f'one row per event: events.explode("{nested[0]}").unnest("{nested[0]}")'
        raise UserError(error.name, error.value, expected, fix) from None
    data = {**guessed.data.model_dump(mode="json"), **given_data}
    if "time_unit" not in given_data and looks_compact(frame[data["columns"][TIMESTAMP]]):
        data["time_unit"] = "iso"
    tree["data"] = data
    settings = build(tree, (), {}).data
    raw = parse_events([frame_as_table(frame, "events")], settings)
    tree = _with_meaning(tree, raw, guessed, guesses)
    max_rejected = build(tree, (), {}).clean.max_rejected
    too_many = rejected_rows.excess(raw.rejects, raw.read, max_rejected)
    if too_many is not None:
        raise too_many
    catalogue = _versions(guessed.items, ITEM_ID, settings.item_key or settings.columns.item_id, 0, settings.id_form)
    n_items = 0 if catalogue is None else len(catalogue)
    user_key = settings.user_key or settings.columns.user_id
    people = _versions(guessed.users, USER_ID, user_key, n_items, settings.id_form)
    if model != "auto" and not is_closed_form(model):
        tree = _with_features(tree, guessed, settings, guesses)
    build(tree, (), {})
    chosen = {settings.columns.user_id, settings.columns.item_id, settings.columns.timestamp}
    return FitInput(
        events=raw,
        items=catalogue,
        users=people,
        tree=tree,
        guesses=tuple(guesses.settings),
        model=model,
        user_ids=IdType.of(frame[settings.columns.user_id], settings.id_form),
        item_ids=IdType.of(frame[settings.columns.item_id], settings.id_form),
        native=nw.get_native_namespace(events).__name__,
        unused_names=tuple(name for name in REQUIRED_COLUMNS if name in frame.columns and name not in chosen),
    )


def _side(frame: Any, name: str) -> Side | None:
    """Frame of items or users as a table and its rows."""
    if frame is None:
        return None
    rows = as_polars(frame, name)
    return frame_as_table(rows, name), rows.to_dicts()


def _guess_data(
    frame: pl.DataFrame, sides: Mapping[str, Side | None], given: Mapping[str, str], data: Data, guesses: Guesses
) -> GuessedData:
    """Guess ``[data]`` of a frame.

    Args:
        given: Column by field, which is not guessed. data: Given settings of ``[data]``.
    """
    others = {
        field: [] if (side := sides[name]) is None else list(side[0].columns)
        for field, name in ((ITEM_ID, "items"), (USER_ID, "users"))
    }
    if is_headless(frame):
        data = data.model_copy(update={"header": False})
    log = LogInput([frame_as_table(frame, "events")], [], sides["items"], sides["users"], data, ask=False)
    found = Guesses()
    if given:
        columns = choose_columns(frame, given, others)
        names = {field: guess.name for field, guess in columns.items()}
        guessed = guess_data(replace(log, chosen=dict.fromkeys(FIELDS, "") | names | dict(given)), found)
        fallback = {field: guess.fallback for field, guess in columns.items() if field in Fallback.model_fields}
        guessed = replace(guessed, data=guessed.data.model_copy(update={"fallback": Fallback(**fallback)}))
    else:
        columns = {}
        try:
            guessed = guess_data(log, found)
        except UserError as error:
            if error.name.startswith("data.columns."):
                choose_columns(frame, given, others)  # its message names all missing columns
            raise
    for guess in found.settings:
        field = guess.key.removeprefix("data.columns.")
        if field == guess.key:
            guesses.settings += [guess] if guess.key != "data.header" else []
        elif field in columns:
            guesses.say(f"columns.{field}", columns[field].name, columns[field].why, columns[field].confidence)
        elif guess.value and field not in given:
            guesses.say(f"columns.{field}", guess.value, guess.why, guess.confidence)
    return guessed


def is_headless(frame: pl.DataFrame) -> bool:
    """True if all columns have numbered names, as those of a file without a header."""
    return bool(frame.columns) and all(NUMBERED_NAMES.fullmatch(name) for name in frame.columns)


def checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Check the argument ``columns``: our name = the frame's.

    Raises:
        UserError: a name is not one of `FIELDS`.
    """
    unknown = [name for name in columns if name not in FIELDS]
    if not unknown:
        return {field: str(name) for field, name in columns.items()}
    swapped = {value: name for name, value in columns.items()}
    fix = 'columns={"user_id": "customer"}'
    if all(name in FIELDS for name in swapped):
        fix = f"columns={swapped!r}".replace("'", '"')
    expected = f"our name = the frame's name; our names are {', '.join(FIELDS)}"
    raise UserError("columns", ", ".join(map(str, unknown)), expected, fix)


def choose_columns(
    frame: pl.DataFrame, given: Mapping[str, str], others: Mapping[str, Sequence[str]]
) -> dict[str, ColumnGuess]:
    """Guess the columns that are not given.

    Args:
        given: Column by field; "" if the frame has no such column.
        others: Columns of the items by ``item_id`` and of the users by ``user_id``; a shared column is an id.

    Raises:
        UserError: a given column is not in the frame, or a required one is not found; one message names all.
    """
    absent = {field: name for field, name in given.items() if name and field in FIELDS and name not in frame.columns}
    if absent:
        raise UserError(
            "columns", ", ".join(absent.values()), f"columns of the frame; it has {', '.join(frame.columns[:20])}",
            _columns_fix({field: _nearest(name, frame.columns) for field, name in absent.items()}),
        )  # fmt: skip
    renamed = {name: field for field, name in given.items() if name and field in FIELDS and field not in frame.columns}
    original = {field: name for name, field in renamed.items()}
    guesses: dict[str, ColumnGuess] = {}
    if len(frame):
        if is_headless(frame):
            found_columns = guess_headless(frame.drop(name for name in given.values() if name))
        else:
            found_columns = guess_columns(frame.rename(renamed), ",", others)
        for field, guess in found_columns.items():
            name = original.get(guess.name, guess.name)
            if field in FIELDS and field not in given and name and name not in given.values():
                guesses[field] = guess._replace(name=name)
    missing = [field for field in REQUIRED_COLUMNS if not given.get(field) and field not in guesses]
    if missing:
        used = {*given.values(), *(guess.name for guess in guesses.values())}
        free = [name for name in frame.columns if name not in used]
        found = "".join(f"; {field} is {guess.name}" for field, guess in guesses.items() if field in REQUIRED_COLUMNS)
        expected = (
            f"a column for each, found none by name and values; the frame has {', '.join(free) or 'no other column'}"
        )
        if any(name.strip().isdigit() for name in frame.columns):
            expected += "; numbers as names: read a file without a header with has_header=False (pandas: header=None)"
        raise UserError(
            "columns", f"no {', no '.join(missing)}", expected + found, _columns_fix(dict.fromkeys(missing, ""))
        )
    return guesses


def _nearest(name: str, columns: list[str]) -> str:
    lower = {column.lower(): column for column in columns}
    matches = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=MIN_SIMILARITY)
    return lower[matches[0]] if matches else ""


def _columns_fix(columns: Mapping[str, str]) -> str:
    entries = ", ".join(f'"{field}": "{name or "NAME"}"' for field, name in columns.items())
    return f"columns={{{entries}}}"


def _with_meaning(tree: JsonTree, raw: RawEvents, guessed: GuessedData, guesses: Guesses) -> JsonTree:
    """Add ``[events]`` and rules of ``[clean]`` to the settings, unless given."""
    clean = dict(tree.get("clean", {}))
    if guessed.exclude_items:
        clean.setdefault("exclude_items", list(guessed.exclude_items))
    own = Guesses()
    counted = bool(guessed.data.columns.quantity)
    rules = guess_rules(timestamp_resolution(raw.frame[TIMESTAMP]), counted, guessed.exclude_items, own)
    for key in ("duplicates", "burst"):
        if getattr(rules, key) == "off" and key not in clean:
            clean[key] = "off"
            guesses.settings += [guess for guess in own.settings if guess.key == f"clean.{key}"]
    if "events" in tree:
        return {**tree, "clean": clean}
    events, why = guess_events(raw.frame, dict(guessed.data.columns.model_dump()))
    for key in ("weights", "positive", "history", "negative", "neutral"):
        value = getattr(events, key)
        if (
            value
            and value != (DEFAULT_EVENT_TYPE,)
            and (guessed.data.columns.event_type or key in {"weights", "positive"})
        ):
            guesses.say(f"events.{key}", dict(value) if key == "weights" else list(value), why)
    return {**tree, "clean": clean, "events": events.model_dump(mode="json", by_alias=True)}


def _versions(side: Side | None, field: str, column: str, first: int, form: str) -> pl.DataFrame | None:
    """Versions of the items or users of a side; an id column named as ours wins."""
    if side is None:
        return None
    rows = side[0].frame
    return objects(rows, field, column if column in rows.columns else field, first, form)


def _with_features(tree: JsonTree, guessed: GuessedData, data: Data, guesses: Guesses) -> JsonTree:
    """Add the features of items and users that a network reads, unless given."""
    features = dict(tree.get("features", {}))
    title = choose_title(guessed.items, data.item_key or data.columns.item_id).name
    for side_name, side, key, excluded in (
        ("item", guessed.items, data.item_key or data.columns.item_id, title_columns(title)),
        ("user", guessed.users, data.user_key or data.columns.user_id, set[str]()),
    ):
        if side is None or side_name in features:
            continue
        chosen = choose_fields(side, key, excluded, with_texts=side_name == "item")
        features[side_name] = {
            name: {option: value for option, value in field.items() if option in FEATURE_OPTIONS}
            for name, field in chosen.items()
        }
        for name, field in chosen.items():
            guesses.say(f"features.{side_name}.{name}", field["from"], field["why"])
    return {**tree, "features": features}
