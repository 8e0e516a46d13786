"""Generate docs/reference from the code; ``--write`` writes the pages.

The pages are config, commands, REST, bundle, stores and metrics. Sentences that the code does not contain are in
``descriptions.toml``. Without ``--write`` the pages are compared, and the exit code is 1 if one of them is stale.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import typer
from config_page import config_page
from prometheus_client.parser import text_string_to_metric_families
from reference_page import COMMAND, DESCRIPTIONS, DOCS, described, first_sentence, page, table

from recloop import errors
from recloop.cli import app, terminal
from recloop.client.batches import STATUSES
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.monitoring import exposition
from recloop.monitoring.last_update import LastUpdate
from recloop.policy import CatalogRules, NewItems, Placement, Policy, RankerSpec, ScorerSpec
from recloop.serve import openapi
from recloop.serve.alarms import alarm_families
from recloop.serve.event_endpoint import EVENTS_PATH
from recloop.serve.list_endpoint import LIST_ROUTE
from recloop.serve.request_metrics import RequestMetrics, request_families
from recloop.serve.row_counts import row_families
from recloop.storage import control, decisions, event_schema
from recloop.storage.api_keys import ROUTE_SCOPES, KeyScope

FOLDER: Final = DOCS / "reference"
STORES: Final = {
    "log.db": event_schema.SCRIPT,
    "decisions.db": decisions.SCRIPT,
    "control.db": control.SCRIPT,
}
RECORDS: Final[Mapping[str, type[Any]]] = {
    "manifest.json": Manifest,
    "manifest.json: model": ModelSpec,
    "manifest.json: data": TrainingRows,
    "manifest.json: train": Training,
    "manifest.json: scorers.SOURCE": ScorerSpec,
    "policy.json": Policy,
    "policy.json: placements.NAME": Placement,
    "policy.json: placements.NAME.new": NewItems,
    "policy.json: ranker": RankerSpec,
    "policy.json: catalog": CatalogRules,
}
VALUES: Final = {"int": "NUMBER", "int range": "NUMBER", "float": "NUMBER"}
"""Names of an option's value by its type; other types are text."""
NOT_IN_JSON: Final = {"other_keys", "source"}
"""Fields of a record that are not keys of its JSON: keys of later versions, and the name of the record."""


# ---- cli.md


def commands() -> dict[str, Any]:
    """All commands by name, those of a group as ``GROUP COMMAND``.

    They have no public type, because typer contains a copy of click.
    """
    return dict(_commands(typer.main.get_command(app)))


def _commands(group: Any, prefix: str = "", panel: str = "") -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        command = group.commands[name]
        command.rich_help_panel = panel or command.rich_help_panel
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ", command.rich_help_panel)
        elif not command.hidden:
            yield prefix + name, command


def exit_codes() -> list[tuple[str, str]]:
    """Exit codes with their meanings, from the exception tree."""
    by_code = {0: "Done, or there was nothing new.", terminal.INTERRUPTED: "Interrupted."}
    for error in (errors.RecloopError, *errors.RecloopError.__subclasses__()):
        by_code[error.exit_code] = described("exit_codes", error.__name__)
    return [(str(code), by_code[code]) for code in sorted(by_code)]


def cli_page() -> str:
    """Page with every command by help panel."""
    lines = [
        "Run in the project folder, or with `-C DIR`. `--set KEY=VALUE` overrides one setting and may be repeated.",
        "Both go before or after the command. Results are written to stdout, progress and errors to stderr.",
        "With `--json` stdout is exactly one JSON object; its keys are listed in [stability](../stability.md).",
        "",
        "## Exit codes",
        "",
        *table(("code", "meaning"), exit_codes()),
    ]
    panel = ""
    for name, command in commands().items():
        here = str(getattr(command, "rich_help_panel", "") or "")
        if here != panel:
            panel = here
            lines += [f"## {panel[:1].upper()}{panel[1:]}", ""]
        lines += _command(name, command)
    return page("Command line", lines)


def _command(name: str, command: Any) -> list[str]:
    shown = [one for one in command.params if not one.hidden and one.name != "help"]
    arguments = [f" {_metavar(one)}" for one in shown if one.param_type_name == "argument"]
    rows = [_parameter(one) for one in shown]
    lines = [f"### `recloop {name}{''.join(arguments)}`", "", first_sentence(command.help), ""]
    return [*lines, *table(("argument", "meaning", "default"), rows)]


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name).upper()


def _parameter(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`", parameter.help or "", "required" if parameter.required else ""
    value = "" if parameter.is_flag else f" {parameter.metavar or VALUES.get(parameter.type.name, 'TEXT')}"
    unset = parameter.default is None or parameter.default is False or not str(parameter.default)
    default = "required" if parameter.required else "" if unset else f"`{parameter.default}`"
    return f"`{', '.join(parameter.opts)}{value}`", parameter.help or "", default


# ---- rest.md


def rest_page() -> str:
    """Page with every route, then every schema."""
    document = openapi.document()
    lines = [
        "JSON over HTTP, generated from the OpenAPI document at `/openapi.json`.",
        "Limits, hosts and keys: [stability](../stability.md#rest).",
        "",
        *_scopes(document["paths"]),
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines += ["## Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _schema(name, schema)
    return page("REST", lines)


def _scopes(paths: Mapping[str, Any]) -> list[str]:
    """Table of the operations that each kind of key opens; a test asks every operation with every kind."""
    kinds = ("no key", *(scope.value for scope in ROUTE_SCOPES), "page token")
    rows = []
    for path, operations in paths.items():
        for method, operation in operations.items():
            scopes = {name for requirement in operation["security"] for name in requirement["api_key"]}
            opened = {*kinds[:-1]} if not scopes else {*scopes, KeyScope.ADMIN.value}
            opened |= {"page token"} if not scopes or path in (LIST_ROUTE, EVENTS_PATH) else set()
            rows.append((f"`{method.upper()} {path}`", *("yes" if kind in opened else "" for kind in kinds)))
    text = (
        "A page token opens the lists and events of its own person only. In a project without keys, operations of `admin`",
        "need the admin token, and the others none. The admin token opens all.",
    )
    return ["## Scopes", "", *text, "", *table(("operation", *kinds), rows)]


def _operation(title: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"## `{title}`", "", f"{operation['summary']}.", ""]
    for requirement in operation["security"]:
        lines += [f"Scope of the key: `{requirement['api_key'][0]}`.", ""]
    parameters = [
        (f"`{one['name']}`", one["in"], _schema_type(one["schema"]), "yes" if one.get("required") else "", one.get("description", ""))
        for one in operation.get("parameters", [])
    ]  # fmt: skip
    lines += table(("parameter", "in", "type", "required", "meaning"), parameters) if parameters else []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body (`{kind}`): {_schema_type(content['schema'])}.", ""]
    responses = [
        (status, response["description"], ", ".join(_schema_type(c["schema"]) for c in response["content"].values()))
        for status, response in operation["responses"].items()
    ]
    return lines + table(("status", "meaning", "body"), responses)


def _schema(name: str, schema: Mapping[str, Any]) -> list[str]:
    required = set(schema.get("required", ()))
    rows = [
        (f"`{key}`", _schema_type(inner), "yes" if key in required else "")
        for key, inner in schema.get("properties", {}).items()
    ]
    text = first_sentence(schema.get("description"))
    return [f"### {name}", "", *([text, ""] if text else []), *table(("field", "type", "always"), rows)]


def _schema_type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name else "text"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_schema_type(inner) for inner in schema.get("anyOf", schema.get("oneOf"))))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_schema_type(schema.get('items', {}))}"
    names = {"string": "text", "object": "object", "boolean": "true or false"}
    limits = [
        f"{word} {schema[key]}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in schema
    ]
    return ", ".join([names.get(str(kind), str(kind)), *limits])


# ---- bundle.md


def bundle_page() -> str:
    """Page with the files of a bundle and the keys of its records."""
    lines = [
        "A bundle is a folder with everything that decides a list. It is written once and never changed.",
        "Its name is `MODEL-YYYYMMDDTHHMMSSZ-HASH8`; rules for reading and rejecting bundles: [stability](../stability.md#bundles).",
        "",
        "## Files",
        "",
        *table(("file", "content"), ((f"`{name}`", text) for name, text in DESCRIPTIONS["bundle"]["files"].items())),
    ]
    for title, record in RECORDS.items():
        rows = [
            (f"`{field.name}`", described("bundle", record.__name__, field.name), _annotation(field.type))
            for field in dataclasses.fields(record)
            if field.name not in NOT_IN_JSON
        ]
        lines += [f"## `{title}`", "", *table(("key", "meaning", "type"), rows)]
    return page("Bundle", lines)


def _annotation(kind: Any) -> str:
    """Type of a field as text, without distinctions that JSON does not make."""
    text = str(kind).replace("Mapping[str, Any]", "object").replace("Mapping[str, ", "object of [")
    return f"`{text.replace('object of [', 'object[').replace(' | None', '?')}`"


# ---- stores.md


def tables(script: str) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """Tables of a store with (column, type, may be null), read from its script."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
        ).fetchall()
        for (name,) in names:
            columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
            yield name, [(column[1], column[2], not column[3] and not column[5]) for column in columns]
    finally:
        connection.close()


def stores_page() -> str:
    """Page with every table and column."""
    lines = [
        "Stores are SQLite files in `store/`; log and control store can be [PostgreSQL schemas](../guide/operations.md#postgresql)",
        "`recloop_log` and `recloop_control` with the same tables. Timestamps are int64 microseconds UTC; ids are text and never parsed.",
        "Rows are never changed. Order and validity of rows: [stability](../stability.md#stores).",
        "",
    ]
    for store, script in STORES.items():
        lines += [f"## `{store}`", ""]
        for name, columns in tables(script):
            rows = [
                (f"`{column}`", kind.lower() + (", optional" if optional else ""), described("stores", name, column))
                for column, kind, optional in columns
            ]
            lines += [
                f"### {name}",
                "",
                described("stores", name, "_"),
                "",
                *table(("column", "type", "meaning"), rows),
            ]
    return page("Stores", lines)


# ---- metrics.md


def metric_families() -> list[tuple[str, str, str, str]]:
    """(name, type, labels, help) of every family of ``GET /metrics``.

    They are read from an exposition with one sample each.
    """
    numbers: dict[str, Any] = dict.fromkeys(exposition.GAUGES, 1.0)
    numbers |= {"sources": {"model": 1.0}, "latency_ms": {"p50": 1.0, "p99": 1.0}}
    seen = types.SimpleNamespace(
        windows={"day": {"live": {"home": numbers}}},
        totals={("live", "home"): 1},
        received={"day": 1},
        proven=dict.fromkeys(exposition.VERIFY_METRICS, 1),
        updated=LastUpdate(0, "nothing", 0.0, is_stopped=False),
    )
    requests = RequestMetrics()
    requests.add("GET", "/v1/status", 200, 0.0)
    families = [*alarm_families(()), *row_families(dict.fromkeys(STATUSES, 0)), *request_families(requests.snapshot())]
    process = dict.fromkeys(exposition.PROCESS_METRICS, 0.0)
    text = exposition.exposition(seen, process, families).decode()  # type: ignore[arg-type]
    rows = []
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family.samples[-1].labels)
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return rows


def metrics_page() -> str:
    """Page with every Prometheus metric."""
    lines = [
        "Prometheus reads these at `GET /metrics`. Labels never contain the id of a user or an item.",
        "Formulas: [diversity and coverage](../definitions/diversity-and-coverage.md).",
        "",
        *table(("name", "type", "labels", "meaning"), metric_families()),
    ]
    return page("Metrics", lines)


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "bundle.md": bundle_page,
    "cli.md": cli_page,
    "config.md": config_page,
    "metrics.md": metrics_page,
    "rest.md": rest_page,
    "stores.md": stores_page,
}


def stale() -> list[str]:
    """Names of pages that differ from the generated ones."""
    return [
        name
        for name, build in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != build()
    ]


def write() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, build in PAGES.items():
        (FOLDER / name).write_text(build(), "utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    elif old := stale():
        sys.exit(f"stale: {', '.join(old)}; run: {COMMAND}")
