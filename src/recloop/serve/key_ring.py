"""Check of the bearer token of a request against the API keys and the admin token."""

from __future__ import annotations

import hmac
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from recloop.errors import UserError
from recloop.records import SECOND
from recloop.serve.schemas import HttpError
from recloop.storage import api_keys
from recloop.storage.api_keys import ApiKey, KeyScope

LOGGER = logging.getLogger(__name__)
CHECK_SECONDS: Final = 0.5
"""Time after which the file of keys is looked at again."""
USE_SECONDS: Final = 60.0
"""Resolution of the time of the last use."""


@dataclass
class _KeyInUse:
    """A key with its budget of requests.

    Attributes:
        recorded_at: Monotonic time at which its use was last recorded.
    """

    key: ApiKey
    budget: float = math.nan
    filled_at: float = 0.0
    recorded_at: float = -math.inf

    def take(self, seconds: float) -> float:
        """Take one request and return 0, or return the seconds to wait.

        The budget is a token bucket that holds one second's requests, at least one.
        """
        rate = self.key.rate
        if rate is None:
            return 0.0
        capacity = max(1.0, rate)
        if math.isnan(self.budget):
            self.budget = capacity
        self.budget = min(capacity, self.budget + rate * (seconds - self.filled_at))
        self.filled_at = seconds
        if self.budget < 1.0:
            return (1.0 - self.budget) / rate
        self.budget -= 1.0
        return 0.0


class KeyRing:
    """Keys of a project folder, read again within `CHECK_SECONDS` after a change.

    Without a file of keys every route but those of `KeyScope.ADMIN` is open. A file that is damaged or removed while
    serving leaves the last keys in force.

    Args:
        admin_token: Has every scope.

    Raises:
        UserError: the file of keys is damaged or readable by other users.
    """

    def __init__(self, root: Path, admin_token: str) -> None:
        self._root = root
        self._admin_token = admin_token.encode()
        self._keys: dict[str, _KeyInUse] | None = None
        self._identity = self._file_identity()
        keys = api_keys.read(root)
        if keys is not None:
            self._use(keys)
        self._checked_at = time.monotonic()

    def authorize(self, authorization: bytes, scope: KeyScope) -> None:
        """Check that the ``Authorization`` header of a request has a scope.

        Raises:
            HttpError: 401 without a valid key, 403 without the scope, 429 above the rate of the key.
        """
        if scope is KeyScope.PUBLIC:
            return
        seconds = time.monotonic()
        if seconds - self._checked_at > CHECK_SECONDS:
            self._checked_at = seconds
            self._follow_file()
        if self._keys is None and scope is not KeyScope.ADMIN:
            return
        kind, _, token = authorization.partition(b" ")
        token = token.strip()
        if kind.lower() != b"bearer" or not token:
            raise _unauthorized("the request has no key", scope)
        if hmac.compare_digest(token, self._admin_token):
            return
        found = (self._keys or {}).get(api_keys.sha256(token))
        self._check_key(found, scope, seconds)  # a hash tells nothing by its time

    def _check_key(self, found: _KeyInUse | None, scope: KeyScope, seconds: float) -> None:
        if found is None:
            raise _unauthorized("the key is unknown or revoked", scope)
        key = found.key
        if key.is_expired(int(time.time() * SECOND)):
            raise _unauthorized(f"the key {key.name} has expired", scope)
        if not key.allows(scope):
            message = f"the key {key.name} does not have the scope {scope}"
            raise HttpError(403, "missing_scope", message, "Authorization", f"a key with the scope {scope}")
        wait = found.take(seconds)
        if wait > 0:
            expected = f"at most {key.rate:g} requests per second"
            error = HttpError(429, "rate_limit", f"the key {key.name} is above its rate", "Authorization", expected)
            error.headers["Retry-After"] = str(math.ceil(wait))
            raise error
        if seconds - found.recorded_at > USE_SECONDS:
            found.recorded_at = seconds
            api_keys.record_use(self._root, key.name)

    def _follow_file(self) -> None:
        identity = self._file_identity()
        if identity == self._identity:
            return
        self._identity = identity
        try:
            keys = api_keys.read(self._root)
        except (UserError, OSError) as error:
            LOGGER.error("the last valid API keys stay in force: %s", error)  # noqa: TRY400 - no traceback
            return
        if keys is None:
            LOGGER.error("the last API keys stay in force until a restart: %s was removed", api_keys.FILE_NAME)
        else:
            self._use(keys)

    def _use(self, keys: tuple[ApiKey, ...]) -> None:
        """Use these keys; an unchanged key keeps its budget."""
        present = self._keys or {}
        self._keys = {
            key.sha256: present[key.sha256]
            if key.sha256 in present and present[key.sha256].key == key
            else _KeyInUse(key)
            for key in keys
        }

    def _file_identity(self) -> tuple[int, int, int] | None:
        try:
            status = api_keys.path(self._root).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_mode


def _unauthorized(problem: str, scope: KeyScope) -> HttpError:
    expected = "Authorization: Bearer KEY"
    fix = "recloop token" if scope is KeyScope.ADMIN else f"recloop keys add NAME --scope {scope}"
    error = HttpError(401, "unauthorized", f"{problem}; expected {expected}; fix: {fix}", "Authorization", expected)
    error.headers["WWW-Authenticate"] = "Bearer"
    return error
