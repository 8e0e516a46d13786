"""Template of the recloop.toml that `init` writes, with the reason of every guess."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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


def config_text(
    data: Data,
    info: str,
    events: tuple[Events, str],
    resolution: str,
    repeats: float,
    new_items: float,
    fields: Mapping[str, Mapping[str, Mapping[str, Any]]],
    catalog: Mapping[str, str],
    segment: str,
    scenario: tuple[str, str],
    rules: Clean,
    reasons: Mapping[str, str],
) -> str:
    """Render recloop.toml.

    Args:
        data: The guessed ``[data]``.
        info: Summary of files, encoding and stamp format.
        events: The guessed ``[events]`` and the reason.
        resolution: Resolution of the stamps if the burst rule is off, else "".
        repeats: Share of repeats among positive rows.
        new_items: Share of new items among the newest items of users; 0 for a log without repeats.
        fields: By side and name: kind, from, dim, why.
        catalog: Keys of ``[catalog]`` that differ from their defaults.
        segment: ``serve.segment``.
        scenario: Name of the scenario and the reason.
        rules: The guessed ``[clean]``.
        reasons: Reason by key of the guesses.
    """
    blocks = [
        HEAD_TEMPLATE.format(
            info=printable(info), events=_text(data.events), items=_text(data.items), users=_text(data.users),
            time_unit=_text(data.time_unit), layout=_layout(data, reasons),
        ),
        *(
            _column(column, getattr(data.columns, column), reasons.get(f"data.columns.{column}", why) if column in OPTIONAL_NOTES else why)
            for column, why in {**COLUMN_NOTES, **_optional_columns(data)}.items()
        ),
        *_subtables(data, reasons),
        EVENTS_TEMPLATE.format(
            why=printable(events[1]), neutral=_list(events[0].neutral), positive=_list(events[0].positive),
            negative=_list(events[0].negative), weights=_table(events[0].weights), history=_list(events[0].history),
            undo=_table(events[0].undo),
        ),
    ]  # fmt: skip
    burst = "burst = { events = 10, seconds = 1 }   # more rows at once than a person produces"
    if resolution:
        burst = f'burst = "off"                     # stamps have a resolution of one {resolution}'
    seen_rule = "never show seen items" if repeats < MIN_REPEAT_SHARE else "seen items may be shown again"
    blocks.append(
        CLEAN_TEMPLATE.format(
            burst=burst,
            duplicates=_text(rules.duplicates),
            equal="" if rules.duplicates == "exact" else ": equal rows are a quantity",
            exclude_items=f"exclude_items = {_list(rules.exclude_items)}   # not products\n"
            if rules.exclude_items
            else "",
            filter_seen="true" if repeats < MIN_REPEAT_SHARE else "false",
            repeats=f"{repeats * 100:.1f} % of positive rows are repeats: {seen_rule}",
        )
    )
    for side, features in fields.items():
        for name, field in features.items():
            blocks.append(f"\n[features.{side}.{_key(name)}]".ljust(35) + f"# {field['why']}\n")
            blocks.append(f'kind = "{field["kind"]}"\nfrom = {_text(field["from"])}\ndim = {field["dim"]}\n')
            if field.get("separator"):
                blocks[-1] += f"separator = {_text(field['separator'])}\n"
    if catalog:
        lines = "".join(f"{key} = {_text(column)}\n" for key, column in catalog.items())
        blocks.append(f"\n[catalog]                         # columns with a meaning of their own\n{lines}")
    blocks.append(
        TAIL_TEMPLATE.format(
            scenario=scenario[0],
            reason=printable(scenario[1]),
            segment=_segment(segment),
            min_new=_min_new(new_items),
            further=_further_placements(repeats),
        )
    )
    return "".join(blocks)


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
