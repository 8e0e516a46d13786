"""Address of a client behind proxies, with headers that a client made up."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from recloop.config import Serve
from recloop.errors import UserError
from recloop.serve.client_address import MAX_CLIENTS, ClientRates, TrustedProxies, client_address, client_of
from recloop.serve.schemas import HttpError
from recloop.settings import build

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [b"1.1.1.1"], "203.0.113.9"),  # the peer is not a proxy
        ("10.0.0.2", [], "10.0.0.2"),
        ("10.0.0.2", [b"203.0.113.9"], "203.0.113.9"),
        ("10.0.0.2", [b"1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # the client wrote 1.1.1.1
        ("10.0.0.2", [b"1.1.1.1", b"203.0.113.9"], "203.0.113.9"),  # in a header of its own
        ("10.0.0.2", [b"10.0.0.5, 203.0.113.9, 10.0.0.3"], "203.0.113.9"),  # two proxies
        ("10.0.0.2", [b"10.0.0.3, 10.0.0.4"], "10.0.0.3"),  # the client is in the network of the proxies
        ("10.0.0.2", [b"203.0.113.9, unknown"], "10.0.0.2"),
        ("10.0.0.2", [b"203.0.113.9, "], "10.0.0.2"),
        ("10.0.0.2", [b"203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.2", [b"[2001:db9::7]:443"], "2001:db9::7"),
        ("::ffff:10.0.0.2", [b"::ffff:203.0.113.9"], "203.0.113.9"),
        ("2001:db8::1", [b"\xff\xfe, 2001:db9::7"], "2001:db9::7"),
        ("not an address", [b"203.0.113.9"], "not an address"),
    ],
)
def test_client_is_the_first_address_from_the_right_that_is_no_proxy(
    peer: str, forwarded: list[bytes], client: str
) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_without_proxies_the_header_does_not_count() -> None:
    assert client_of("10.0.0.2", [(b"x-forwarded-for", b"203.0.113.9")], TrustedProxies()) == "10.0.0.2"
    assert client_of("10.0.0.2", [(b"x-forwarded-for", b"203.0.113.9")], TrustedProxies(PROXIES)) == "203.0.113.9"
    assert client_of("10.0.0.2", [(b"forwarded", b"for=203.0.113.9")], TrustedProxies(PROXIES)) == "10.0.0.2"


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    first, second, other = (
        client_of(peer, (), TrustedProxies()) for peer in ("2001:db9::1", "2001:db9::ff:2", "2001:db9:0:1::1")
    )
    assert first == second != other


def test_rate_holds_per_client_and_refills() -> None:
    rates = ClientRates()
    rates.check("a", 2.0, 0.0)
    rates.check("a", 2.0, 0.0)
    with pytest.raises(HttpError) as caught:
        rates.check("a", 2.0, 0.0)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
    rates.check("b", 2.0, 0.0)
    rates.check("a", 2.0, 0.5)


def test_budgets_of_many_clients_are_bounded() -> None:
    rates = ClientRates()
    for number in range(MAX_CLIENTS + 10):
        rates.check(str(number), 1.0, 0.0)
    assert len(rates._budgets) == MAX_CLIENTS


@pytest.mark.parametrize("network", ["10.0.0.1/8", "proxy.example", "", "10.0.0.0/33", "0.0.0.0/0 "])
def test_network_that_is_not_exact_is_refused(network: str) -> None:
    with pytest.raises(UserError, match="exact networks") as caught:
        build({"serve": {"trusted_proxies": [network]}})
    assert caught.value.name.startswith("serve.trusted_proxies")


def test_single_address_is_a_network() -> None:
    assert Serve(trusted_proxies=("192.0.2.7",)).proxy_networks == (ip_network("192.0.2.7/32"),)
