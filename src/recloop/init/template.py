"""Template of the recloop.toml that `init` writes, with the reason of every guess."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from recloop.config import Clean, Data, Events
from recloop.progress import printable

MIN_REPEAT_SHARE: Final = 0.05
"""Share of repeats among positive rows below which lists leave out seen items."""
MIN_NEW_ITEM_SHARE: Final = 0.05
"""Share of new items among the newest of a log with repeats from which `home` keeps slots for new items."""
MIN_NEW: Final = 0.333
"""Share of the slots of `home` that are new to the user."""
HEAD_TEMPLATE = """\
# recloop: settings of this folder, guessed by `recloop init`; check them once.
# read: {info}
# next: recloop update      (train and deploy)           then: recloop serve
# quality of the log: recloop doctor                     every key: docs/reference/config.md

[data]
events = {events}
items = {items}
users = {users}
encoding = "auto"                 # auto | utf-8 | gb18030 | cp1252 | utf-16
time_unit = {time_unit:<21} # auto | s | ms | us | ns | days | order | iso
timezone = "UTC"                  # for stamps without a zone
{layout}
[data.columns]                    # our name = the file's; "" if it has none
"""

COLUMN_NOTES = {
    "user_id": "who",
    "item_id": "what",
    "timestamp": "when",
    "event_type": "empty: every row is `interaction`",
    "value": "a rating, a price, seconds",
    "quantity": "",
    "group_id": "basket, invoice or order: rows of one moment; never a visit",
    "event_id": "without it an import cannot be repeated safely",
    "name": 'display name, or a template: "{brand}, {size}"',
}

LAYOUT_KEYS: Final = (
    "orders", "on", "item_key", "user_key", "separator", "header", "where", "carry", "missing_users", "guests", "id_form",
    "item_columns", "user_columns",
)  # fmt: skip
"""Keys of ``[data]`` that are written only if they differ from their defaults."""

EVENTS_TEMPLATE = """
[events]                          # {why}
neutral = {neutral}
positive = {positive}
negative = {negative}
weights = {weights}
history = {history:<21} # input of models, never a target: views
undo = {undo}   # undoes the newest event of that type; "*": the heaviest target
"""

CLEAN_TEMPLATE = """
[clean]
duplicates = {duplicates:<20} # exact | off{equal}
{burst}
keep = "quantity IS NULL OR quantity <> 0"   # SQL condition over a row
{exclude_items}max_removed = 0.05                # the run stops and shows the rows if a rule would remove more
max_rejected = 0.05               # the run stops and shows the reasons if more rows cannot be read (no user, no stamp)

[split]
quantile = 0.9                    # the last tenth of the log is the test
targets = "successive"            # next | successive | last
filter_seen = {filter_seen:<5}               # {repeats}

[features]
dim = 64
max_history = 200                 # newest items that a sequence model reads
context = ["hour", "weekday", "days_since_last"]
"""

TAIL_TEMPLATE = """
[model]
name = "sasrec"                   # needs recloop[train]; without it only the baselines are fitted
# scenario: {scenario}
# {reason}

[train]
time_budget = "10m"               # training seconds of the network

[placement.home]
list = "for_you"                  # for_you | again | popular | latest
weights = "auto"                  # weights of the sources chosen on validation
filter = ""                       # a condition over item fields
n = 10                            # items of a list
# cold_share = 0.1                # a tenth of a list for items without events before the training; needs item features
{min_new}{further}
[serve]
host = "127.0.0.1"
port = 8088
segment = {segment}
"""


@dataclass(frozen=True)
class GuessedConfig:
    """Settings that `init` guessed, and facts that its comments say.

    Attributes:
        info: Summary of files, encoding and stamp format.
        events_reason, scenario_reason: Why ``events`` and ``scenario`` were guessed.
        resolution: Resolution of the stamps if the burst rule is off, else "".
        repeats: Share of repeats among positive rows.
        new_items: Share of new items among the newest items of users; 0 for a log without repeats.
        fields: By side and name: kind, from, dim, why.
        catalog: Keys of ``[catalog]`` that differ from their defaults.
        segment: ``serve.segment``.
        reasons: Reason by key of the guesses.
    """

    data: Data
    info: str
    events: Events
    events_reason: str
    rules: Clean
    resolution: str
    repeats: float
    new_items: float
    fields: Mapping[str, Mapping[str, Mapping[str, Any]]]
    catalog: Mapping[str, str]
    segment: str
    scenario: str
    scenario_reason: str
    reasons: Mapping[str, str]


def config_text(guessed: GuessedConfig) -> str:
    """Render recloop.toml."""
    return "".join(
        [
            *_data_blocks(guessed),
            _events_block(guessed.events, guessed.events_reason),
            _clean_block(guessed),
            *_feature_blocks(guessed.fields),
            _catalog_block(guessed.catalog),
            TAIL_TEMPLATE.format(
                scenario=guessed.scenario,
                reason=printable(guessed.scenario_reason),
                segment=_segment(guessed.segment),
                min_new=_min_new(guessed.new_items),
                further=_further_placements(guessed.repeats),
            ),
        ]
    )


def _data_blocks(guessed: GuessedConfig) -> list[str]:
    """Head of the file, ``[data]``, its columns and further tables."""
    data, reasons = guessed.data, guessed.reasons
    head = HEAD_TEMPLATE.format(
        info=printable(guessed.info), events=_text(data.events), items=_text(data.items), users=_text(data.users),
        time_unit=_text(data.time_unit), layout=_layout(data, reasons),
    )  # fmt: skip
    optional = _optional_columns(data)
    why = COLUMN_NOTES | {name: reasons.get(f"data.columns.{name}", note) for name, note in optional.items()}
    return [head, *(_column(name, getattr(data.columns, name), why[name]) for name in why), *_subtables(data, reasons)]


def _events_block(events: Events, reason: str) -> str:
    return EVENTS_TEMPLATE.format(
        why=printable(reason), neutral=_list(events.neutral), positive=_list(events.positive),
        negative=_list(events.negative), weights=_table(events.weights), history=_list(events.history),
        undo=_table(events.undo),
    )  # fmt: skip


def _clean_block(guessed: GuessedConfig) -> str:
    """``[clean]``, ``[split]`` and the head of ``[features]``."""
    rules = guessed.rules
    burst = "burst = { events = 10, seconds = 1 }   # more rows at once than a person produces"
    if guessed.resolution:
        burst = f'burst = "off"                     # stamps have a resolution of one {guessed.resolution}'
    hides_seen = guessed.repeats < MIN_REPEAT_SHARE
    seen_rule = "never show seen items" if hides_seen else "seen items may be shown again"
    left_out = f"exclude_items = {_list(rules.exclude_items)}   # not products\n" if rules.exclude_items else ""
    return CLEAN_TEMPLATE.format(
        burst=burst,
        duplicates=_text(rules.duplicates),
        equal="" if rules.duplicates == "exact" else ": equal rows are a quantity",
        exclude_items=left_out,
        filter_seen="true" if hides_seen else "false",
        repeats=f"{guessed.repeats * 100:.1f} % of positive rows are repeats: {seen_rule}",
    )


def _feature_blocks(fields: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a table for each feature of items and users."""
    for side, features in fields.items():
        for name, field in features.items():
            yield f"\n[features.{side}.{_key(name)}]".ljust(35) + f"# {field['why']}\n"
            yield f'kind = "{field["kind"]}"\nfrom = {_text(field["from"])}\ndim = {field["dim"]}\n'
            if field.get("separator"):
                yield f"separator = {_text(field['separator'])}\n"


def _catalog_block(catalog: Mapping[str, str]) -> str:
    if not catalog:
        return ""
    lines = "".join(f"{key} = {_text(column)}\n" for key, column in catalog.items())
    return f"\n[catalog]                         # columns with a meaning of their own\n{lines}"


REPEAT_PLACEMENTS: Final = """
[placement.again]                 # GET /v1/recommend/USER?placement=again
list = "again"                    # items that the user had, the most due first

[placement.discover]              # GET /v1/recommend/USER?placement=discover
list = "for_you"
filter_seen = true                # only items that are new to the user; weights chosen on such items
"""
OPTIONAL_NOTES: Final = {"anonymous_id": "device or browser", "time_offset": "time of day"}


def _min_new(new_items: float) -> str:
    """Line of `min_new`, if users of a log with repeats also take new items."""
    if new_items < MIN_NEW_ITEM_SHARE:
        return ""
    share = f"{new_items * 100:.0f} % of what users take is new to them"
    return f"min_new = {MIN_NEW}                   # {share}; evaluation prints the cost in NDCG, 0 turns it off\n"


def _further_placements(repeats: float) -> str:
    """Placements of items to buy again and of new items.

    A comment where every list is new.
    """
    if repeats < MIN_REPEAT_SHARE:
        return "# users rarely repeat an item, so home leaves out seen items and needs no placement `discover`\n"
    return REPEAT_PLACEMENTS


def _optional_columns(data: Data) -> dict[str, str]:
    """Notes of the columns that are written only if the log has them."""
    return {name: why for name, why in OPTIONAL_NOTES.items() if getattr(data.columns, name)}


def _layout(data: Data, reasons: Mapping[str, str]) -> str:
    """Lines of the keys that differ from their defaults, below their reasons."""
    default = Data()
    lines = []
    for key in LAYOUT_KEYS:
        value = getattr(data, key)
        if value == getattr(default, key):
            continue
        if reason := reasons.get(f"data.{key}"):
            lines.append(f"# {printable(reason)}")
        lines.append(f"{key} = {_value(value)}")
    return "".join(f"{line}\n" for line in lines)


def _subtables(data: Data, reasons: Mapping[str, str]) -> list[str]:
    """Tables ``[data.fallback]`` and ``[data.cell]``, if they are needed."""
    blocks = []
    fallback = {name: names for name, names in data.fallback.model_dump().items() if names}
    if fallback:
        blocks.append("\n[data.fallback]                   # read where the column above is blank\n")
        blocks += [f"{name} = {_value(names)}\n" for name, names in fallback.items()]
    if data.cell.column:
        blocks.append(
            "\n[data.cell]                       # "
            + printable(reasons.get("data.cell", "cells of several items"))
            + "\n"
        )
        blocks += [f"{name} = {_text(value)}\n" for name, value in data.cell.model_dump().items()]
    return blocks


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _list(value) if isinstance(value, tuple) else _text(str(value))


def _column(name: str, column: str, why: str) -> str:
    line = f"{name} = {_text(column)}"
    return f"{line:<33} # {why}\n" if why else f"{line}\n"


def _segment(segment: str) -> str:
    return f"{_text(segment):<23} # a user field; popular items per value"


def _text(value: str) -> str:
    """TOML string of a text; JSON's escapes are valid except for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(values: tuple[str, ...]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"


def _table(rules: Mapping[str, float | str]) -> str:
    """Inline table: {"view" = 1, ...}."""
    entries = [
        f"{_key(text)} = {_text(value) if isinstance(value, str) else f'{value:g}'}" for text, value in rules.items()
    ]
    return "{ " + ", ".join(entries) + " }" if entries else "{}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)
