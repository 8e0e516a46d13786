"""Detection for ``recloop init``: guess a log's settings and write recloop.toml."""

from __future__ import annotations

import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recloop.config import FILE, Clean, Config, Events
from recloop.data import rejected_rows
from recloop.data.clean import RULES, CleanResult, clean
from recloop.data.doctor.profile import timestamp_resolution
from recloop.data.read import RawEvents, parse_events
from recloop.data.repeats import new_item_share, repeat_share
from recloop.data.split import split
from recloop.errors import UserError
from recloop.files import JsonTree, replace_file
from recloop.init.catalog import guess_catalog
from recloop.init.events import guess_events
from recloop.init.features import choose_fields, choose_title, title_columns
from recloop.init.guess_data import GuessedData, guess_data
from recloop.init.log_input import GuessedSetting, Guesses
from recloop.init.read_input import read_input
from recloop.init.template import MIN_NEW, MIN_NEW_ITEM_SHARE, MIN_REPEAT_SHARE, GuessedConfig, config_text
from recloop.records import LABEL, QUANTITY, STAMP, TIMESTAMP, USER_ID, guest_rows
from recloop.settings import build


@dataclass(frozen=True)
class RowCounts:
    """Row counts that `update` would have.

    ``removed`` is by rule; ``reasons`` of rejects are text. ``sampled``: the counts are those of a sample.
    """

    read: int
    kept: int
    removed: Mapping[str, int]
    rejected: int
    reasons: str
    sampled: bool = False


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
    file: str, items: str = "", users: str = "", root: Path | str = ".", yes: bool = False, force: bool = False,
    orders: str = "", sets: Sequence[str] = (),
) -> InitResult:  # fmt: skip
    """Read a log, guess its settings, and write ``recloop.toml`` into ``root``.

    Args:
        file, items, users, orders: Files, globs or folders, relative to the project folder or the working directory.
        root: The project folder; created if it does not exist.
        yes: Never ask; otherwise `init` asks if stdin is a terminal.
        force: Overwrite an existing recloop.toml.
        sets: Settings ``data.columns.user_id="COLUMN"`` that replace guesses.

    Raises:
        UserError: recloop.toml exists, a file cannot be read, a required column is missing, or two are equally likely.
    """
    folder = Path(root)
    if (folder / FILE).exists() and not force:
        raise UserError("file", folder / FILE, "no recloop.toml in this folder yet", f"recloop init {file} --force")
    ask = not yes and sys.stdin.isatty()
    guess = inspect_log(folder, file, items, users, orders, ask=ask, accept=yes, chosen=_chosen_columns(sets))
    replace_file(folder / FILE, guess.toml)
    return guess


def _chosen_columns(sets: Sequence[str]) -> dict[str, str]:
    """Column by field of the settings ``data.columns.FIELD=NAME``."""
    pairs = (setting.partition("=")[::2] for setting in sets)
    return {
        key.strip().removeprefix("data.columns."): text.strip().strip("'\"")
        for key, text in pairs
        if key.strip().startswith("data.columns.")
    }


def inspect_log(
    folder: Path, file: str, items: str = "", users: str = "", orders: str = "", ask: bool = False, accept: bool = True,
    chosen: Mapping[str, str] | None = None,
) -> InitResult:  # fmt: skip
    """Guess the settings of a log without writing them."""
    log = read_input(folder, (file, items, users, orders), ask, accept, chosen or {})
    guesses = Guesses()
    guessed = _with_title(guess_data(log, guesses), guesses)
    raw = parse_events(log.tables, guessed.data, orders=log.orders)
    data = guessed.data
    if data.time_unit == "auto":
        data = data.model_copy(update={"time_unit": _unit(raw)})
    guesses.say("data.time_unit", data.time_unit, raw.info.partition("stamps: ")[2])
    names = data.columns.model_dump()
    events, events_reason = guess_events(raw.frame, names)
    _say_events(events, events_reason, guesses)
    resolution = "order number" if data.time_unit == "order" else timestamp_resolution(raw.frame[TIMESTAMP])
    rules = guess_rules(resolution, bool(names[QUANTITY]), guessed.exclude_items, guesses)
    cleaned = clean(raw.frame, Config(data=data, events=events, clean=rules))
    remedies = _remedies(raw, cleaned, resolution)
    for setting, text in remedies.items():
        guesses.say("update would stop", setting, text)
    repeats, new_items = _repeats(cleaned, guesses)
    fields = _features(guessed, guesses)
    segment = _segment(fields["user"], guesses)
    catalog = {} if log.items is None else guess_catalog(log.items[0].columns, guesses)
    scenario, scenario_reason = _scenario(cleaned, repeats, any(fields.values()))
    guesses.say("scenario", scenario, scenario_reason)
    reasons = {guess.key: guess.why for guess in guesses.settings}
    text = config_text(
        GuessedConfig(
            data=data,
            info=raw.info,
            events=events,
            events_reason=events_reason,
            rules=rules,
            resolution=resolution,
            repeats=repeats,
            new_items=new_items,
            fields=fields,
            catalog=catalog,
            segment=segment,
            scenario=scenario,
            scenario_reason=scenario_reason,
            reasons=reasons,
        )
    )
    build(tomllib.loads(text), environment={})
    command, keep = _next(cleaned, remedies)
    counts = _counts(raw, cleaned, log.sampled)
    return InitResult(names, data.time_unit, scenario, tuple(guesses.settings), text, counts, command, keep)


def _with_title(guessed: GuessedData, guesses: Guesses) -> GuessedData:
    """Name the column of titles."""
    data = guessed.data
    title = choose_title(guessed.items, data.item_key or data.columns.item_id)
    guesses.say("data.columns.name", title.name, title.why)
    columns = data.columns.model_copy(update={"name": title.name})
    return replace(guessed, data=data.model_copy(update={"columns": columns}))


def guess_rules(resolution: str, counted: bool, exclude_items: Sequence[str], guesses: Guesses) -> Clean:
    """Guess ``[clean]`` by the resolution of the stamps ("" if they are fine enough).

    Args:
        counted: True if the log has a column of quantities.
    """
    coarse = f"stamps have a resolution of one {resolution}"
    settings: dict[str, object] = {"exclude_items": tuple(exclude_items)}
    if resolution in ("day", "order number") and not counted:
        settings["duplicates"] = "off"
        guesses.say("clean.duplicates", "off", f"{coarse}: equal rows are a quantity, not repeats", 0.8)
    if resolution:
        settings["burst"] = "off"
    why = f"{coarse}: rows of one stamp are not a burst" if resolution else "stamps are fine enough"
    guesses.say("clean.burst", "off" if resolution else {"events": 10, "seconds": 1}, why)
    return Clean.model_validate(settings)


def _say_events(events: Events, why: str, guesses: Guesses) -> None:
    if events.weights:
        guesses.say("events.weights", dict(events.weights), why)
    for key, value, reason in (
        ("positive", events.positive, why),
        ("history", events.history, "an input of models, not a target of metrics"),
        ("negative", events.negative, "hides the item until a later positive"),
        ("neutral", events.neutral, "stored, but not used"),
    ):
        if value:
            guesses.say(f"events.{key}", list(value), reason)
    reason = "undoes earlier events of the user on the item; a quantity below 0 is a return"
    guesses.say("events.undo", dict(events.undo), reason)


def _features(guessed: GuessedData, guesses: Guesses) -> dict[str, dict[str, JsonTree]]:
    """Features by side and name."""
    data = guessed.data
    titles = title_columns(data.columns.name)
    fields = {
        "item": choose_fields(guessed.items, data.item_key or data.columns.item_id, titles),
        "user": choose_fields(guessed.users, data.user_key or data.columns.user_id, set(), with_texts=False),
    }
    for side, features in fields.items():
        for name, field in features.items():
            guesses.say(f"features.{side}.{name}", field["from"], field["why"])
    return fields


def _segment(fields: Mapping[str, JsonTree], guesses: Guesses) -> str:
    """Field of users by which popular items are counted; "" without one of few values."""
    few = (field["from"] for field in fields.values() if field["kind"] == "category" and field["values"] <= 20)
    segment = next(few, "")
    if segment:
        guesses.say("serve.segment", segment, "popular items per value of this field")
    return segment


def _counts(raw: RawEvents, cleaned: CleanResult, is_sample: bool) -> RowCounts:
    removed = ({"where": raw.left_out} if raw.left_out else {}) | cleaned.removed
    reasons = rejected_rows.reasons(raw.rejects)
    return RowCounts(raw.read, len(cleaned.valid_rows), removed, len(raw.rejects), reasons, is_sample)


def _next(cleaned: CleanResult, remedies: Mapping[str, str]) -> tuple[str, str]:
    """Next command, and its settings as lines of recloop.toml."""
    try:
        split(cleaned.valid_rows, Config().split)
    except UserError:
        return "recloop doctor", ""
    command = " ".join(["recloop update", *(f"--set {shlex.quote(setting)}" for setting in remedies)])
    return command, "; ".join(setting.partition(".")[2].replace("=", " = ") for setting in remedies)


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


def _unit(raw: RawEvents) -> str:
    """Time unit as a value of ``data.time_unit``."""
    description = raw.info.partition("stamps: ")[2]
    for unit_name, unit in (
        ("milliseconds", "ms"), ("microseconds", "us"), ("nanoseconds", "ns"), ("seconds", "s"), ("days", "days"),
    ):  # fmt: skip
        if description.startswith(unit_name):
            return unit if ";" not in description else "auto"
    return "iso"


def _repeats(cleaned: CleanResult, guesses: Guesses) -> tuple[float, float]:
    """Share of repeats among positive rows, and of new items among users' newest.

    The second is 0 for a log with few repeats.
    """
    repeats = repeat_share(cleaned.valid_rows)
    guesses.say("split.filter_seen", repeats < MIN_REPEAT_SHARE, f"{repeats * 100:.1f} % of positive rows are repeats")
    new_items = new_item_share(cleaned.valid_rows) if repeats >= MIN_REPEAT_SHARE else 0.0
    if new_items >= MIN_NEW_ITEM_SHARE:
        why = f"{new_items * 100:.1f} % of the newest items of users are new to them"
        guesses.say("placement.home.min_new", MIN_NEW, why)
    return repeats, new_items


def _scenario(cleaned: CleanResult, repeats: float, attributes: bool) -> tuple[str, str]:
    positive = cleaned.valid_rows.filter((pl.col(LABEL) > 0) & ~guest_rows())
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
