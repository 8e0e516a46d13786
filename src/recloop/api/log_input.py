"""Log of a fit: rows, catalog, users and the settings that they suggest."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import narwhals as nw
import polars as pl

from recloop.api.ids import IdType
from recloop.config import Columns, Config
from recloop.data import rejected_rows
from recloop.data.doctor import timestamp_resolution
from recloop.data.frames import as_polars, frame_as_table, key_column, objects
from recloop.data.read import REQUIRED_COLUMNS, RawEvents, parse_events
from recloop.data.split import LEAVE_ONE_OUT
from recloop.data.timestamps import looks_compact
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.init import detect
from recloop.init.columns import ColumnGuess, guess_columns
from recloop.init.detect import GuessedSetting
from recloop.init.features import choose_fields, choose_title, title_columns
from recloop.models.base import is_closed_form
from recloop.records import ITEM_ID, TIMESTAMP, USER_ID
from recloop.settings import build

Holdout = Literal["temporal", "leave-one-out"]
HOLDOUTS: Final = ("temporal", LEAVE_ONE_OUT)
FIELDS: Final = tuple(name for name in Columns.model_fields if name != "name")
MIN_SIMILARITY: Final = 0.6
"""Similarity below which a message does not name the nearest column."""


@dataclass(frozen=True)
class LogInput:
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
        """Settings of a fit with this holdout; leave-one-out has one row per moment and no seen items."""
        split = dict(self.tree.get("split", {}))
        if holdout is not None:
            split["protocol"] = holdout
        if holdout == LEAVE_ONE_OUT:
            split = {"ties": "row", "filter_seen": True, **split}
        return build({**self.tree, "split": split}, (), {})


def read_log(
    events: Any, items: Any, users: Any, model: str, config: Mapping[str, Any], columns: Mapping[str, str]
) -> LogInput:
    """Read frames and guess the settings that are not given, as `recloop init` does.

    Raises:
        UserError: a frame, a column, a value or a setting is invalid, or too many rows are unreadable.
    """
    frame = as_polars(events)
    side_frames = {
        name: None if side is None else as_polars(side, name) for name, side in (("items", items), ("users", users))
    }
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    tree["data"] = dict(tree.get("data", {}))
    given = {**dict(tree["data"].get("columns", {})), **checked_columns(columns)}
    guessed = choose_columns(frame, given, side_frames)
    tree["data"]["columns"] = {**given, **{field: guess.name for field, guess in guessed.items()}}
    guesses = [
        GuessedSetting(f"columns.{field}", guess.name, guess.why) for field, guess in guessed.items() if guess.name
    ]
    names: dict[str, str] = {field: tree["data"]["columns"].get(field, "") for field in FIELDS}
    if "time_unit" not in tree["data"] and looks_compact(frame[names[TIMESTAMP]]):
        tree["data"]["time_unit"] = "iso"
        guesses.append(GuessedSetting("data.time_unit", "iso", "numbers such as 20250131 are dates"))
    settings = build(tree, (), {})
    raw = parse_events([frame_as_table(frame, "events")], settings.data)
    too_many = rejected_rows.excess(raw.rejects, raw.read, settings.clean.max_rejected)
    if too_many is not None:
        raise too_many
    guesses += _guess_meaning(tree, raw, names)
    catalogue = _side(
        side_frames["items"], ITEM_ID, (settings.data.item_key, ITEM_ID, names[ITEM_ID]), raw, settings, 0
    )
    n_items = 0 if catalogue is None else len(catalogue)
    people = _side(
        side_frames["users"], USER_ID, (settings.data.user_key, USER_ID, names[USER_ID]), raw, settings, n_items
    )
    if model != "auto" and not is_closed_form(model):
        guesses += _guess_features(tree, side_frames, raw, settings, names)
    build(tree, (), {})
    form = settings.data.id_form
    unused = tuple(name for name in REQUIRED_COLUMNS if name in frame.columns and name not in names.values())
    return LogInput(
        raw, catalogue, people, tree, tuple(guesses), model, IdType.of(frame[names[USER_ID]], form),
        IdType.of(frame[names[ITEM_ID]], form), nw.get_native_namespace(events).__name__, unused,
    )  # fmt: skip


def checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Check the argument ``columns``: our name = the frame's.

    Raises:
        UserError: a name is not one of `FIELDS`.
    """
    unknown = [name for name in columns if name not in FIELDS]
    if not unknown:
        return dict(columns)
    swapped = {value: name for name, value in columns.items()}
    fix = 'columns={"user_id": "customer"}'
    if all(name in FIELDS for name in swapped):
        fix = f"columns={swapped!r}".replace("'", '"')
    expected = f"our name = the frame's name; our names are {', '.join(FIELDS)}"
    raise UserError("columns", ", ".join(map(str, unknown)), expected, fix)


def choose_columns(
    frame: pl.DataFrame, given: Mapping[str, str], sides: Mapping[str, pl.DataFrame | None]
) -> dict[str, ColumnGuess]:
    """Guess the columns that are not given.

    Args:
        given: Column by field; "" if the frame has no such column.
        sides: Frames ``items`` and ``users``; a column that both frames have is an id.

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
    others = {
        field: [] if (side := sides.get(name)) is None else list(side.columns)
        for field, name in ((ITEM_ID, "items"), (USER_ID, "users"))
    }
    original = {field: name for name, field in renamed.items()}
    guesses: dict[str, ColumnGuess] = {}
    if len(frame):
        for field, guess in guess_columns(frame.rename(renamed), ",", others).items():
            name = original.get(guess.name, guess.name)
            if field in FIELDS and field not in given and name and name not in given.values():
                guesses[field] = ColumnGuess(name, guess.why)
    missing = [field for field in REQUIRED_COLUMNS if not given.get(field) and field not in guesses]
    if missing:
        used = {*given.values(), *(guess.name for guess in guesses.values())}
        free = [name for name in frame.columns if name not in used]
        found = "".join(f"; {field} is {guess.name}" for field, guess in guesses.items() if field in REQUIRED_COLUMNS)
        expected = (
            f"a column for each, found none by name and values; the frame has {', '.join(free) or 'no other column'}"
        )
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


def _guess_meaning(tree: JsonTree, raw: RawEvents, names: Mapping[str, str]) -> list[GuessedSetting]:
    """Add ``[events]`` and ``clean.burst`` to the settings, unless given."""
    guesses = []
    if "events" not in tree:
        events, why = detect._events(raw.frame, dict(names))
        tree["events"] = events.model_dump(mode="json", by_alias=True)
        for key in ("positive", "history", "negative", "neutral", "weights"):
            value = getattr(events, key)
            if value and value != ("*",):
                guesses.append(GuessedSetting(f"events.{key}", dict(value) if key == "weights" else list(value), why))
    resolution = timestamp_resolution(raw.frame[TIMESTAMP])
    clean = dict(tree.get("clean", {}))
    if resolution and "burst" not in clean:
        tree["clean"] = {**clean, "burst": "off"}
        why = f"stamps have a resolution of one {resolution}: rows of one stamp are not a burst"
        guesses.append(GuessedSetting("clean.burst", "off", why))
    return guesses


def _side(
    rows: pl.DataFrame | None, field: str, keys: tuple[str, ...], raw: RawEvents, settings: Config, first: int
) -> pl.DataFrame | None:
    if rows is None:
        return None
    column = key_column(rows, keys, raw.frame[field].drop_nulls().unique(), "items" if field == ITEM_ID else "users")
    return objects(rows, field, column, first, settings.data.id_form)


def _guess_features(
    tree: JsonTree,
    sides: Mapping[str, pl.DataFrame | None],
    raw: RawEvents,
    settings: Config,
    names: Mapping[str, str],
) -> list[GuessedSetting]:
    """Add the features of items and users that a network reads, unless given."""
    features = dict(tree.get("features", {}))
    guesses = []
    for side, field, key in (("item", ITEM_ID, settings.data.item_key), ("user", USER_ID, settings.data.user_key)):
        rows = sides[f"{side}s"]
        if rows is None or side in features:
            continue
        column = key_column(rows, (key, field, names[field]), raw.frame[field].drop_nulls().unique(), f"{side}s")
        table = (frame_as_table(rows, f"{side}s"), rows.to_dicts())
        title = choose_title(table, column).name if side == "item" else ""
        chosen = choose_fields(table, column, title_columns(title))
        known = ("kind", "from", "dim", "separator")
        features[side] = {
            name: {key: value for key, value in facts.items() if key in known} for name, facts in chosen.items()
        }
        guesses += [
            GuessedSetting(f"features.{side}.{name}", facts["from"], facts["why"]) for name, facts in chosen.items()
        ]
    tree["features"] = features
    return guesses
