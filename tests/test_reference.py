"""Pages of docs/reference contain every key, verb, option, exit code, route and schema."""

from __future__ import annotations

import re
from collections.abc import Iterator

import config_page
import generate
import pydantic
import pytest

from recloop.config import Config
from recloop.errors import RecloopError
from recloop.serve import openapi


def page(name: str) -> str:
    return (generate.FOLDER / f"{name}.md").read_text("utf-8")


def test_reference_folder_holds_generated_pages_only() -> None:
    assert {file.name for file in generate.FOLDER.iterdir()} == set(generate.PAGES)


def tables_of(section: type[pydantic.BaseModel], path: str = "") -> Iterator[tuple[str, list[str]]]:
    """(table of recloop.toml, its keys), for tables whose names are fixed."""
    children = {
        name: field.annotation
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)
    }
    keys = [field.alias or name for name, field in section.model_fields.items() if name not in children]
    yield path, keys
    for name, child in children.items():
        yield from tables_of(child, f"{path}.{name}".strip("."))


@pytest.mark.parametrize(("path", "keys"), [pair for pair in tables_of(Config) if pair[0]])
def test_config_page_names_every_key(path: str, keys: list[str]) -> None:
    section = page("config").split(f"## `[{path}]`")[1].split("\n## `[")[0]
    whole = page("config")
    assert [key for key in keys if f"| `{key}` |" not in section and f"`[{path}.{key}" not in whole] == []


def test_config_descriptions_are_one_sentence() -> None:
    for field, text in config_page.config_descriptions().items():
        assert re.fullmatch(r"[A-Z].{8,}\.", text), field


def test_cli_page_names_every_verb_and_option() -> None:
    for name, command in generate.commands().items():
        section = re.split(rf"### `recloop {name}(?=[` ])", page("cli"))[1].split("\n### ")[0]
        options = [one.opts for one in command.params if one.param_type_name == "option" and not one.hidden]
        assert [opts for opts in options if opts != ["--help"] and ", ".join(opts) not in section] == [], name


def errors(kind: type[RecloopError] = RecloopError) -> Iterator[type[RecloopError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from errors(child)


def test_cli_page_names_every_exit_code() -> None:
    codes = {0, 130, *(error.exit_code for error in errors())}
    assert [code for code in sorted(codes) if f"| {code} |" not in page("cli")] == []


def test_rest_page_names_every_route_and_schema() -> None:
    document = openapi.document()
    routes = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert [route for route in routes if f"## `{route}`" not in page("rest")] == []
    assert [name for name in document["components"]["schemas"] if f"### {name}\n" not in page("rest")] == []
