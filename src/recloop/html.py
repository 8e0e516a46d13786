"""Jinja templates of the pages that recloop writes as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def load_template(file: Path, filters: Mapping[str, Any]) -> jinja2.Template:
    """Load a template that escapes its values and rejects unknown names.

    Args:
        filters: Functions of a value, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(file.name)
