"""A project's settings as they are read: file, environment and command line into one tree, an unknown key refused.

Three places set a key, the later beats the earlier: ``recloop.toml``, the environment (``RECLOOP_SERVE__PORT=9000``),
the command line (``--set serve.port=9000``). A refusal of an unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
import tomli_w

from recloop.config import FILE, LATER, Config, Section
from recloop.errors import UserError
from recloop.json_object import JsonTree


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


def _copy(tree: Mapping[str, Any]) -> JsonTree:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _put(tree: JsonTree, path: list[str], value: Any) -> None:
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
