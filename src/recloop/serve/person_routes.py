"""Routes that forget users; they answer when ``store/`` is free of them."""

from __future__ import annotations

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from recloop.errors import Refused, UserError
from recloop.privacy import erasure
from recloop.serve import request as request_parts
from recloop.serve.access import AccessRules
from recloop.serve.middleware import json_response
from recloop.serve.schemas import ForgetRequest, ForgetResponse, HttpError
from recloop.serve.service import Service


class PersonRoutes:
    """Handlers of ``DELETE /v1/users/{user_id}`` and ``POST /v1/admin/forget``."""

    def __init__(self, service: Service, rules: AccessRules) -> None:
        self._service = service
        self._rules = rules

    async def delete_user(self, request: Request) -> Response:
        """Forget one user."""
        return await self._forget([request.path_params["user_id"]], self._rules.origin("DELETE /v1/users", request))

    async def forget(self, request: Request) -> Response:
        """Forget the users of a body."""
        content = await request_parts.read_body(request)
        try:
            users = msgspec.json.decode(content, type=ForgetRequest).users
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpError(422, "bad_body", f"the body is invalid: {error}", "body", '{"users": [ID]}') from None
        return await self._forget(users, self._rules.origin("POST /v1/admin/forget", request))

    async def _forget(self, users: list[str], who: str) -> Response:
        project = self._service.project
        try:
            ids = await run_in_threadpool(erasure.check, project, users)
            await self._service.forget(ids, who)
        except UserError as error:
            message = f"unknown user; expected {error.expected}" if error.value else f"expected {error.expected}"
            raise HttpError(404 if error.value else 422, "not_found" if error.value else "bad_body", message) from None
        except Refused as error:
            raise HttpError(409, "refused", str(error), error.gate, str(error.threshold)) from None
        tree = await run_in_threadpool(erasure.receipt, project, ids)
        return json_response(msgspec.convert(tree, ForgetResponse))
