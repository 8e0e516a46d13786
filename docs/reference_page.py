"""Markdown of a page of docs/reference, and the sentences of descriptions.toml."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).resolve().parent
DESCRIPTIONS: Final[dict[str, Any]] = tomllib.loads((DOCS / "descriptions.toml").read_text("utf-8"))
COMMAND: Final = "python docs/generate.py --write"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Format a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def described(*path: str) -> str:
    """Return the sentence of ``descriptions.toml`` at a path.

    Raises:
        SystemExit: the sentence is missing.
    """
    node: Any = DESCRIPTIONS
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, str):
        sys.exit(f"docs/descriptions.toml: no sentence for {' / '.join(path)}; add one under [{'.'.join(path[:-1])}]")
    return node


def page(title: str, lines: Iterable[str]) -> str:
    """Format a page with its title."""
    return "\n".join([f"# {title}", "", f"<!-- generated: {COMMAND} -->", "", *lines]).rstrip() + "\n"


def first_sentence(text: str | None) -> str:
    """First paragraph of a docstring on one line, with plain code marks."""
    return " ".join((text or "").split("\n\n")[0].split()).replace("``", "`")
