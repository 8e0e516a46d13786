"""The console at `/`: is it well, what is live and tried, the release table, promote and rollback, one person.

One page on the service's own port; every file of it comes from the installed packages, nothing from another host. Who
composes the service gives a `Desk`; the page only shows what the desk says and asks it for moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from nicegui import core, ui
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Match, Mount
from starlette.types import Scope

from recloop.errors import RecloopError
from recloop.records import SECOND
from recloop.watch.pulse import Windows

ITS: Final = "/_nicegui"
"""Where the page keeps its scripts and its socket."""
SHOWN: Final = {
    "requests": "requests", "entropy": "entropy", "long_tail_share": "long-tail share",
    "cold_coverage": "cold-start coverage", "coverage": "coverage",
}  # fmt: skip


class Desk(Protocol):
    """What the page asks of the service; all but ``person`` read files, so the page calls them in a thread."""

    def status(self) -> dict[str, Any]: ...
    def moves(self) -> list[dict[str, Any]]: ...
    def windows(self) -> Windows: ...
    def shadow(self, bundle: str) -> dict[str, Any] | None: ...
    def experiment(self, bundle: str) -> dict[str, Any] | None: ...
    def promote(self, bundle: str, to: str, reason: str) -> None: ...
    def rollback(self, reason: str) -> None: ...
    def person(self, user_id: str) -> dict[str, list[Sequence[Any]]]: ...


class _Behind(Mount):
    """The page's mount, behind the service's own routes: those keep their answers and their errors."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        if path not in {"", "/"} and not path.startswith(ITS):
            return Match.NONE, {}  # the service's 404, not a page
        return super().matches(scope)


def mount(app: Starlette, desk: Desk) -> None:
    """Put the page at `/`."""

    async def page() -> None:
        await _Page(desk).build()

    ui.run_with(app, root=page, title="recloop", dark=None, reconnect_timeout=10, show_welcome_message=False)  # type: ignore[arg-type]
    app.router.routes[-1] = _Behind("/", app=core.app)


class _Page:
    """One visitor's page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def build(self) -> None:
        ui.add_css("body { font-variant-numeric: tabular-nums } .q-table td { white-space: normal }")
        with ui.column().classes("w-full max-w-5xl mx-auto gap-4 p-4"):
            ui.label("recloop").classes("text-2xl font-bold")
            self._body = ui.column().classes("w-full gap-4")
            with ui.card().classes("w-full"):
                ui.label("Move").classes("text-lg font-bold")
                with ui.row().classes("w-full items-end gap-4 no-wrap"):
                    self._bundle = ui.select([], label="bundle").classes("w-80")
                    self._to = (
                        ui.select(["shadow", "experiment", "live"], value="shadow", label="to")
                        .classes("w-32")
                        .props("data-testid=to")
                    )
                    self._reason = ui.input("reason").classes("grow").props("data-testid=reason")
                    ui.button("promote", on_click=self._promote).props("data-testid=promote")
                    ui.button("rollback", on_click=self._rollback, color="negative").props("data-testid=rollback")
            with ui.card().classes("w-full"):
                ui.label("One person").classes("text-lg font-bold")
                with ui.row().classes("items-end gap-4"):
                    self._user = ui.input("user_id").props("data-testid=user").on("keydown.enter", self._show_person)
                    ui.button("show", on_click=self._show_person).props("data-testid=show")
                self._person = ui.row().classes("w-full items-start gap-8")
        await self._refresh()

    async def _refresh(self) -> None:
        status = await run_in_threadpool(self._desk.status)
        windows, moves = await run_in_threadpool(self._desk.windows), await run_in_threadpool(self._desk.moves)
        tried = status["shadow"] or status["experiment"]
        compared = await run_in_threadpool(self._desk.shadow, tried) if tried else None
        measured = (
            await run_in_threadpool(self._desk.experiment, status["experiment"]) if status["experiment"] else None
        )
        names = [one["bundle"] for one in status["bundles"]]
        self._bundle.set_options(names, value=self._bundle.value or tried or names[-1])
        self._body.clear()
        with self._body:
            well = not status["degraded"]
            with ui.row().classes("items-center gap-4"):
                ui.badge(
                    "well" if well else "degraded: " + ", ".join(status["degraded"]), color="green" if well else "red"
                )
                ui.label(f"live: {status['live']}").props("data-testid=live")
                ui.label(f"in the shadow: {status['shadow'] or 'nothing'}")
                ui.label(f"in the experiment: {status['experiment'] or 'nothing'}")
            _table("Health", ["window", "variant", "placement", *SHOWN.values()], _health(windows))
            if compared is not None:
                _table(f"In the shadow: {compared['candidate']}", ["", "value", "from", "to"], _agreement(compared))
            if measured is not None:
                title = f"In the experiment: {measured['verdict']} ({measured['why']})"
                _table(title, ["", "live", "candidate", "difference", "from", "to"], _metrics(measured))
            _table("Releases", ["generation", "at (UTC)", "bundle", "from", "to", "by", "reason"], [
                [one["generation"], _at(one["at"]), one["bundle"], one["from"], one["to"], one["by"], one["reason"]]
                for one in reversed(moves)
            ])  # fmt: skip

    async def _promote(self) -> None:
        await self._move(self._desk.promote, self._bundle.value, self._to.value, self._reason.value)

    async def _rollback(self) -> None:
        await self._move(self._desk.rollback, self._reason.value)

    async def _move(self, verb: Any, *asked: Any) -> None:
        if not self._reason.value:
            ui.notify("a reason is kept with every move: say why", type="warning")
            return
        try:
            await run_in_threadpool(verb, *asked)
        except RecloopError as error:
            ui.notify(str(error), type="negative", multi_line=True, timeout=15_000)
            return
        ui.notify("done", type="positive")
        await self._refresh()

    async def _show_person(self) -> None:
        if not self._user.value:
            return
        found = self._desk.person(self._user.value)  # states are read on the loop, as answers are
        self._person.clear()
        with self._person:
            _table("List now", ["#", "item", "source", "score"], found["list"], narrow=True)
            _table(
                "History, newest first",
                ["at (UTC)", "item"],
                [[_at(at), item] for at, item in found["history"]],
                narrow=True,
            )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], narrow: bool = False) -> None:
    with ui.column().classes("gap-1" if narrow else "w-full gap-1"):
        ui.label(title).classes("text-lg font-bold")
        ui.table(
            columns=[
                {"name": str(n), "label": name, "field": str(n), "align": "left"} for n, name in enumerate(columns)
            ],
            rows=[{"id": place, **{str(n): cell for n, cell in enumerate(row)}} for place, row in enumerate(rows)],
            row_key="id",
        ).classes("w-full").props("dense flat bordered")


def _health(windows: Windows) -> list[list[Any]]:
    return [
        [window, variant, placement, *(_number(numbers[name]) for name in SHOWN)]
        for window, variants in windows.items()
        for variant, placements in variants.items()
        for placement, numbers in placements.items()
    ]


def _agreement(found: Mapping[str, Any]) -> list[list[Any]]:
    rows = [
        [f"{m}, {found['requests']:,} requests", *map(_number, one.values())] for m, one in found["agreement"].items()
    ]
    if found["noise"]:
        rows += [[f"{m}, noise floor", *map(_number, one.values())] for m, one in found["noise"].items()]
    return rows


def _metrics(found: Mapping[str, Any]) -> list[list[Any]]:
    columns = ("live", "candidate", "delta", "low", "high")
    return [[name, *(_number(one[column]) for column in columns)] for name, one in found["metrics"].items()]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _at(stamp: int) -> str:
    return f"{datetime.fromtimestamp(stamp / SECOND, UTC):%Y-%m-%d %H:%M}"
