"""Reload of the settings that may change while serving.

curl -X POST http://127.0.0.1:8088/v1/admin/reload -H 'Content-Type: application/json' -H "Authorization: Bearer $(recloop token)" -d '{}'
kill -HUP PID
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import pydantic
from starlette.concurrency import run_in_threadpool

from recloop.config import Config
from recloop.errors import UserError
from recloop.project import open_project
from recloop.serve.access import AccessRules
from recloop.serve.schemas import RefusedKey, ReloadResponse
from recloop.serve.service import Service
from recloop.storage.audit import AuditAction, AuditEntry

LOGGER = logging.getLogger(__name__)
RELOADABLE: Final = ("serve.disk.", "serve.limits.", "serve.hosts", "serve.trusted_proxies")
"""Keys, or tables with a dot at the end, that a reload applies."""
READ_AT_START: Final = ("serve.", "stores.", "release.", "retention.")
"""Tables that `recloop serve` reads at its start; every other key belongs to the next update."""
API_KEYS: Final = "api-keys"
"""Name of changed API keys, with their origins and rates, among the changed settings."""


class ConfigReloader:
    """Reads recloop.toml and the API keys again; used on the event loop only."""

    def __init__(self, service: Service, rules: AccessRules) -> None:
        self._service = service
        self._rules = rules
        self._lock = asyncio.Lock()
        self._in_force = service.project.config

    async def reload(self, who: str) -> ReloadResponse:
        """Apply changed limits, hosts, proxies and API keys from the next request on.

        Other changed keys are named in the answer and are not applied.

        Args:
            who: Origin of the request for the audit log.

        Raises:
            UserError: recloop.toml or the file of keys is invalid; nothing was applied.
        """
        async with self._lock:
            project = self._service.project
            config = (await run_in_threadpool(open_project, project.root, project.sets)).config
            has_new_keys = self._rules.reload_keys()
            differing = changed_keys(self._in_force, config)
            applied = [key for key in differing if key.startswith(RELOADABLE)]
            if applied:
                await self._service.configure(config.serve)
                in_force = self._in_force.serve.model_copy(
                    update={name: getattr(config.serve, name) for name in ("limits", "hosts", "trusted_proxies")}
                )
                self._in_force = self._in_force.model_copy(update={"serve": in_force})
            refused = [RefusedKey(key, fix_of(key)) for key in differing if key not in applied]
            changed = [*applied, *([API_KEYS] if has_new_keys else [])]
            await run_in_threadpool(self._record, who, changed, refused)
            return ReloadResponse(changed, refused)

    def _record(self, who: str, changed: list[str], refused: list[RefusedKey]) -> None:
        details = {"changed": changed, "refused": [key.key for key in refused]}
        entry = AuditEntry(who, AuditAction.RELOAD, "", details, self._service.clock())
        self._service.control.record([entry])

    async def reload_and_log(self) -> None:
        """Reload after a signal; the log has the result."""
        try:
            result = await self.reload("SIGHUP")
        except UserError as error:
            LOGGER.error("the settings in force stay: %s", error)  # noqa: TRY400 - no traceback
            return
        LOGGER.warning("reloaded: %s", ", ".join(result.changed) or "nothing changed")
        for key in result.refused:
            LOGGER.warning("not reloaded: %s; fix: %s", key.key, key.fix)


def changed_keys(present: Config, config: Config) -> list[str]:
    """Return the dotted keys whose values differ, sorted."""
    before, after = _values(present, ""), _values(config, "")
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def fix_of(key: str) -> str:
    """Return the command that applies a changed key."""
    is_read_at_start = key.startswith(READ_AT_START) and key != "serve.segment"
    return "restart recloop serve" if is_read_at_start else "recloop update"


def _values(section: pydantic.BaseModel, prefix: str) -> dict[str, Any]:
    """Return values by dotted key; a table with free names is one value."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, pydantic.BaseModel):
            values |= _values(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values | {f"{prefix}{name}": value for name, value in (section.model_extra or {}).items()}
