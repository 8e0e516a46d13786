"""The public names of recloop, each loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recloop import testing
    from recloop.errors import RecloopError, UserError
    from recloop.fitted import Recommendations, fit, load
    from recloop.shop import Shop
    from recloop.shop import open_shop as open  # noqa: A004
    from recloop.world import World

__version__ = "0.1.0"

_HOMES = {
    "fit": "recloop.fitted",
    "load": "recloop.fitted",
    "Recommendations": "recloop.fitted",
    "open": "recloop.shop",
    "Shop": "recloop.shop",
    "RecloopError": "recloop.errors",
    "UserError": "recloop.errors",
    "World": "recloop.world",
}
__all__ = ["RecloopError", "Recommendations", "Shop", "UserError", "World", "fit", "load", "open", "testing"]


def __getattr__(name: str) -> Any:
    """A public name, from the file it lives in."""
    if name == "testing":
        return importlib.import_module("recloop.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'recloop' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = importlib.import_module(_HOMES[name])
    return getattr(home, "open_shop" if name == "open" else name)
