"""Route that identifies an anonymous id as a user."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from recloop.data.limits import text_excess
from recloop.features.id_form import form_id, id_text
from recloop.records import USER_ID, is_guest
from recloop.serve import request as request_parts
from recloop.serve.middleware import json_response
from recloop.serve.request import request_time
from recloop.serve.schemas import HttpError, IdentifyRequest, IdentifyResponse
from recloop.serve.service import Service
from recloop.storage.identities import Identity

ANONYMOUS_ID = "anonymous_id"


class IdentifyRoutes:
    """Handler of ``POST /v1/identify``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def identify(self, request: Request) -> Response:
        """Join an anonymous id with a user; durable and in use when answered.

        Raises:
            HttpError: 422 for an invalid body or pair, 409 for a pair that would make a chain.
        """
        content = await request_parts.read_body(request)
        try:
            tree = msgspec.json.decode(content)
            named = {name: id_text(value) for name, value in tree.items()} if isinstance(tree, dict) else tree
            body = msgspec.convert(named, IdentifyRequest)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            expected = '{"anonymous_id": ID, "user_id": ID}'
            raise HttpError(422, "bad_body", f"the body is invalid: {error}", "body", expected) from None
        identity = self._identity(body, request)
        written = await self._service.write(identities=[identity])
        (result,) = written.identified
        if result.status == "refused":
            raise HttpError(409, "refused", f"the identify was refused: {result.reason}", USER_ID)
        answer = IdentifyResponse(identity.anonymous_id, identity.user_id, result.status, result.seq, result.moved)
        return json_response(answer)

    def _identity(self, body: IdentifyRequest, request: Request) -> Identity:
        """Build the identity of a body, with ids in the form of the project."""
        project = self._service.project
        ids = {ANONYMOUS_ID: body.anonymous_id, USER_ID: body.user_id}
        excess = text_excess(ids.items(), self._service.live.limits.id_bytes)
        if excess:
            raise HttpError(422, "bad_id", excess, "body")
        for name, value in ids.items():
            if not value.strip():
                raise HttpError(422, "bad_id", f"{name} is empty; expected an id", name, "an id")
            if is_guest(value):
                raise HttpError(422, "bad_id", f"{name} is a guest basket; expected an id of a person", name, "an id")
        anonymous_id, user_id = (form_id(value, project.config.data.id_form) for value in ids.values())
        if anonymous_id == user_id:
            raise HttpError(422, "bad_id", "anonymous_id and user_id are equal; expected two ids", USER_ID, "two ids")
        now = request_time(request.headers.get("x-recloop-now"), project, self._service.clock)
        return Identity(anonymous_id, user_id, now)
