"""Test suites that custom models and stores inherit.

    class TestMine(recloop.testing.ModelContract):
        model = "acme.models:Mine"

    class TestOther(recloop.testing.StoreContract):
        urls = ("sqlite:////srv/log.db", "sqlite:////srv/decisions.db", "sqlite:////srv/control.db")

The tests check served lists, correct items and stored rows, not internal shapes. They need the extra ``testing``.
"""

from recloop.errors import UserError

try:
    from recloop.testing.model import Fitted, ModelContract, assert_same, fit_on_world
    from recloop.testing.store import StoreContract
except ModuleNotFoundError as error:
    if error.name != "pytest":
        raise
    raise UserError("recloop.testing", "", "pytest, in the extra testing", 'pip install "recloop[testing]"') from None

__all__ = ["Fitted", "ModelContract", "StoreContract", "assert_same", "fit_on_world"]
