"""Tables ``[serve]`` and ``[serve.limits]``: the HTTP service."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import pydantic

from recloop.config.section import Section
from recloop.records import MAX_ATTRIBUTES, MAX_ID_BYTES

HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
MIB: Final = 2**20
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Limits(Section):
    """Limits of requests for each process; a refusal names the limit."""

    head_bytes: int = pydantic.Field(64 * 1024, ge=1024, le=MIB)
    """Largest request line with headers; above it 431."""
    head_seconds: float = pydantic.Field(10.0, gt=0)
    """Time for a head to arrive; after it 408."""
    body_bytes: int = pydantic.Field(5 * MIB, ge=1024, le=1024 * MIB)
    """Largest body as it is sent; above it 413."""
    unpacked_bytes: int = pydantic.Field(5 * MIB, ge=1024, le=1024 * MIB)
    """Largest body sent with `Content-Encoding: gzip`, unpacked; above it 413."""
    body_seconds: float = pydantic.Field(30.0, gt=0)
    """Time for a body to arrive; after it 408."""
    answer_seconds: float = pydantic.Field(30.0, gt=0)
    """Time without progress after which an answer that the client does not read is dropped."""
    keep_alive_seconds: float = pydantic.Field(5.0, gt=0)
    """Time after which an idle connection is closed."""
    connections: int = pydantic.Field(8192, ge=1)
    """Open connections, at most half of the file descriptors; above it 503."""
    waiting_lists: int = pydantic.Field(256, ge=0)
    """Lists that wait for their answer; above it 503."""
    list_seconds: float = pydantic.Field(1.0, gt=0)
    """Deadline of a waiting list: after a quarter no shadow scores it, after half no ranker; above three quarters it is refused."""
    reads: int = pydantic.Field(256, ge=0)
    """Other reads under way; above it 503."""
    writes: int = pydantic.Field(256, ge=0)
    """Writes under way; above it 503."""
    body_bytes_in_flight: int = pydantic.Field(64 * MIB, ge=0)
    """Bytes of incomplete bodies, without the first 64 KiB of each; above it 503."""
    queued_rows: int = pydantic.Field(100_000, ge=1)
    """Rows that wait for the log; above it 503."""
    client_rate: float = pydantic.Field(0.0, ge=0)
    """Requests per second of one client address; above it 429. 0: no limit."""
    rows: int = pydantic.Field(1000, ge=1, le=10_000)
    """Rows of one JSON body; above it 422."""
    ndjson_rows: int = pydantic.Field(10_000, ge=1, le=10_000)
    """Rows of one body of `application/x-ndjson`; above it 422."""
    id_bytes: int = pydantic.Field(MAX_ID_BYTES, ge=1, le=MAX_ID_BYTES)
    """Bytes of an id or a name in a posted row; a row above it is rejected. Files have at most 512."""
    attributes: int = pydantic.Field(MAX_ATTRIBUTES, ge=0, le=MAX_ATTRIBUTES)
    """Attributes of a posted item or user; a row above it is rejected."""
    attribute_bytes: int = pydantic.Field(64 * 1024, ge=2)
    """Bytes of the attributes or the context of a posted row, as JSON; a row above it is rejected."""
    depth: int = pydantic.Field(32, ge=1, le=100)
    """Levels of the attributes or the context of a posted row; a row above it is rejected."""
    filter_comparisons: int = pydantic.Field(50, ge=0, le=200)
    """Comparisons of `filter` in a request; above it 422."""
    filter_words: int = pydantic.Field(1000, ge=0, le=5000)
    """Words, values and signs of `filter` in a request; above it 422."""
    properties: int = pydantic.Field(50, ge=0, le=1000)
    """Names in `properties` of a request; above it 422."""


class Disk(Section):
    """Free share of a store's disk below which a part stops; 0: never."""

    alarm: float = pydantic.Field(0.10, ge=0, lt=1)
    """Free share below which the alarm `disk` is raised."""
    decisions: float = pydantic.Field(0.05, ge=0, lt=1)
    """Free share below which decisions are not recorded; lists go on."""
    events: float = pydantic.Field(0.02, ge=0, lt=1)
    """Free share below which posts get 503; lists go on."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Disk:
        if not self.alarm >= self.decisions >= self.events:
            raise ValueError("alarm, decisions and events in descending order, such as 0.1, 0.05 and 0.02")
        return self


class Serve(Section):
    host: str = "127.0.0.1"
    """Address that the service binds to."""
    port: int = pydantic.Field(8088, ge=0, le=65535)
    """Port that the service listens on; 0: any free port."""
    hosts: tuple[str, ...] = ()
    """Further host names that a request may name in its `Host` header, without scheme and port."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks of proxies whose `X-Forwarded-For` names the client, such as `10.0.0.0/8`."""
    segment: str = ""
    """User attribute with a separate popular list per value; empty: one list for all."""
    workers: int = pydantic.Field(1, ge=1)
    """Processes that answer; one of them writes the log and the decisions."""
    allow_time_header: bool = False
    """Let a request set the time with `X-Recloop-Now`; for demos and benchmarks on loopback."""
    disk: Disk = Disk()
    """Free space that the stores need; `POST /v1/admin/reload` and SIGHUP apply changes."""
    limits: Limits = Limits()
    """Limits of requests, for each process; `POST /v1/admin/reload` and SIGHUP apply changes."""

    @pydantic.field_validator("hosts")
    @classmethod
    def _host_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for name in hosts:
            if not HOST_NAME.fullmatch(name):
                raise ValueError(f"host names without scheme and port, such as shop.example; {name!r} is not one")
        return hosts

    @pydantic.field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for name in networks:
            try:
                ipaddress.ip_network(name)
            except ValueError as error:
                raise ValueError(f"exact networks, such as 10.0.0.0/8 or 192.0.2.7; {error}") from None
        return networks

    @property
    def proxy_networks(self) -> tuple[Network, ...]:
        """Networks of ``trusted_proxies``."""
        return tuple(ipaddress.ip_network(name) for name in self.trusted_proxies)
