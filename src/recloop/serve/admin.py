"""The moves of the release machine over HTTP: the same functions as the verbs, the same result, taken up at once."""

from __future__ import annotations

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recloop.errors import BundleError, Refused, UserError
from recloop.json_object import JsonTree
from recloop.serve import bodies, moves
from recloop.serve.parameters import only
from recloop.serve.service import Service
from recloop.serve.shapes import HttpError, MoveAnswer, MoveRow


def routes(service: Service) -> list[Route]:
    """``/v1/admin/promote``, ``rollback``, ``refuse``."""
    verbs = ("promote", "rollback", "refuse")
    return [Route(f"/v1/admin/{verb}", only(Admin(service, verb).move), methods=["POST"]) for verb in verbs]


class Admin:
    """One verb."""

    def __init__(self, service: Service, verb: str) -> None:
        self._service, self._verb = service, verb

    async def move(self, request: Request) -> Response:
        """One move, in force when it is answered; `Guard` has asked for the admin token."""
        asked = await _asked(request)
        try:
            done = await run_in_threadpool(self._move, asked, self._at(request))
        except BundleError as error:
            raise HttpError(409, "bad_bundle", str(error), "bundle", error.expected) from None
        except UserError as error:
            field = error.name.removeprefix("--")
            status = 404 if field == "bundle" else 422
            raise HttpError(status, f"bad_{field}", str(error), field, error.expected) from None
        except Refused as error:
            raise HttpError(409, "refused", str(error), error.gate, str(error.threshold)) from None
        await self._service.follow()
        return Response(msgspec.json.encode(msgspec.convert(done, MoveAnswer)), media_type="application/json")

    def _move(self, asked: MoveRow, at: int) -> JsonTree:
        project, by = self._service.project, f"POST /v1/admin/{self._verb}"
        if self._verb == "rollback":
            return moves.rollback(project, asked.reason, by, at)
        if self._verb == "refuse":
            return moves.refuse(project, asked.bundle, asked.reason, by, at)
        return moves.promote(project, asked.bundle, asked.to, asked.reason, by, at)

    def _at(self, request: Request) -> int:
        """When the move is made: the time that a replayed request carries, so that decisions and moves share a clock."""
        told = request.headers.get("x-recloop-now", "")
        config = self._service.project.config
        replayed = bodies.stamp_of(told, config.data) if told and config.serve.replay else None
        return self._service.clock() if replayed is None else replayed


async def _asked(request: Request) -> MoveRow:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "not_json", "a move is asked for in JSON", "Content-Type", "application/json")
    body = await bodies.read_body(request) or b"{}"
    try:
        return msgspec.json.decode(body, type=MoveRow)
    except msgspec.ValidationError as error:
        raise HttpError(422, "bad_body", str(error), "body", "{bundle, to, reason}, each a text") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, "not_json", f"the body is not JSON: {error}", "body", "{bundle, to, reason}") from None
