"""Read settings from file, environment and command line into one tree.

The later source wins: ``recloop.toml``, the environment (``RECLOOP_SERVE__PORT=9000``), the command line
(``--set serve.port=9000``). An error about an unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, Final

import pydantic
import tomli_w

from recloop.config import FILE, Config, Stores
from recloop.config.store_address import POSTGRES_FORM, POSTGRES_STORES, is_postgres, without_password
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.records import FUSED_SOURCES

RENAMED: Final = {
    "counts": "baselines",
    "features.history": "features.max_history",
    "features.request": "features.context",
    "train.budget": "train.time_budget",
    "placement.*.mix": "placement.*.weights",
    "placement.*.k": "placement.*.n",
    "serve.replay": "serve.allow_time_header",
    "release.shadow": "release.shadow_share",
    "release.experiment": "release.experiment_share",
    "release.gates.margin": "release.gates.max_ndcg_loss",
    "release.gates.slice_drop": "release.gates.max_slice_loss",
    "release.gates.parity": "release.gates.max_unexplained",
    "release.gates.latency": "release.gates.max_latency_ratio",
    "release.gates.cold_coverage_drop": "release.gates.max_cold_coverage_loss",
    "update.replay": "update.replay_ratio",
}
"""Old key -> new key; ``*`` is any name. An old key is an error in a project and is translated in an old bundle."""
MIN_NAME_SIMILARITY: Final = 0.6
"""Similarity by `difflib` from which an unknown key is a misspelt one."""
MIN_SOURCE_SIMILARITY: Final = 0.8
"""As `MIN_NAME_SIMILARITY` for a source of ``placement.NAME.weights``."""
RENAMED_VALUES: Final = {("features.context", "gap"): "days_since_last"}
"""(new key, old value of its list) -> new value."""


def build(tree: Mapping[str, Any], sets: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    """Check a parsed file with the environment and settings; see `open_project`."""
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
        raise UserError(key, first["input"], _expectation(first), f"correct {key} in {FILE}") from None
    _check_stores(config.stores)
    _check_lists(config)
    return config


def dump(config: Config) -> str:
    """Write the whole tree as TOML, for ``runs/RUN/config.toml`` and the fingerprint.

    Equal configurations give equal text.
    """
    return tomli_w.dumps(config.model_dump(mode="json", by_alias=True))


@cache
def new_key(key: str) -> str:
    """Return the present name of a dotted key.

    A key inside a renamed section is translated too.
    """
    for old, new in RENAMED.items():
        found = re.fullmatch(re.escape(old).replace(r"\*", "(.+)") + r"(\..+)?", key)
        if found:
            *names, inside = found.groups()
            return "".join([new.replace("*", names[0]) if names else new, inside or ""])
    return key


def translate_recorded(settings: Mapping[str, Any]) -> JsonTree:
    """Translate the settings that a bundle recorded to present keys and values.

    The keys are dotted.
    """
    return {new_key(key): _new_value(new_key(key), value) for key, value in settings.items()}


def _new_value(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [RENAMED_VALUES.get((key, part), part) if isinstance(part, str) else part for part in value]
    return value


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
            raise UserError(
                ".".join(path), value, f"a key under a table ({part} is not a table)", f"recloop --set {path[0]}=..."
            )
        tree = inner
    tree[path[-1]] = value


def _value(text: str) -> Any:
    """Parse a setting as TOML; text that is not a TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _known(section: type[pydantic.BaseModel], tree: Mapping[str, Any], prefix: str) -> None:
    """Reject the first unknown key, naming the nearest known one."""
    names = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    for key, value in tree.items():
        if key not in names:
            if section.model_config.get("extra") == "allow":
                continue
            if new_key(prefix + key) != prefix + key:
                _refuse_renamed(prefix + key, value, prefix + key, new_key(prefix + key))
            raise _unknown_key(prefix, key, value, names)
        if isinstance(value, Mapping):
            _known_inside(names[key], value, f"{prefix}{key}.")
        for part in value if isinstance(value, list) else ():
            if isinstance(part, str) and (prefix + key, part) in RENAMED_VALUES:
                _refuse_renamed(prefix + key, part, part, RENAMED_VALUES[prefix + key, part])


def _unknown_key(prefix: str, key: str, value: Any, names: Collection[str]) -> UserError:
    matches = difflib.get_close_matches(key, names, n=1, cutoff=MIN_NAME_SIMILARITY)
    if matches:
        near = matches[0]
        return UserError(prefix + key, value, f"a known key; nearest: {prefix}{near}", f"rename it to {near} in {FILE}")
    section = f"[{prefix.removesuffix('.')}]" if prefix else FILE
    return UserError(
        prefix + key, value, f"a key of {section}: {', '.join(names)}", f"remove {prefix + key} from {FILE}"
    )


def _refuse_renamed(key: str, value: Any, old: str, new: str) -> None:
    raise UserError(key, value, f"{new}, the new name of {old}", f"rename {old} to {new} in {FILE}")


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


def _check_stores(stores: Stores) -> None:
    """Refuse an address that a store cannot have."""
    for (name, address), (_, default) in zip(stores, Stores(), strict=True):
        key = f"stores.{name}"
        if address != default and not (key in POSTGRES_STORES and is_postgres(address)):
            expected = f"{default} or {POSTGRES_FORM}" if key in POSTGRES_STORES else default
            raise UserError(key, without_password(address), expected, f"remove {key} from {FILE}")


def _check_sources(key: str, sources: Collection[str]) -> None:
    """Refuse a misspelt source; other names may belong to a user's model."""
    for source in sorted(set(sources) - set(FUSED_SOURCES)):
        nearest = difflib.get_close_matches(source, FUSED_SOURCES, n=1, cutoff=MIN_SOURCE_SIMILARITY)
        if nearest:
            raise UserError(
                f"{key}.{source}", source, f"a known source; nearest: {nearest[0]}", f"correct {key} in {FILE}"
            )


def _check_lists(config: Config) -> None:
    """Check the sources and kinds of lists.

    Lists about an item have their own sources. Requests without an item use ``home``; those for similar items use
    ``similar``.
    """
    for name, placement in config.placement.items():
        about = placement.list == "similar"
        mixed = set() if placement.weights == "auto" else set(placement.weights)
        _check_sources(f"placement.{name}.weights", mixed)
        for setting, value in (("min_new", placement.min_new), ("cold_share", placement.cold_share)):
            if value > 0 and placement.list != "for_you":
                key = f"placement.{name}.{setting}"
                raise UserError(key, value, f"0 for a list `{placement.list}`", f"remove {key} in {FILE}")
        if about and mixed - {"model", "neighbours"}:
            key = f"placement.{name}.weights"
            raise UserError(
                key,
                placement.weights,
                "model and neighbours only, for a list about an item",
                f"correct {key} in {FILE}",
            )
        if about if name == "home" else (name == "similar" and not about):
            expected = (
                "a list for a user: for_you, again, popular or latest"
                if about
                else "similar, because its requests name an item"
            )
            raise UserError(
                f"placement.{name}.list", placement.list, expected, f"correct placement.{name}.list in {FILE}"
            )
