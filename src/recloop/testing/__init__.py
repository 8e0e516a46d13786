"""Test suites that custom models and stores inherit.

    class TestMine(recloop.testing.ModelContract):
        model = "acme.models:Mine"

    class TestOther(recloop.testing.StoreContract):
        urls = ("sqlite:////srv/log.db", "sqlite:////srv/decisions.db", "sqlite:////srv/control.db")

The tests check served lists, correct items and stored rows, not internal shapes.
"""

from recloop.testing.model import Fitted, ModelContract, assert_same, fit_on_world
from recloop.testing.store import StoreContract

__all__ = ["Fitted", "ModelContract", "StoreContract", "assert_same", "fit_on_world"]
