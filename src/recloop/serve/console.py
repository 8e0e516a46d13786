"""Console page at `/`: status, comparisons, releases, moves and one user.

The page is served on the service's own port, and all of its files come from installed packages. It shows the data of a
`ConsoleBackend` and sends moves to it. The frame is shown first; slow parts (the comparisons) are filled in later.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

os.environ.setdefault("MATPLOTLIB", "false")  # NiceGUI would import it at every start; the page does not use it
from nicegui import core, ui
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match, Mount
from starlette.types import Scope

from recloop.errors import RecloopError, Refused
from recloop.files import JsonTree
from recloop.monitoring.summary import Windows
from recloop.records import utc_minute
from recloop.serve import console_panels
from recloop.serve.comparisons import Comparison, Kind

CONSOLE_PREFIX: Final = "/_nicegui"
"""Path prefix of the page's scripts and socket."""
PAGE_CSS: Final = """
body { font-variant-numeric: tabular-nums }
.q-table th, .q-table td { padding: 4px 12px }
.q-table th { opacity: .65 }
.q-table td.wide { white-space: normal; min-width: 14rem }
.boxed { max-width: 100%; min-width: 0 }
.q-loading-bar { display: none }
"""
SHADOW, EXPERIMENT, LIVE, EARNED = "shadow", "experiment", "live", "earned"
TARGETS: Final = {
    SHADOW: "shadow", EXPERIMENT: "experiment", EARNED: "live, if both steps are earned", LIVE: "live (skip requirements)",
}  # fmt: skip


class ConsoleBackend(Protocol):
    """Operations of the page; synchronous methods read files and run in a thread."""

    def status(self) -> JsonTree: ...
    def moves(self) -> list[JsonTree]: ...
    def windows(self) -> Windows: ...
    def last_comparison(self, kind: Kind, bundle: str) -> Comparison | None: ...
    def compare(self, kind: Kind, bundle: str) -> Comparison: ...
    async def promote(self, bundle: str, to: str, reason: str) -> JsonTree: ...
    async def rollback(self, reason: str) -> JsonTree: ...
    async def reject(self, bundle: str, reason: str) -> JsonTree: ...
    async def user_panel(self, user_id: str) -> JsonTree: ...


class _FallthroughMount(Mount):
    """Mount of the page that leaves the service's own routes and errors unchanged."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        if path not in {"", "/"} and not path.startswith(CONSOLE_PREFIX):
            return Match.NONE, {}  # keeps the service's JSON 404
        return super().matches(scope)


def mount(app: Starlette, backend: ConsoleBackend) -> None:
    """Mount the page at `/`."""

    async def page() -> None:
        await _Page(backend).build()

    ui.run_with(app, root=page, title="recloop", dark=None, reconnect_timeout=10, show_welcome_message=False)  # type: ignore[arg-type]
    core.app.config.socket_io_js_transports = ["polling"]  # the service does not accept web sockets
    core.sio.eio.cors_allowed_origins = []  # no CORS headers; `AccessMiddleware` refuses pages of other origins
    app.state.console = True  # `AccessMiddleware` then requires the admin token
    app.state.on_drain.append(_end_polls)
    app.router.routes[-1] = _FallthroughMount("/", app=core.app)


async def _end_polls() -> None:
    """End the sessions of open pages; each one waits in a request of up to 8 seconds."""
    for session in list(core.sio.eio.sockets.values()):
        await session.close(wait=False)  # a page that is gone would be awaited for ever


class _Page:
    """Page of one visitor."""

    def __init__(self, backend: ConsoleBackend) -> None:
        self._backend = backend
        self._looks = 0

    async def build(self) -> None:
        ui.add_css(PAGE_CSS)
        with ui.column().classes("w-full max-w-6xl mx-auto gap-4 p-2 sm:p-4"):
            ui.label("recloop").classes("text-2xl font-bold")
            self._now = ui.column().classes("boxed w-full gap-4")
            self._tried = ui.column().classes("boxed w-full gap-4")
            self._releases = ui.column().classes("boxed w-full gap-4").props("data-testid=releases")
            with ui.card().classes("boxed w-full"):
                self._build_move()
            with ui.card().classes("boxed w-full"):
                ui.label("User").classes("text-lg font-bold")
                with ui.row().classes("items-end gap-4"):
                    self._user = ui.input("user_id").props("data-testid=user").on("keydown.enter", self._show_person)
                    ui.button("show", on_click=self._show_person).props("data-testid=show")
                self._person = ui.column().classes("boxed w-full gap-2")
        await ui.context.client.connected()  # show the frame before the slow part
        await self._refresh()

    def _build_move(self) -> None:
        ui.label("Move").classes("text-lg font-bold")
        with ui.row().classes("w-full items-end gap-4"):
            self._bundle = ui.select([], label="bundle").classes("w-80 max-w-full").props("data-testid=bundle")
            self._to = ui.select(TARGETS, value=SHADOW, label="to").classes("w-64 max-w-full").props("data-testid=to")
            self._reason = ui.input("reason (required)").classes("grow").props("data-testid=reason")
        with ui.row().classes("w-full gap-4"):
            ui.button("Promote", on_click=self._promote).props("data-testid=promote")
            ui.button("Rollback", on_click=self._rollback, color="negative").props("data-testid=rollback")
            ui.button("Reject", on_click=self._reject, color="negative").props("data-testid=reject")
        self._said = ui.column().classes("boxed w-full").props("data-testid=said")

    async def _refresh(self) -> None:
        """Reload all panels; stop if a later refresh has started meanwhile."""
        self._looks += 1
        look = self._looks
        status, windows, moves = await run_in_threadpool(
            lambda: (self._backend.status(), self._backend.windows(), self._backend.moves())
        )
        if look != self._looks:
            return
        names = [row["bundle"] for row in status["bundles"]]
        self._bundle.set_options(names, value=self._bundle.value or status[SHADOW] or status[EXPERIMENT] or names[-1])
        self._now.clear()
        with self._now:
            console_panels.overview(status)
            console_panels.health(windows)
        self._releases.clear()
        with self._releases:
            console_panels.releases(moves)
        self._tried.clear()
        if status[SHADOW] and look == self._looks:
            await self._compare("shadow", status[SHADOW], console_panels.shadow)
        if status[EXPERIMENT] and look == self._looks:
            await self._compare("experiment", status[EXPERIMENT], console_panels.experiment)

    async def _compare(self, kind: Kind, bundle: str, show: Callable[[Any], None]) -> None:
        """Show the last comparison of a bundle, compute a new one and show it."""
        with self._tried, ui.column().classes("boxed w-full gap-2").props(f"data-testid=tried-{kind}") as panel:
            last = self._backend.last_comparison(kind, bundle)
            _show_comparison(kind, bundle, last, show, is_running=True)
        comparison = await run_in_threadpool(self._backend.compare, kind, bundle)
        if panel.is_deleted:
            return  # the visitor left or started another refresh
        panel.clear()
        with panel:
            _show_comparison(kind, bundle, comparison, show)

    async def _promote(self) -> None:
        bundle = self._bundle.value
        to = self._to.value
        reason = self._reason.value
        await self._move(lambda: self._backend.promote(bundle, "" if to == EARNED else to, reason))

    async def _rollback(self) -> None:
        reason = self._reason.value
        await self._move(lambda: self._backend.rollback(reason))

    async def _reject(self) -> None:
        bundle = self._bundle.value
        reason = self._reason.value
        await self._move(lambda: self._backend.reject(bundle, reason))

    async def _move(self, move: Callable[[], Awaitable[JsonTree]]) -> None:
        self._said.clear()
        with self._said:
            if not self._reason.value.strip():
                ui.label("reason is empty: enter a reason for this move").classes("text-negative")
                return
            try:
                row = await move()
            except Refused as error:
                console_panels.refused(error)
                return
            except RecloopError as error:
                ui.label(str(error)).classes("text-negative break-words")
                return
            ui.label(f"{row['bundle']}: {row['from']} -> {row['to']}").classes("text-positive break-all")
        self._reason.value = ""
        await self._refresh()

    async def _show_person(self) -> None:
        if not self._user.value:
            return
        panel = await self._backend.user_panel(self._user.value)
        self._person.clear()
        with self._person:
            console_panels.user_panel(panel)


def _show_comparison(
    kind: Kind, bundle: str, comparison: Comparison | None, show: Callable[[Any], None], is_running: bool = False
) -> None:
    """Show a comparison with its time.

    Args:
        comparison: None before the first one.
        is_running: True while a new one is computed.
    """
    ui.label(f"Bundle in {kind}: {bundle}").classes("text-lg font-bold break-all")
    if comparison is None:
        ui.label("Comparing ...")
        return
    running = "; a new comparison is running ..." if is_running else ""
    ui.label(f"Compared at {utc_minute(comparison.at)} UTC{running}").classes("opacity-60")
    if comparison.problem:
        ui.label(f"No comparison yet: {comparison.problem}")
    else:
        show(comparison.result)
