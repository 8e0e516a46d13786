"""Settings of ``[serve]`` that a reload changes between two requests."""

from __future__ import annotations

from recloop.config import Limits, Serve
from recloop.features.conditions import check_size
from recloop.serve.client_address import TrustedProxies


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
