"""Settings of ``[serve]`` that a reload changes between two requests."""

from __future__ import annotations

from typing import Final, NamedTuple

from recloop.config import Limits, Serve
from recloop.features.conditions import check_size
from recloop.recommend.partial import DEADLINE, RANKER
from recloop.serve.client_address import TrustedProxies


class Shed(NamedTuple):
    """Work that a request does not get under load.

    Attributes:
        shadow: The shadow bundles and replicas do not score it.
        without: Parts that its list leaves out.
    """

    shadow: bool
    without: frozenset[str]


NOTHING: Final = Shed(shadow=False, without=frozenset())
SHADOW_SHARE: Final = 0.25
"""Share of the deadline after which a waiting list is not scored in shadow."""
RANKER_SHARE: Final = 0.5
"""Share of the deadline after which the fusion orders a waiting list."""


class LiveConfig:
    """Settings in force; used on the event loop only.

    Attributes:
        limits: Limits of requests.
        hosts: ``serve.hosts``.
        proxies: ``serve.trusted_proxies``.
        version: Number of reloads, so that a holder of a derived value knows when to derive it again.
    """

    limits: Limits
    hosts: tuple[str, ...]
    proxies: TrustedProxies

    def __init__(self, serve: Serve) -> None:
        self.version = 0
        self._set(serve)

    def use(self, serve: Serve) -> None:
        """Use other settings from the next request on."""
        self._set(serve)
        self.version += 1

    def shed(self, waited: float) -> Shed:
        """Return the work that a list which waited this long does not get."""
        deadline = self.limits.list_seconds
        if waited <= SHADOW_SHARE * deadline:
            return NOTHING
        if waited <= RANKER_SHARE * deadline:
            return Shed(shadow=True, without=frozenset())
        return Shed(shadow=True, without=frozenset({RANKER if waited <= deadline else DEADLINE}))

    def check_filter(self, text: str) -> None:
        """Check the size of a filter in a request.

        Raises:
            UserError: it has more comparisons, words, values and signs than the limits.
        """
        if text:
            check_size(text, "filter", self.limits.filter_comparisons, self.limits.filter_words)

    def _set(self, serve: Serve) -> None:
        self.limits = serve.limits
        self.hosts = serve.hosts
        self.proxies = TrustedProxies(serve.proxy_networks)
