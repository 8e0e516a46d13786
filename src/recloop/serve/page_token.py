"""Page tokens: signed statements about whose lists and events a page may use.

A page token is a JSON Web Token (RFC 7519) with HS256. Its ``kid`` names a key of scope ``page``, its ``sub`` the user,
and its ``exp`` lies at most a day ahead. The HMAC key is the SHA-256 of the secret in hex, which the file of keys holds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from recloop.errors import UserError
from recloop.features.id_form import form_id
from recloop.records import MAX_ID_BYTES, Event
from recloop.serve.schemas import HttpError
from recloop.storage.api_keys import ApiKey, KeyScope

ALGORITHM: Final = "HS256"
MAX_SECONDS: Final = 86_400
"""Longest lifetime of a token."""
LEEWAY_SECONDS: Final = 30
"""Accepted difference between the clocks of signer and service."""
MAX_TOKEN_BYTES: Final = 4_096
TOKEN_PREFIX: Final = b"eyJ"
"""Start of every JSON Web Token: ``{"`` in base64."""


class PageAccess(NamedTuple):
    """Rights of a page: one user's lists and events, under the limits of its key.

    Attributes:
        expires: Seconds since 1970.
    """

    key: ApiKey
    user_id: str
    expires: float

    def check_list(self, user_id: str, placement: str) -> None:
        """Check a list request.

        Raises:
            HttpError: 403, the list is of another user or of a placement that the key does not name.
        """
        if user_id != self.user_id:
            raise _forbidden("user_id", "the page token is for another user", "the user of the token")
        if self.key.placements and placement not in self.key.placements:
            raise _forbidden(
                "placement", f"the page key {self.key.name} does not name it", ", ".join(self.key.placements)
            )

    def check_events(self, events: Iterable[Event], id_form: str) -> None:
        """Check posted events.

        Args:
            id_form: ``data.id_form``, in which the ids of the events are.

        Raises:
            HttpError: 403, an event is of another user or of a type that the key does not name.
        """
        user_id = form_id(self.user_id, id_form)
        for event in events:
            if event.user_id != user_id:
                raise _forbidden("user_id", "the page token is for another user", "the user of the token")
            if self.key.event_types and event.event_type not in self.key.event_types:
                expected = ", ".join(self.key.event_types)
                raise _forbidden("event_type", f"the page key {self.key.name} does not name it", expected)


class InvalidTokenError(Exception):
    """A token is not valid; the message says why."""


def sign(user_id: str, name: str, key: str, lifetime_seconds: int = 3_600) -> str:
    """Sign a page token for a user.

    Args:
        user_id: User whose lists and events the page may use; also the id of an anonymous visitor.
        name, key: Name and secret of a key of scope ``page``. The secret belongs on a server, not in a page.
        lifetime_seconds: At most a day.

    Raises:
        UserError: the user id is empty or too long, or the lifetime is out of range.
    """
    if not 0 < len(user_id.encode()) <= MAX_ID_BYTES:
        raise UserError("user_id", user_id[:100], f"1 to {MAX_ID_BYTES} bytes", 'recloop.sign("u1", NAME, KEY)')
    if not 0 < lifetime_seconds <= MAX_SECONDS:
        raise UserError("lifetime_seconds", lifetime_seconds, f"1 to {MAX_SECONDS}", "lifetime_seconds=3600")
    issued = int(time.time())
    import jwt

    claims = {"sub": user_id, "iat": issued, "exp": issued + lifetime_seconds}
    hmac_key = hashlib.sha256(key.encode()).hexdigest()
    return jwt.encode(claims, hmac_key, ALGORITHM, headers={"kid": name})


def verify(token: bytes, keys: Mapping[str, ApiKey]) -> PageAccess:
    """Check a page token.

    Args:
        keys: Keys by name.

    Raises:
        InvalidTokenError: signature, key, times or user are not valid.
    """
    import jwt  # it loads cryptography if that is installed, 0.1 s that a service without page keys need not spend

    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidTokenError(f"the page token has more than {MAX_TOKEN_BYTES} bytes")
    try:
        name = jwt.get_unverified_header(token).get("kid")
        key = keys.get(name) if isinstance(name, str) else None
        if key is None or KeyScope.PAGE not in key.scopes:
            raise InvalidTokenError("the page token names no page key of this project")
        claims = jwt.decode(token, key.sha256, [ALGORITHM], leeway=LEEWAY_SECONDS, options={"require": ["sub", "exp"]})
    except jwt.ExpiredSignatureError:
        raise InvalidTokenError("the page token has expired") from None
    except jwt.InvalidTokenError as error:
        raise InvalidTokenError(f"the page token is not valid ({error})") from None
    expires = float(claims["exp"])
    if expires > time.time() + MAX_SECONDS + LEEWAY_SECONDS:
        raise InvalidTokenError(f"the page token is valid for more than {MAX_SECONDS} seconds")
    if not 0 < len(claims["sub"].encode()) <= MAX_ID_BYTES:
        raise InvalidTokenError(f"the user of the page token does not have 1 to {MAX_ID_BYTES} bytes")
    return PageAccess(key, claims["sub"], expires)


def _forbidden(field: str, problem: str, expected: str) -> HttpError:
    return HttpError(403, "page_limit", f"{field}: {problem}", field, expected)
