"""Page of docs/reference with every key of recloop.toml."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, get_args, get_origin

import pydantic
from annotated_types import Ge, Gt, Le, Lt
from reference_page import page, table

from recloop import config

BOUNDS: Final = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def config_descriptions() -> dict[tuple[str, str], str]:
    """Docstrings below the fields of recloop.config, by class and field."""
    found = {}
    modules = (config, config.catalog, config.data, config.release, config.serve, config.training)
    for node in (node for module in modules for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert isinstance(field.target, ast.Name)
                    found[node.name, field.target.id] = str(ast.literal_eval(text.value))
    return found


def config_page() -> str:
    """Page with every key of recloop.toml by table."""
    lines = [
        "Every key of `recloop.toml` with its type and default. `--set a.b=c` overrides `RECLOOP_A__B`, which overrides the file.",
        "An unknown key is an error that names the nearest known one. A condition is SQL over the fields of a row.",
        "Effects of a changed setting in an existing project: [stability](../stability.md#a-changed-reclooptoml).",
        "",
    ]
    return page("Configuration", [*lines, *_section(config.Config, "", config_descriptions())])


def _section(section: type[pydantic.BaseModel], prefix: str, texts: Mapping[tuple[str, str], str]) -> Iterator[str]:
    rows, inner = [], []
    for name, field in section.model_fields.items():
        key = field.alias or name
        text = texts.get((section.__name__, name))
        if text is None:
            sys.exit(f"src/recloop/config: no docstring below {section.__name__}.{name}; write one sentence")
        child, placeholder = _child(field.annotation)
        if child is not None:
            inner.append((child, f"{prefix}{key}{placeholder}.", text))
        if child is None or not isinstance(field.default, pydantic.BaseModel | dict):
            rows.append((f"`{key}`", _type(field.annotation, field.metadata), f"`{_toml(field.default)}`", text))
    if rows:
        yield from table(("key", "type", "default", "meaning"), rows)
    for child, path, text in inner:
        yield from (f"## `[{path.rstrip('.')}]`", "", text, "")
        yield from _section(child, path, texts)


def _child(annotation: Any) -> tuple[type[pydantic.BaseModel] | None, str]:
    """Table under a key, if any, and the part that its name adds to the path."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation, ""
    if get_origin(annotation) is dict and isinstance(get_args(annotation)[1], type):
        value = get_args(annotation)[1]
        return (value, ".NAME") if issubclass(value, pydantic.BaseModel) else (None, "")
    for choice in get_args(annotation) if get_origin(annotation) is not tuple else ():
        if isinstance(choice, type) and issubclass(choice, pydantic.BaseModel):
            return choice, ""
    return None, ""


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Name a type in TOML terms, with its bounds."""
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__, [m for item in annotation.__metadata__ for m in _constraints(item)])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if origin is not None:
        return " or ".join(_type(choice) for choice in arguments)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "table"
    name = {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]
    limits = [
        f"{word} {getattr(item, attribute):g}"
        for kind, attribute, word in BOUNDS
        for item in metadata
        if isinstance(item, kind)
    ]
    return ", ".join([name, *limits])


def _constraints(item: Any) -> list[Any]:
    return list(item.metadata) if hasattr(item, "metadata") else [item]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, pydantic.BaseModel):
        return _toml(value.model_dump())
    if isinstance(value, dict):
        inside = ", ".join(
            f"{key if key.isidentifier() else _toml(key)} = {_toml(item)}" for key, item in value.items()
        )
        return f"{{ {inside} }}" if inside else "{}"
    return f"{value:g}" if isinstance(value, float) and value != int(value) else str(value)
