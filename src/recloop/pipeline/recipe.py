"""The recipe of a bundle: a hash over everything but the data that determines what it is and what it answers.

A child made by `recloop update` with the recipe of its parent is a refresh: the same thing learned from newer rows. The
settings behind the hash are those that a manifest records (`recloop.pipeline.config_changes`), without ``[data]``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from recloop import __version__
from recloop.config import Config
from recloop.features.spec import ENCODE_VERSION
from recloop.manifest import Manifest
from recloop.pipeline import config_changes


def recipe_of(config: Config) -> str:
    """SHA-256 over the recorded settings that are not ``[data]``, and over the code that reads them."""
    settings = {key: value for key, value in config_changes.recorded(config).items() if not key.startswith("data.")}
    tree = {"settings": settings, "code": _code(ENCODE_VERSION, __version__)}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def child_recipe(config: Config, parent: Manifest) -> str:
    """The recipe of a child by these settings: the parent's where neither the settings nor the code differ.

    Args:
        parent: A bundle that `recloop train NAME` made has another model than its settings; its child has too.
    """
    same_code = _code(parent.encode_version, parent.recloop or "") == _code(ENCODE_VERSION, __version__)
    differing = [
        change for change in config_changes.changed_keys(config, parent.config) if not change.key.startswith("data.")
    ]
    if parent.recipe is not None and parent.config is not None and same_code and not differing:
        return parent.recipe
    return recipe_of(config)


def is_refresh(child: Manifest, parent: Manifest) -> bool:
    """Whether the manifest of a child names this parent, and both the same recipe."""
    return child.parent == parent.bundle and child.recipe is not None and child.recipe == parent.recipe


def _code(encode_version: int | None, version: str) -> list[Any]:
    """The code as far as it counts: the version of the encoding, and major and minor version of recloop."""
    return [encode_version, *version.split(".")[:2]]
