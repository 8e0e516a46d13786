"""What the console shows and does, over a running service; and what stands at `/` where the console is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from recloop.errors import RecloopError
from recloop.features.state import States
from recloop.records import Query
from recloop.serve import moves
from recloop.serve.service import Service
from recloop.watch import experiment, shadow
from recloop.watch.pulse import Windows
from recloop.watch.report import readable

HINT = """<!doctype html><meta charset="utf-8"><title>recloop</title>
<p>recloop answers under <a href="/openapi.json">/v1</a>. The console is not installed: <code>pip install "recloop[console]"</code>"""
NEWEST = 20
BY = "console"


def hint(app: Starlette, _: Service) -> None:
    """Say at `/` how to install the console."""

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(HINT)

    app.router.routes.append(Route("/", page, methods=["GET"]))


class ServiceDesk:
    """A `recloop.watch.console.Desk`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def status(self) -> dict[str, Any]:
        return self._service.table()

    def moves(self) -> list[dict[str, Any]]:
        rows = self._service.control.releases()
        return [{**row._asdict(), "from": row.from_} for row in rows]

    def windows(self) -> Windows:
        return self._service.windows()

    def shadow(self, bundle: str) -> dict[str, Any] | None:
        try:
            return shadow.compare(self._service.project, bundle)
        except RecloopError:
            return None

    def experiment(self, bundle: str) -> dict[str, Any] | None:
        try:
            return experiment.compare(self._service.project, bundle)
        except RecloopError:
            return None

    def promote(self, bundle: str, to: str, reason: str) -> None:
        moves.promote(self._service.project, bundle, to, reason, BY)

    def rollback(self, reason: str) -> None:
        moves.rollback(self._service.project, reason, BY)

    def person(self, user_id: str) -> dict[str, list[Sequence[Any]]]:
        state = self._service.user_state(user_id)
        query = Query(user_id=user_id, now=self._service.clock())
        answer = self._service.recommender.recommend(States.of([user_id], [state]), [query])[0]
        past = [(stamp, self._name(item)) for stamp, items in reversed(state.moments[-NEWEST:]) for item in items]
        listed = [
            (place, self._name(slot.item_id), slot.source, f"{slot.score:.4f}")
            for place, slot in enumerate(answer.slots, 1)
        ]
        return {"history": list(past[:NEWEST]), "list": list(listed)}

    def _name(self, item_id: str) -> str:
        item = self._service.catalogue.get(item_id)
        return readable(self._service.project.config.data.columns.name, item.attributes if item else {}, item_id)
