"""What other processes did, taken up between two requests: moved releases, rows taken back, what an update published."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from starlette.concurrency import run_in_threadpool

from recloop.records import Item
from recloop.serve.deployments import DeploymentLoader
from recloop.storage.archive import Archive
from recloop.storage.snapshots import forget
from recloop.storage.trim import trim

if TYPE_CHECKING:
    from recloop.serve.service import Service

LOGGER = logging.getLogger(__name__)
EVERY_SECONDS = 1.0
"""How often the control store, its inbox and ``data/manifest.json`` are looked at."""


async def poll_forever(service: Service) -> None:
    """Follow, once a second, until cancelled; what fails is said and tried again, requests go on."""
    while True:
        try:
            await service.follow()
        except Exception as error:  # noqa: BLE001 - a store that cannot be read stops no answer
            LOGGER.warning("not followed: %s: %s", type(error).__name__, error)
        await asyncio.sleep(EVERY_SECONDS)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Load what stays without Python's cycle collector, then collect once and set what is left aside for good.

    A bundle of 65,000 items is a million objects; made under the collector, it looks through all of them again and
    again, each time for .1 to .3 s in which no request is answered. It looks once, at the end: garbage that requests made
    meanwhile is not set aside with the rest. What refers to nothing in a circle goes as ever.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()  # earlier bundles were set aside: it sees this one alone
        gc.freeze()
        gc.enable()


class Reloader:
    """Reads files in threads, changes what answers are made from on the event loop; one at a time."""

    def __init__(self, service: Service, loader: DeploymentLoader) -> None:
        self._service, self._loader = service, loader
        self._lock = asyncio.Lock()
        self._manifest = self._stamp()

    async def follow(self) -> bool:
        """Take up whatever there is; whether another fleet serves."""
        async with self._lock:
            switched = await self._moves()
            await self._published()
            await self._handed()
            await self._mended()
        return switched

    async def _moves(self) -> bool:
        """Load beside, warm, switch; a request that is under way finishes on the fleet that it took."""
        service, switched = self._service, False
        while await run_in_threadpool(service.control.generation) != service.fleet.generation:
            with gc_paused():
                fleet = await run_in_threadpool(self._loader.next, service.fleet)
                known = await run_in_threadpool(service.known.open, [one.bundle.spec for one in fleet.every])
            service.switch(fleet, known)
            switched = True
        return switched

    async def _handed(self) -> None:
        """What an update takes back becomes rows of the log; whose they are is read before they are in force."""
        control = self._service.control
        waiting = await run_in_threadpool(control.handed)
        if not waiting:
            return
        rows = [one.retraction for one in waiting]
        await run_in_threadpool(self._service.known.retracted.prepare, rows)
        await self._service.writer.write(retractions=rows)
        await run_in_threadpool(control.taken, [one.id for one in waiting])

    async def _published(self) -> None:
        """Go on from a new watermark: archive and snapshots opened beside, then put in place; old snapshots go."""
        service, stamp = self._service, self._stamp()
        if stamp == self._manifest:
            return
        archive = await run_in_threadpool(Archive, service.project.data)
        if archive.watermark > service.archive.watermark:
            specs = [one.bundle.spec for one in service.fleet.every]
            service.use_archive(archive, await run_in_threadpool(service.known.reopened, archive, specs))
            await run_in_threadpool(forget, service.project.store, archive.watermark)
            await run_in_threadpool(trim, service.log, archive, service.project.config.retention.log_seconds)
        self._manifest = stamp

    async def _mended(self) -> None:
        """Read anew what a commit changed and the caches did not take in."""
        service, since = self._service, self._service.unsettled
        if since is None:
            return
        specs = [one.bundle.spec for one in service.fleet.every]
        known = await run_in_threadpool(service.known.reopened, service.archive, specs)
        rows = await run_in_threadpool(service.log.items, since)
        service.repair(
            known,
            [
                Item(**{**row, "attributes": msgspec.json.decode(row["attributes"])})
                for row in rows.iter_rows(named=True)
            ],
        )

    def _stamp(self) -> tuple[int, int] | None:
        """Which manifest lies in ``data/``: an update renames a new one into place."""
        try:
            found = (self._service.project.data / "manifest.json").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns
