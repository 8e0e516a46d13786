"""Console backend of a running service, and the page shown if it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from recloop.features.value_text import display_name
from recloop.files import JsonTree
from recloop.monitoring.summary import Windows
from recloop.privacy.audit_rows import record_look
from recloop.records import Query
from recloop.release import transitions
from recloop.serve.comparisons import Comparison, Comparisons, Kind, measure_steps
from recloop.serve.service import Service
from recloop.storage.audit import AuditAction

INSTALL_HINT_PAGE = """<!doctype html><meta charset="utf-8"><title>recloop</title>
<p>The API is at <a href="/openapi.json">/v1</a>. The console is not installed. To install it: <code>pip install "recloop[console]"</code>"""
MAX_HISTORY_ROWS = 20
RELEASE_ORIGIN = "console"


def install_hint(app: Starlette, _: Service) -> None:
    """Add a page at `/` with the command that installs the console."""

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(INSTALL_HINT_PAGE)

    app.router.routes.append(Route("/", page, methods=["GET"]))


class ServiceConsoleBackend:
    """`recloop.serve.console.ConsoleBackend` over a `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._comparisons = Comparisons(service.project)

    def status(self) -> JsonTree:
        return self._service.summaries.status()

    def moves(self) -> list[JsonTree]:
        rows = self._service.control.releases()
        return [{**row._asdict(), "from": row.from_} for row in rows]

    def windows(self) -> Windows:
        return self._service.summaries.windows()

    def last_comparison(self, kind: Kind, bundle: str) -> Comparison | None:
        return self._comparisons.last(kind, bundle)

    def compare(self, kind: Kind, bundle: str) -> Comparison:
        return self._comparisons.refresh(kind, bundle)

    async def promote(self, bundle: str, to: str, reason: str) -> JsonTree:
        return await self._move(partial(transitions.promote, measure=measure_steps), bundle, to, reason)

    async def rollback(self, reason: str) -> JsonTree:
        return await self._move(transitions.rollback, reason)

    async def reject(self, bundle: str, reason: str) -> JsonTree:
        return await self._move(transitions.reject, bundle, reason)

    async def _move(self, verb: Callable[..., JsonTree], *arguments: str) -> JsonTree:
        """Make a release move and deploy it before returning."""
        row = await run_in_threadpool(verb, self._service.project, *arguments, RELEASE_ORIGIN, self._service.clock())
        await self._service.reload()
        return row

    async def user_panel(self, user_id: str) -> JsonTree:
        """User panel: ``facts`` (str), ``list`` and ``history``.

        ``list`` holds (rank, name, source, score); ``history`` holds (at, name). States are read on the event loop.
        """
        project = self._service.project
        await run_in_threadpool(record_look, project, user_id, AuditAction.CONSOLE_USER, RELEASE_ORIGIN, {})
        state = self._service.user_state(user_id)
        ranked, arm = self._service.preview(Query(user_id=user_id, now=self._service.clock()))
        moments, attributes = state.moments(), state.attributes[0] or {}
        past = [
            (stamp, self._name(item)) for stamp, items, _ in reversed(moments[-MAX_HISTORY_ROWS:]) for item in items
        ]
        fields = "".join(f", {name} {value}" for name, value in attributes.items())
        return {
            "facts": f"{user_id}: {int(state.positives[0]):,} events in the history{fields}; answered by {arm.variant} ({arm.bundle})",
            "history": past[:MAX_HISTORY_ROWS],
            "list": [
                (rank, self._name(slot.item_id), slot.source, f"{slot.score:.4f}")
                for rank, slot in enumerate(ranked.slots, 1)
            ],
        }

    def _name(self, item_id: str) -> str:
        item = self._service.catalog.get(item_id)
        return display_name(self._service.project.config.data.columns.name, item.attributes if item else {}, item_id)
