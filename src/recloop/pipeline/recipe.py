"""Bundle recipe: a hash of everything except data that determines its lists.

A child made by `recloop update` with its parent's recipe is a refresh: the same settings, trained on newer rows. The
hash covers the settings that a manifest records (`recloop.pipeline.config_changes`), without ``[data]``.
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
    """Hash the recorded settings, without ``[data]``, and the code version."""
    settings = {key: value for key, value in config_changes.recorded(config).items() if not key.startswith("data.")}
    tree = {"settings": settings, "code": _code(ENCODE_VERSION, __version__)}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def child_recipe(config: Config, parent: Manifest) -> str:
    """Return a child's recipe: the parent's if neither settings nor code differ.

    Args:
        parent: Manifest of the parent. The model of a `recloop train NAME` bundle differs from the settings, and so
            does its child's.
    """
    same_code = _code(parent.encode_version, parent.recloop or "") == _code(ENCODE_VERSION, __version__)
    differing = [
        change for change in config_changes.changed_keys(config, parent.config) if not change.key.startswith("data.")
    ]
    if parent.recipe is not None and parent.config is not None and same_code and not differing:
        return parent.recipe
    return recipe_of(config)


def is_refresh(child: Manifest, parent: Manifest) -> bool:
    """Return whether a child's manifest names this parent and the same recipe."""
    return child.parent == parent.bundle and child.recipe is not None and child.recipe == parent.recipe


def _code(encode_version: int | None, version: str) -> list[Any]:
    """Return the code version: encoding version, major and minor version of recloop."""
    return [encode_version, *version.split(".")[:2]]
