"""Detection for ``recloop init``: guess a log's settings and write recloop.toml."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from recloop.config import FILE, Clean, Columns, Config, Data, Events
from recloop.data import rejected_rows
from recloop.data.clean import RULES, CleanResult, clean
from recloop.data.doctor import timestamp_resolution
from recloop.data.read import RawEvents, parse_events, read_rows
from recloop.data.sources import InputFile, find
from recloop.data.split import split
from recloop.data.tables import Table, read_table
from recloop.data.timestamps import looks_compact
from recloop.errors import UserError
from recloop.files import JsonTree, replace_file
from recloop.init.columns import (
    KNOWN_NAMES,
    OUTCOME_NAMES,
    ColumnGuess,
    guess_columns,
    holds_several,
    is_blank,
    normalize_name,
)
from recloop.init.event_names import Meaning, meaning_of, partner
from recloop.init.features import Side, choose_fields, choose_title, title_columns
from recloop.init.template import config_text
from recloop.records import ANY_TARGET, EVENT_TYPE, ITEM_ID, LABEL, STAMP, TIMESTAMP, USER_ID, VALUE
from recloop.settings import build

MIN_REPEAT_SHARE: Final = 0.05
"""Share of repeats below which lists exclude seen items."""
PURCHASE_WEIGHT: Final = 5.0
STRONG_WEIGHT: Final = 3.0
WEAK_WEIGHT: Final = 1.0
"""Default weights of a purchase, of a cart or like, and of a view."""
MIN_STRONG_SHARE: Final = 0.01
"""Share of strong rows from which strong types are the only targets and views are history."""


@dataclass(frozen=True)
class GuessedSetting:
    """Guessed setting and the reason."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class RowCounts:
    """Row counts that `update` would have.

    ``removed`` is by rule; ``reasons`` of rejects are text.
    """

    read: int
    kept: int
    removed: Mapping[str, int]
    rejected: int
    reasons: str


@dataclass(frozen=True)
class InitResult:
    """Result of `init`: columns, decisions and the text of recloop.toml.

    Attributes:
        columns: Column name in the file by our name; "" if the file has no such column.
        time_unit: s, ms, us or iso; auto for any other unit.
        scenario: collaborative, content or sequential.
        toml: The text of recloop.toml.
        next: The command to run next.
        keep: Settings of ``next`` as lines of recloop.toml; may be empty.
    """

    columns: dict[str, str]
    time_unit: str
    scenario: str
    guesses: tuple[GuessedSetting, ...]
    toml: str
    rows: RowCounts
    next: str = "recloop update"
    keep: str = ""

    def to_json(self) -> JsonTree:
        """JSON object with the keys of ``recloop init --json``."""
        return {
            "columns": dict(self.columns),
            "time_unit": self.time_unit,
            "scenario": self.scenario,
            "guesses": [vars(guess) for guess in self.guesses],
            "rows": vars(self.rows),
            "next": self.next,
        }


def init(
    file: str, items: str = "", users: str = "", root: Path | str = ".", yes: bool = False, force: bool = False
) -> InitResult:
    """Read a log, guess its settings, and write ``recloop.toml`` into ``root``.

    Args:
        file, items, users: Files, globs or folders, relative to the project folder or the working directory.
        root: The project folder; created if it does not exist.
        yes: Never ask; otherwise `init` asks if stdin is a terminal.
        force: Overwrite an existing recloop.toml.

    Raises:
        UserError: recloop.toml exists, a file cannot be read, or the user, item or time column is missing.
    """
    folder = Path(root)
    if (folder / FILE).exists() and not force:
        raise UserError("file", folder / FILE, "no recloop.toml in this folder yet", f"recloop init {file} --force")
    guess = inspect_log(folder, file, items, users, ask=not yes and sys.stdin.isatty())
    replace_file(folder / FILE, guess.toml)
    return guess


def inspect_log(folder: Path, file: str, items: str = "", users: str = "", ask: bool = False) -> InitResult:
    """Guess the settings of a log without writing them."""
    paths = [_from(folder, text, key) for text, key in ((file, "FILE"), (items, "--items"), (users, "--users"))]
    tables = [read_table(source, Data()) for source in find(folder, paths[0], "FILE")]
    item_side = _side(folder, paths[1], "--items")
    user_side = _side(folder, paths[2], "--users")
    guesses: list[GuessedSetting] = []

    def say(key: str, value: Any, why: str) -> None:
        guesses.append(GuessedSetting(key, value, why))

    columns = _columns(tables, item_side, user_side, ask)
    for column, guess in columns.items():
        say(f"data.columns.{column}", guess.name, guess.why)
    names = {column: guess.name for column, guess in columns.items()}
    title = choose_title(item_side, names[ITEM_ID])
    say("data.columns.name", title.name, title.why)
    names["name"] = title.name
    stamps = [table.frame[names[TIMESTAMP]] for table in tables if len(table.frame)]
    dates = bool(stamps) and all(looks_compact(column) for column in stamps)  # numbers such as 20250131 are dates
    data = Data(
        events=paths[0], items=paths[1], users=paths[2], columns=Columns(**names), time_unit="iso" if dates else "auto"
    )
    raw = parse_events(tables, data)
    unit = _unit(raw)
    say("data.time_unit", unit, raw.info.partition("stamps: ")[2])
    events = _events(raw.frame, names)
    if events[0].weights:
        say("events.weights", dict(events[0].weights), events[1])
    for key, value, why in (
        ("positive", events[0].positive, events[1]),
        ("history", events[0].history, "an input of models, not a target of metrics"),
        ("negative", events[0].negative, "hides the item until a later positive"),
        ("neutral", events[0].neutral, "stored, but not used"),
    ):
        if value:
            say(f"events.{key}", list(value), why)
    say(
        "events.undo",
        dict(events[0].undo),
        "undoes earlier events of the user on the item; a quantity below 0 is a return",
    )
    resolution = timestamp_resolution(raw.frame[TIMESTAMP])
    burst = Clean(burst="off") if resolution else Clean()
    why = (
        f"stamps have a resolution of one {resolution}: rows of one stamp are not a burst"
        if resolution
        else "stamps are fine enough"
    )
    say("clean.burst", "off" if resolution else {"events": 10, "seconds": 1}, why)
    cleaned = clean(raw.frame, Config(data=data, events=events[0], clean=burst))
    remedies = _remedies(raw, cleaned, resolution)
    for setting, why in remedies.items():
        say("update would stop", setting, why)
    repeats = _repeats(cleaned)
    say("split.filter_seen", repeats < MIN_REPEAT_SHARE, f"{repeats * 100:.1f} % of positive rows are repeats")
    item_fields = choose_fields(item_side, names[ITEM_ID], title_columns(title.name))
    user_fields = choose_fields(user_side, names[USER_ID], set())
    for side, fields in (("item", item_fields), ("user", user_fields)):
        for name, field in fields.items():
            say(f"features.{side}.{name}", field["from"], field["why"])
    segment = next(
        (field["from"] for field in user_fields.values() if field["kind"] == "category" and field["values"] <= 20), ""
    )
    if segment:
        say("serve.segment", segment, "popular items per value of this field")
    scenario, reason = _scenario(cleaned, repeats, bool(item_fields or user_fields))
    say("scenario", scenario, reason)
    text = config_text(
        data=data.model_copy(update={"time_unit": unit}),
        info=raw.info,
        events=events,
        resolution=resolution,
        repeats=repeats,
        fields={"item": item_fields, "user": user_fields},
        segment=segment,
        scenario=(scenario, reason),
        rated=normalize_name(names[VALUE]) in {"rating", "stars", "score", "overall"},
    )
    build(tomllib.loads(text), environment={})
    reasons = rejected_rows.reasons(raw.rejects)
    rows = RowCounts(raw.read, len(cleaned.valid_rows), cleaned.removed, len(raw.rejects), reasons)
    command = " ".join(["recloop update", *(f"--set {shlex.quote(setting)}" for setting in remedies)])
    keep = "; ".join(setting.partition(".")[2].replace("=", " = ") for setting in remedies)
    try:
        split(cleaned.valid_rows, Config().split)
    except UserError:
        command, keep = "recloop doctor", ""
    return InitResult(names, unit, scenario, tuple(guesses), text, rows, command, keep)


def _remedies(raw: RawEvents, cleaned: CleanResult, resolution: str) -> dict[str, str]:
    """Settings, with reasons, that let `update` continue past its limits.

    There is one for each limit that the log exceeds.
    """
    remedies: dict[str, str] = {}
    unread = rejected_rows.excess(raw.rejects, raw.read, Clean().max_rejected)
    if unread is not None:
        share = rejected_rows.rounded_up(len(raw.rejects) / raw.read)
        remedies[f"clean.max_rejected={share}"] = f"rejected: {unread.value}; {rejected_rows.fix_for(raw.rejects)}"
    largest = 0.0
    reasons = list[str]()
    for error in cleaned.excessive:
        rule = error.name.removeprefix("rule ")
        if rule == "duplicates" and resolution:
            why = f"stamps have a resolution of one {resolution}: an equal row is another event, not a repeat"
            remedies['clean.duplicates="off"'] = f"{error.name}: {error.value}; {why}"
            continue
        setting = next(info.off for info in RULES if info.name == rule)
        largest = max(largest, cleaned.removed[rule] / (raw.read - len(raw.rejects)))
        alternative = "" if rule == "keep" else f"; or {setting}"  # without it a return would be a purchase
        reasons.append(f"{error.name}: {error.value}{alternative}")
    if reasons:
        remedies[f"clean.max_removed={rejected_rows.rounded_up(largest)}"] = "; ".join(reasons)
    return remedies


def _from(folder: Path, text: str, key: str) -> str:
    """Path for recloop.toml in ``folder``.

    A path that is valid from there stays as given; any other becomes absolute.
    """
    if not text or Path(text).is_absolute():
        return text
    try:
        find(folder, text, key)
    except UserError:
        local_path = Path.cwd() / text
        if local_path.exists():
            return local_path.as_posix()
    return text


def _side(folder: Path, text: str, key: str) -> Side | None:
    if not text:
        return None
    sources: list[InputFile] = find(folder, text, key)
    table, rows = read_rows(sources[0], Data())
    for source in sources[1:]:
        rows += read_rows(source, Data())[1]
    return table, rows


# -- columns


def _columns(
    tables: Sequence[Table], item_side: Side | None, user_side: Side | None, ask: bool
) -> dict[str, ColumnGuess]:
    first_table = tables[0]
    frame = (
        first_table.frame if len(tables) == 1 else pl.concat([table.frame for table in tables], how="diagonal_relaxed")
    )
    if not len(frame):
        raise UserError("FILE", first_table.source.name, "rows under the header, found none", "recloop init FILE")
    others = {
        ITEM_ID: [] if item_side is None else list(item_side[0].columns),
        USER_ID: [] if user_side is None else list(user_side[0].columns),
    }
    guesses = guess_columns(frame, first_table.separator or ",", others)
    if ask:
        for field in (USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, "group_id"):
            guesses[field] = _asked(field, guesses[field], frame.columns)
    for field, label in ((USER_ID, "user id"), (ITEM_ID, "item id"), (TIMESTAMP, "time")):
        if not guesses[field].name:
            filled = [name for name in frame.columns if not is_blank(frame[name])]
            expected = f"a column with the {label}; {first_table.source.name} has {', '.join(filled)}"
            fix = ""
            crowded = next((name for name in filled if field == ITEM_ID and holds_several(name, frame[name])), "")
            if crowded:
                expected += f"; {crowded} has several items in one cell"
                fix = "export the orders with one row per item"
            raise UserError(
                f"data.columns.{field}", "", expected,
                fix or f"rename that column to {field} (known names: {', '.join(KNOWN_NAMES[field][:5])} ...)",
            )  # fmt: skip
    for field, side, flag in ((ITEM_ID, item_side, "--items"), (USER_ID, user_side, "--users")):
        if side is not None and guesses[field].name not in side[0].columns:
            match = difflib.get_close_matches(guesses[field].name, side[0].columns, n=1, cutoff=0.0)[0]
            raise UserError(
                flag, side[0].source.name, f"the id column {guesses[field].name} of the log; nearest: {match}",
                f"rename {match} to {guesses[field].name}",
            )  # fmt: skip
    return guesses


def _asked(field: str, guess: ColumnGuess, names: Sequence[str]) -> ColumnGuess:
    """Ask for a column on the terminal; Enter keeps the guess, ``-`` means none."""
    while True:
        sys.stderr.write(f"{field} [{guess.name or '-'}] ({guess.why}): ")
        sys.stderr.flush()
        answer = sys.stdin.readline().strip()
        if not answer:
            return guess
        if answer == "-":
            return ColumnGuess("", "your answer")
        if answer in names:
            return ColumnGuess(answer, "your answer")
        matches = difflib.get_close_matches(answer, names, n=1, cutoff=0.0)
        sys.stderr.write(f"  no column {answer}; nearest: {matches[0]}\n")


# -- meaning of the events


def _unit(raw: RawEvents) -> str:
    """Time unit as a value of ``data.time_unit``."""
    description = raw.info.partition("stamps: ")[2]
    for unit_name, unit in (("milliseconds", "ms"), ("microseconds", "us"), ("nanoseconds", "auto"), ("seconds", "s")):
        if description.startswith(unit_name):
            return unit if ";" not in description else "auto"
    return "iso"


def _events(frame: pl.DataFrame, names: dict[str, str]) -> tuple[Events, str]:
    """Guess ``[events]`` from the names of the event types, with the reason."""
    if not names[EVENT_TYPE]:
        if normalize_name(names[VALUE]) in OUTCOME_NAMES:
            events = Events(positive=("value = 1",), negative=(), neutral=("value = 0",))
            return events, f"{names[VALUE]} is 0 or 1: an impression without effect is neutral"
        return Events(), "no event types: every row is positive"
    counts = frame.group_by(EVENT_TYPE).len().sort(["len", EVENT_TYPE], descending=[True, False])
    return _of_types(dict(counts.iter_rows()))


def _of_types(counts: dict[str, int]) -> tuple[Events, str]:
    """``[events]`` for row counts by type, most frequent first, and the reason."""
    types_by_meaning: dict[Meaning, list[str]] = {meaning: [] for meaning in Meaning}
    for name in counts:
        types_by_meaning[meaning_of(name)].append(name)
    undo, unpaired = _undo(types_by_meaning, list(counts))
    purchases = types_by_meaning[Meaning.PURCHASE]
    strong_types = types_by_meaning[Meaning.STRONG]
    views = types_by_meaning[Meaning.WEAK]
    n_strong = sum(counts[name] for name in purchases + strong_types)
    weighted_types = [(name, PURCHASE_WEIGHT) for name in purchases] + [(name, STRONG_WEIGHT) for name in strong_types]
    positive: list[str] = []
    history: list[str] = []
    neutral = types_by_meaning[Meaning.SHOWN] + unpaired + types_by_meaning[Meaning.OTHER]
    why = "by their names"
    if n_strong >= MIN_STRONG_SHARE * sum(counts.values()) and views:
        weighted_types += [(name, WEAK_WEIGHT) for name in views]
        history = views
        why = f"{(purchases + strong_types)[0]} is the target to predict; {views[0]} is history that the models see"
    elif views:
        weighted_types += [(name, WEAK_WEIGHT) for name in views]
        why = "views are the strongest signal here"
    if not weighted_types and types_by_meaning[Meaning.OTHER]:
        positive, neutral = types_by_meaning[Meaning.OTHER], types_by_meaning[Meaning.SHOWN] + unpaired
        why = "types of unknown meaning are positive: check them"
    elif not weighted_types:
        why = "no positive type found: set events.positive"
    elif not purchases and not history:  # equal weights are not written
        positive, weighted_types = [name for name, _ in weighted_types], []
    texts = [tuple(map(_text, names)) for names in (positive, types_by_meaning[Meaning.NEGATIVE], neutral, history)]
    weights = {_text(name): weight for name, weight in weighted_types}
    return Events(
        positive=texts[0], negative=texts[1], neutral=texts[2], history=texts[3], weights=weights, undo=undo
    ), why


def _undo(types_by_meaning: dict[Meaning, list[str]], types: list[str]) -> tuple[dict[str, str], list[str]]:
    """``events.undo``, and the neutral undo types without a matching type in the log."""
    undo = dict(Events().undo)
    unpaired = []
    for meaning in (Meaning.RETURN, Meaning.UNDO):
        for name in types_by_meaning[meaning]:
            reversed_type = partner(name, meaning, types) or (ANY_TARGET if meaning is Meaning.RETURN else "")
            if reversed_type:
                undo[_text(name)] = reversed_type
            else:
                unpaired.append(name)
    return undo, unpaired


def _text(name: str) -> str:
    """Entry of ``[events]`` for a type.

    It is the name, or a condition if the name has spaces or signs.
    """
    if re.fullmatch(r"[\w.:-]+", name):
        return name
    quoted = name.replace("'", "''")
    return f"event_type = '{quoted}'"


def _repeats(cleaned: CleanResult) -> float:
    positive = cleaned.valid_rows.filter(pl.col(LABEL) > 0)
    if not len(positive):
        return 0.0
    return 1.0 - float(positive.select(pl.struct(USER_ID, ITEM_ID).n_unique()).item()) / len(positive)


def _scenario(cleaned: CleanResult, repeats: float, attributes: bool) -> tuple[str, str]:
    positive = cleaned.valid_rows.filter(pl.col(LABEL) > 0)
    moments = positive.group_by(USER_ID).agg(pl.col(STAMP).n_unique())[STAMP].median()
    median_moments = float(moments) if isinstance(moments, int | float) else 0.0
    single_row_share = (
        float(positive.select((~pl.struct(USER_ID, STAMP).is_duplicated()).mean()).item() or 0.0)
        if len(positive)
        else 0.0
    )
    facts = (
        f"median of {median_moments:g} moments per user, {single_row_share * 100:.0f} % of moments with one row, "
        f"{repeats * 100:.0f} % repeats"
    )
    if median_moments >= 5 and single_row_share >= 0.5 and repeats < MIN_REPEAT_SHARE:
        return "sequential", f"separate moments with few repeats: {facts}"
    if attributes:
        return "content", f"attributes can compensate for few events: {facts}"
    return "collaborative", f"users, items and baskets, no attributes: {facts}"
