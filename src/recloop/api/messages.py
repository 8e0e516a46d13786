"""Errors of the Python API: names and fixes are Python arguments."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Final, Literal, ParamSpec, TypeVar

from recloop.config import Config
from recloop.errors import BundleError, UserError

P = ParamSpec("P")
T = TypeVar("T")
Caller = Literal["fit", "project"]

KEY: Final = r"(?P<key>[a-z_]+(?:\.[A-Za-z_]+)+)"
SETTING: Final = re.compile(
    rf"(?:--set|recloop update --set) (?P<quote>['\"]?){KEY}\s*=\s*(?P<value>.+?)(?P=quote)(?=$| --set| or | to |, |;)"
)
SET_COLUMN: Final = re.compile(r"\bset data\.columns\.(?P<field>[a-z_]+)")
SET_KEY: Final = re.compile(rf"\b(?:set|correct) {KEY}(?: in recloop\.toml)?")
SAME_SECTION: Final = re.compile(
    r'config=\{"(?P<section>[a-z]+)": \{(?P<settings>[^{}]*)\}\} config=\{"(?P=section)": \{'
)
UNDER_SECTION: Final = re.compile(r"(?P<name>[a-z_]+) = (?P<values>[^;]+?) under \[(?P<section>[a-z]+)\]")
COMMAND: Final = re.compile(r"\brecloop (?P<verb>[a-z]+)\b(?P<rest>[^;]*)")
SECTIONS: Final = tuple(Config.model_fields)
FIT_FIXES: Final = {
    "recloop doctor --signals, then name a type under events.positive": 'config={"events": {"positive": ["TYPE"]}}',
    "recloop doctor": 'check columns={...} and config={"clean": {...}}',
    "recloop init FILE": 'columns={"user_id": "NAME", "item_id": "NAME", "timestamp": "NAME"}',
    "recloop train popular": 'model="popular"',
    "recloop status": "the path that rec.save returned",
    'name = "sasrec"': 'model="sasrec"',
    "set [data.columns]": 'columns={"user_id": "NAME", ...}',
    "use a longer log, or check data.columns.timestamp": 'a longer log, or columns={"timestamp": "NAME"}',
}
"""Fixes of the command line, whole -> the fix in a call of `fit`."""


def python_errors(caller: Caller) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function raise `UserError` with Python arguments as names and fixes."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> T:
            try:
                return function(*arguments, **named)
            except UserError as error:
                raise in_python(error, caller) from error.__cause__

        return call

    return decorate


def in_python(error: UserError, caller: Caller) -> UserError:
    """Rewrite an error for a caller in Python; sample rows become a note."""
    kind = BundleError if isinstance(error, BundleError) else UserError
    name = argument_of(error.name) if caller == "fit" else error.name
    rewritten = kind(name, error.value, error.expected, python_fix(error.fix, caller), error.samples)
    if error.samples:
        rewritten.add_note("\n".join(error.samples))
    return rewritten


def argument_of(name: str) -> str:
    """Python argument of a key of recloop.toml.

    Example: ``data.columns.user_id`` is ``columns["user_id"]``.
    """
    name = {"FILE": "events"}.get(name, name.removeprefix("--"))
    key, space, rest = name.partition(" ")
    parts = key.split(".")
    if key == "data.events":
        return f"events{space}{rest}"
    if key == "model.name":
        return f"model{space}{rest}"
    if key == "split.protocol":
        return f"holdout{space}{rest}"
    if parts[:2] == ["data", "columns"] and len(parts) == 3:
        return f'columns["{parts[2]}"]{space}{rest}'
    if len(parts) > 1 and parts[0] in SECTIONS:
        return "config" + "".join(f'["{part}"]' for part in parts) + space + rest
    return name


def python_fix(fix: str, caller: Caller) -> str:
    """Rewrite a fix of the command line for `fit` or for an opened project."""
    if caller == "fit":
        for text, replacement in FIT_FIXES.items():
            fix = fix.replace(text, replacement)
    fix = fix.replace("recloop update --set", "--set")
    fix = SETTING.sub(lambda match: _setting(match["key"], match["value"].strip(), caller), fix)
    fix = SAME_SECTION.sub(r'config={"\g<section>": {\g<settings>, ', fix).replace(") recloop.open(folder, ", ", ")
    if caller == "fit":
        fix = UNDER_SECTION.sub(r'config={"\g<section>": {"\g<name>": \g<values>}}', fix)
        fix = SET_COLUMN.sub(lambda match: f'columns={{"{match["field"]}": "NAME"}}', fix)
        fix = SET_KEY.sub(lambda match: f"correct {argument_of(match['key'])}", fix)
        return fix.replace(" in recloop.toml", "")
    return COMMAND.sub(lambda match: _call(match["verb"], match["rest"]), fix)


def _setting(key: str, value: str, caller: Caller) -> str:
    """One setting as an argument of `fit` or of `open`."""
    value = {"true": "True", "false": "False"}.get(value, value)
    if re.fullmatch(r"[a-z][a-z_-]*", value):
        value = f'"{value}"'
    if caller == "project":
        return f"recloop.open(folder, {key.replace('.', '__')}={value})"
    parts = key.split(".")
    if parts[:2] == ["data", "columns"]:
        return f'columns={{"{parts[2]}": {value}}}'
    for part in reversed(parts):
        value = f'{{"{part}": {value}}}'
    return f"config={value}"


def _call(verb: str, rest: str) -> str:
    """One command as a call of an opened project; `init` and `demo` stay commands."""
    if verb in {"init", "demo"}:
        return f"recloop {verb}{rest}"
    words, comma, remark = rest.partition(",")
    arguments = []
    options = words.split()
    while options:
        word = options.pop(0)
        if not word.startswith("-"):
            arguments.append(f'"{word}"')
            continue
        option = word.lstrip("-").replace("-", "_")
        has_value = bool(options) and not options[0].startswith("-")
        arguments.append(f"{option}={_literal(options.pop(0))}" if has_value else f"{option}=True")
    return f"shop.{verb}({', '.join(arguments)}){comma}{remark}"


def _literal(text: str) -> str:
    return text if text.isdigit() else f'"{text}"'
