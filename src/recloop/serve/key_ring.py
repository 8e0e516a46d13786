"""Check of a bearer token: an API key, a page token or the admin token."""

from __future__ import annotations

import hmac
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from recloop.errors import UserError
from recloop.records import SECOND
from recloop.serve import page_token
from recloop.serve.client_address import RateBudget
from recloop.serve.page_token import InvalidTokenError, PageAccess
from recloop.serve.schemas import HttpError
from recloop.storage import api_keys
from recloop.storage.api_keys import ApiKey, KeyScope

LOGGER = logging.getLogger(__name__)
CHECK_SECONDS: Final = 0.5
"""Time after which the file of keys is looked at again."""
USE_SECONDS: Final = 60.0
"""Resolution of the time of the last use."""
MAX_PAGES: Final = 10_000
"""Page tokens and budgets of users that are kept."""
K = TypeVar("K")
T = TypeVar("T")


@dataclass
class _KeyInUse:
    """A key with its budget of requests.

    Attributes:
        budget: None without a rate. recorded_at: Monotonic time at which its use was last recorded.
    """

    key: ApiKey
    budget: RateBudget | None
    recorded_at: float = -math.inf


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
        self._keys: dict[str, _KeyInUse] | None = None  # by hash
        self._by_name: dict[str, ApiKey] = {}
        self._pages: dict[bytes, PageAccess] = {}
        self._budgets: dict[tuple[str, str], RateBudget] = {}  # by page key and user
        self._page_origins: frozenset[bytes] = frozenset()
        self._identity = self._file_identity()
        keys = api_keys.read(root)
        if keys is not None:
            self._use(keys)
        self._checked_at = time.monotonic()

    def authorize(
        self, authorization: bytes, scope: KeyScope, for_page: bool = False, origin: bytes | None = None
    ) -> PageAccess | None:
        """Check that the ``Authorization`` header of a request has a scope.

        Args:
            for_page: The route accepts page tokens; the caller checks the limits of the returned access.
            origin: Origin of the page that sent the request, if it is another one than the service's.

        Returns:
            Access of a page token; None for a key, for the admin token, and where no key is needed.

        Raises:
            HttpError: 401 without a valid key, 403 without the scope, 429 above the rate of the key.
        """
        if scope is KeyScope.PUBLIC:
            return None
        seconds = self._follow_file()
        if self._keys is None and scope is not KeyScope.ADMIN:
            return None
        kind, _, token = authorization.partition(b" ")
        token = token.strip()
        if kind.lower() != b"bearer" or not token:
            raise _unauthorized("the request has no key", scope)
        if hmac.compare_digest(token, self._admin_token):
            return None
        if token.startswith(page_token.TOKEN_PREFIX):
            return self._check_page(token, scope, for_page, origin, seconds)
        found = (self._keys or {}).get(api_keys.sha256(token))
        if found is None:
            raise _unauthorized("the key is unknown or revoked", scope)
        self._check_key(found, scope, seconds)
        return None

    def holder(self, authorization: bytes) -> str:
        """Name the key of an authorized request."""
        token = authorization.partition(b" ")[2].strip()
        found = (self._keys or {}).get(api_keys.sha256(token))
        return "admin token" if found is None else f"key {found.key.name}"

    def _check_key(self, found: _KeyInUse, scope: KeyScope, seconds: float) -> None:
        key = found.key
        if key.is_expired(int(time.time() * SECOND)):
            raise _unauthorized(f"the key {key.name} has expired", scope)
        if not key.allows(scope):
            raise _missing_scope(f"the key {key.name}", scope)
        _take(found.budget, key, seconds)
        self._record_use(found, seconds)

    def _check_page(
        self, token: bytes, scope: KeyScope, for_page: bool, origin: bytes | None, seconds: float
    ) -> PageAccess:
        access = self._pages.get(token)
        try:
            if access is None:
                access = page_token.verify(token, self._by_name)
                _keep(self._pages, token, access)
        except InvalidTokenError as error:
            raise _unauthorized(str(error), scope) from None
        key = access.key
        if access.expires + page_token.LEEWAY_SECONDS < time.time():
            raise _unauthorized("the page token has expired", scope)
        if key.is_expired(int(time.time() * SECOND)):
            raise _unauthorized(f"the key {key.name} has expired", scope)
        if not for_page:
            raise _missing_scope("a page token", scope)
        if origin is not None and origin.decode("latin-1") not in key.origins:
            message = f"the page key {key.name} does not name the origin of this page"
            raise HttpError(403, "foreign_origin", message, "Origin", ", ".join(key.origins) or "the service's own")
        if key.rate is not None:
            budget = self._budgets.get((key.name, access.user_id))
            if budget is None:
                budget = _keep(self._budgets, (key.name, access.user_id), RateBudget(key.rate))
            _take(budget, key, seconds)
        self._record_use((self._keys or {})[key.sha256], seconds)
        return access

    def _record_use(self, used: _KeyInUse, seconds: float) -> None:
        if seconds - used.recorded_at > USE_SECONDS:
            used.recorded_at = seconds
            api_keys.record_use(self._root, used.key.name)

    @property
    def page_origins(self) -> frozenset[bytes]:
        """Origins of all page keys, in lower case."""
        self._follow_file()
        return self._page_origins

    def _follow_file(self) -> float:
        """Read a changed file, at most every `CHECK_SECONDS`; return the monotonic time."""
        seconds = time.monotonic()
        if seconds - self._checked_at > CHECK_SECONDS:
            self._checked_at = seconds
            identity = self._file_identity()
            if identity != self._identity:
                self._identity = identity
                self._read_again()
        return seconds

    def reload(self) -> bool:
        """Read the file at once; return True if the keys changed.

        Raises:
            UserError: it is damaged or readable by other users; the last keys stay in force.
        """
        keys = api_keys.read(self._root)
        self._identity = self._file_identity()
        if keys is None or set(keys) == {found.key for found in (self._keys or {}).values()}:
            return False
        self._use(keys)
        return True

    def _read_again(self) -> None:
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
        in_use = {}
        for key in keys:
            known = present.get(key.sha256)
            budget = None if key.rate is None else RateBudget(key.rate)
            in_use[key.sha256] = known if known is not None and known.key == key else _KeyInUse(key, budget)
        self._keys = in_use
        self._by_name = {key.name: key for key in keys}
        self._pages.clear()
        self._page_origins = frozenset(origin.encode() for key in keys for origin in key.origins)

    def _file_identity(self) -> tuple[int, int, int] | None:
        try:
            status = api_keys.path(self._root).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_mode


def _keep(entries: dict[K, T], key: K, value: T) -> T:
    """Add an entry; the oldest one leaves above `MAX_PAGES`."""
    entries[key] = value
    if len(entries) > MAX_PAGES:
        del entries[next(iter(entries))]
    return value


def _take(budget: RateBudget | None, key: ApiKey, seconds: float) -> None:
    """Take one request of a budget.

    Raises:
        HttpError: 429.
    """
    wait = 0.0 if budget is None else budget.take(seconds)
    if wait > 0:
        expected = f"at most {key.rate:g} requests per second"
        error = HttpError(429, "rate_limit", f"the key {key.name} is above its rate", "Authorization", expected)
        error.headers["Retry-After"] = str(math.ceil(wait))
        raise error


def _missing_scope(holder: str, scope: KeyScope) -> HttpError:
    expected = f"a key with the scope {scope}"
    return HttpError(403, "missing_scope", f"{holder} does not have the scope {scope}", "Authorization", expected)


def _unauthorized(problem: str, scope: KeyScope) -> HttpError:
    expected = "Authorization: Bearer KEY"
    fix = "recloop token" if scope is KeyScope.ADMIN else f"recloop keys add NAME --scope {scope}"
    error = HttpError(401, "unauthorized", f"{problem}; expected {expected}; fix: {fix}", "Authorization", expected)
    error.headers["WWW-Authenticate"] = "Bearer"
    return error
