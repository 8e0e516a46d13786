"""Address of a client behind proxies, and its rate of requests.

client_address("10.0.0.2", [b"203.0.113.9"], (ip_network("10.0.0.0/8"),))   # 203.0.113.9
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from recloop.config.serve import Network
from recloop.serve.schemas import HttpError


class TrustedProxies:
    """Networks of ``serve.trusted_proxies``.

    Compared by identity, because a lookup by networks is slow.
    """

    def __init__(self, networks: tuple[Network, ...] = ()) -> None:
        self.networks = networks


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
FORWARDED_FOR: Final = b"x-forwarded-for"
MAX_CLIENTS: Final = 10_000
"""Addresses whose budgets are kept; the oldest one leaves first."""
IPV6_CLIENT_BITS: Final = 64
"""A client has a whole IPv6 network of this length, so its addresses share one budget."""


@dataclass
class RateBudget:
    """Token bucket that holds one second's requests, at least one."""

    rate: float
    left: float = field(init=False)
    filled_at: float = 0.0

    def __post_init__(self) -> None:
        self.left = max(1.0, self.rate)

    def take(self, seconds: float) -> float:
        """Take one request and return 0, or return the seconds to wait.

        Args:
            seconds: Monotonic time.
        """
        self.left = min(max(1.0, self.rate), self.left + self.rate * (seconds - self.filled_at))
        self.filled_at = seconds
        if self.left < 1.0:
            return (1.0 - self.left) / self.rate
        self.left -= 1.0
        return 0.0


class ClientRates:
    """Budgets of requests by client address; used on the event loop only."""

    def __init__(self) -> None:
        self._budgets: dict[str, RateBudget] = {}

    def check(self, client: str, rate: float, seconds: float) -> None:
        """Take one request of a client.

        Raises:
            HttpError: 429 above the rate.
        """
        budget = self._budgets.get(client)
        if budget is None or budget.rate != rate:
            budget = self._budgets[client] = RateBudget(rate)
            if len(self._budgets) > MAX_CLIENTS:
                del self._budgets[next(iter(self._budgets))]
        wait = budget.take(seconds)
        if wait > 0:
            expected = f"at most {rate:g} requests per second from one address"
            error = HttpError(429, "client_rate", f"too many requests; expected {expected}", None, expected)
            error.headers["Retry-After"] = str(math.ceil(wait))
            raise error


def client_of(peer: str, headers: Sequence[tuple[bytes, bytes]], proxies: TrustedProxies) -> str:
    """Return the key of a client's budget: its address or IPv6 network."""
    if not proxies.networks:
        return _client(peer, (), proxies)
    return _client(peer, tuple(value for name, value in headers if name == FORWARDED_FOR), proxies)


@lru_cache(4096)
def _client(peer: str, forwarded: tuple[bytes, ...], proxies: TrustedProxies) -> str:
    text = client_address(peer, forwarded, proxies.networks)
    address = _parse(text)
    if address is None or address.version == 4:
        return text
    return str(ipaddress.ip_network((address, IPV6_CLIENT_BITS), strict=False))


def client_address(peer: str, forwarded: Sequence[bytes], proxies: Sequence[Network]) -> str:
    """Return the address of the client that a chain of trusted proxies names.

    Each proxy appends the address that it was asked from, so the entries are read from the right. Reading ends at the
    first address that is not a trusted proxy; what a client wrote left of it does not count.

    Args:
        peer: Address of the connection.
        forwarded: Values of ``X-Forwarded-For``, in order.
        proxies: Networks of trusted proxies.
    """
    present = _parse(peer)
    if present is None:
        return peer
    entries = [entry for value in forwarded for entry in value.split(b",")]
    while entries and any(present in network for network in proxies):
        address = _parse(entries.pop().decode("latin-1").strip())
        if address is None:
            break
        present = address
    return str(present)


def _parse(text: str) -> Address | None:
    """Parse an address with or without a port; None if it is not one."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
