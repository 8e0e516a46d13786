"""Reload of releases, retractions and data that other processes changed."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from starlette.concurrency import run_in_threadpool

from recloop.features import state_store
from recloop.privacy import erasure
from recloop.records import Item
from recloop.serve.deployments import DeploymentLoader
from recloop.storage.archive import Archive
from recloop.storage.database import STORE_ERRORS
from recloop.storage.sqlite import open_files
from recloop.storage.store_watch import StoreWatch
from recloop.storage.trim import trim

if TYPE_CHECKING:
    from recloop.serve.service import Service

LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 1.0
"""Seconds between polls of the control store, its inbox and ``data/manifest.json``."""


async def poll_forever(service: Service) -> None:
    """Reload every second until cancelled; failures are logged and retried."""
    while True:
        await run_in_threadpool(service.disk.check)
        try:
            await service.reload()
            service.is_release_followed = True
            service.followed_at = time.monotonic()
        except Exception as error:  # noqa: BLE001 - an unreadable store must not stop the service
            if service.is_release_followed:  # once, not every second
                LOGGER.warning("reload failed: %s: %s", type(error).__name__, error)
            service.is_release_followed = False
        await asyncio.sleep(POLL_SECONDS)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's cycle collector while loading, then collect once and freeze.

    A bundle of 65,000 items has a million objects. With the collector on, loading triggers repeated full collections,
    each of which blocks requests for 0.1 to 0.3 s. The single collection at the end removes garbage of concurrent
    requests before the freeze. Reference counting stays active.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()  # earlier bundles are frozen, so this visits only the new one
        gc.freeze()
        gc.enable()


class Reloader:
    """Applies changes one at a time; reads in threads, switches on the event loop."""

    def __init__(self, service: Service, loader: DeploymentLoader) -> None:
        self._service = service
        self._loader = loader
        self._lock = asyncio.Lock()
        self._manifest = self._manifest_identity()
        self._watches = {
            "log": StoreWatch(service.log.files),
            "decisions": StoreWatch(open_files(service.decisions.file)),
        }

    async def apply_changes(self) -> bool:
        """Apply all pending changes; return True if the deployments changed."""
        async with self._lock:
            await self._find_moved_stores()
            switched = False
            if "control" not in self._service.moved:
                switched = await self._apply_releases()
            await self._apply_publication()
            if not self._service.moved & {"control", "log"} and not self._service.disk.stops_events:
                await self._apply_retractions()
            await self._rebuild_caches()
        return switched

    async def forget(self, users: Sequence[str], who: str) -> None:
        """Erase users: log, decisions, stored states, then the states in use.

        ``who``: Origin of the request for the audit log.

        Raises:
            Refused: the pages of a store cannot be written again; the next call or start completes the erasure.
        """
        service = self._service
        async with self._lock:
            at = service.clock()
            await run_in_threadpool(erasure.begin, service.project, users, at, who)
            seq = (await service.writer.write(forgotten=users)).erasure_seq
            if service.workers is not None:
                await service.workers.confirm_commits()
            service.decisions.forgotten |= dict.fromkeys(users, seq)
            await run_in_threadpool(service.decisions.flush)
            await run_in_threadpool(erasure.erase_stores, service.project, users, seq, at)
            await self._use_archive(await run_in_threadpool(Archive, service.project.data))

    async def _use_archive(self, archive: Archive) -> None:
        """Use an archive and its states in this process and in the workers."""
        service = self._service
        specs = [deployment.bundle.spec for deployment in service.deployments.all]
        await run_in_threadpool(archive.load_ids)
        service.use_archive(
            archive, await run_in_threadpool(service.user_states.over_archive, archive, specs, service.as_of)
        )
        if service.workers is not None:
            await service.workers.publish()

    async def _find_moved_stores(self) -> None:
        """Compare the stores with their files when they were opened.

        An open file stays writable after it is moved away, and its rows are lost with the process.
        """
        service = self._service
        moved = {name for name, watch in self._watches.items() if watch.is_moved()}
        if not service.log.files and await self._log_lacks_rows():
            moved.add("log")
        generation = await run_in_threadpool(service.control.generation)
        if generation < service.deployments.generation:
            moved.add("control")
        if moved != service.moved:
            LOGGER.warning("files moved away, replaced or emptied: %s", ", ".join(sorted(moved)) or "none")
        service.moved = frozenset(moved)

    async def _log_lacks_rows(self) -> bool:
        """Return True if a log on a server ends before rows that answers include."""
        service = self._service
        as_of = service.as_of
        try:
            return await run_in_threadpool(service.log.last_seq) < as_of
        except STORE_ERRORS:  # it is not known; posts say so
            return "log" in service.moved

    async def _apply_releases(self) -> bool:
        """Load, warm up and switch deployments; running requests finish on the old ones."""
        service = self._service
        switched = False
        while await run_in_threadpool(service.control.generation) != service.deployments.generation:
            with gc_paused():
                deployments = await run_in_threadpool(self._loader.load_changes, service.deployments)
                user_states = await run_in_threadpool(
                    service.user_states.open, [deployment.bundle.spec for deployment in deployments.all]
                )
                snapshot = service.catalog.snapshot()
                await run_in_threadpool(deployments.warm_up, service.deployments, snapshot)
            service.catalog.adopt(snapshot)
            service.activate(deployments, user_states)
            if service.workers is not None:
                await service.workers.deploy()
            switched = True
        return switched

    async def _apply_retractions(self) -> None:
        """Write queued retractions to the log; their users are read before they apply."""
        control = self._service.control
        entries = await run_in_threadpool(control.pending)
        if not entries:
            return
        rows = [entry.retraction for entry in entries]
        await self._service.write(retractions=rows)
        await run_in_threadpool(control.mark_applied, [entry.id for entry in entries])

    async def _apply_publication(self) -> None:
        """Switch to a newly published archive and its states; remove old states."""
        service = self._service
        stamp = self._manifest_identity()
        if stamp == self._manifest:
            return
        archive = await run_in_threadpool(Archive, service.project.data)
        if archive.watermark > service.archive.watermark:
            await self._use_archive(archive)
            await run_in_threadpool(state_store.forget, service.project.store, archive.watermark)
            await run_in_threadpool(trim, service.log, archive, service.project.config.retention.log_seconds)
        self._manifest = stamp

    async def _rebuild_caches(self) -> None:
        """Rebuild caches from the log after a commit that failed to update them."""
        service = self._service
        last_applied_seq = self._service.uncommitted_since
        if last_applied_seq is None:
            return
        specs = [deployment.bundle.spec for deployment in service.deployments.all]
        user_states = await run_in_threadpool(service.user_states.over_archive, service.archive, specs, service.as_of)
        rows = await run_in_threadpool(service.log.items, last_applied_seq)
        service.repair(
            user_states,
            [
                Item(**{**row, "attributes": msgspec.json.decode(row["attributes"])})
                for row in rows.iter_rows(named=True)
            ],
        )

    def _manifest_identity(self) -> tuple[int, int] | None:
        """Identity of ``data/manifest.json``; an update replaces the file by rename."""
        try:
            status = (self._service.project.data / "manifest.json").stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns
