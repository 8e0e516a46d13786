"""Contracts that a stranger inherits in a test: a model's, played on the seeded world, and a store's.

    class TestMine(recloop.testing.ModelContract):
        model = "acme.models:Mine"

    class TestOther(recloop.testing.StoreContract):
        urls = ("sqlite:////srv/log.db", "sqlite:////srv/decisions.db", "sqlite:////srv/control.db")

The tests speak of what is served and stored: lists, right items, rows; never of shapes inside.
"""

from recloop.testing.model import Fitted, ModelContract, assert_same, fit_on_world
from recloop.testing.store import StoreContract

__all__ = ["Fitted", "ModelContract", "StoreContract", "assert_same", "fit_on_world"]
