"""The public names of recloop, each loaded on first use."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recloop import testing
    from recloop.api.fitted_recommender import FittedRecommender
    from recloop.api.fitting import fit, load
    from recloop.api.project_folder import ProjectFolder
    from recloop.api.project_folder import open_folder as open  # noqa: A004
    from recloop.client.errors import ServiceError
    from recloop.client.http import AsyncClient, Client
    from recloop.errors import RecloopError, UserError
    from recloop.serve.page_token import sign
    from recloop.simulation.shop import SimulatedShop

__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported

_HOMES = {
    "Client": "recloop.client.http",
    "AsyncClient": "recloop.client.http",
    "ServiceError": "recloop.client.errors",
    "fit": "recloop.api.fitting",
    "load": "recloop.api.fitting",
    "FittedRecommender": "recloop.api.fitted_recommender",
    "open": "recloop.api.project_folder",
    "ProjectFolder": "recloop.api.project_folder",
    "RecloopError": "recloop.errors",
    "UserError": "recloop.errors",
    "SimulatedShop": "recloop.simulation.shop",
    "sign": "recloop.serve.page_token",
}
__all__ = [
    "AsyncClient",
    "Client",
    "FittedRecommender",
    "ProjectFolder",
    "RecloopError",
    "ServiceError",
    "SimulatedShop",
    "UserError",
    "fit",
    "load",
    "open",
    "sign",
    "testing",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name == "testing":
        return importlib.import_module("recloop.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'recloop' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = importlib.import_module(_HOMES[name])
    return getattr(home, "open_folder" if name == "open" else name)
