"""Any order of events, identifies and requests: states online equal rebuilt states and a written definition."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import inside

from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.state_history import StateHistory
from recloop.monitoring.verify import verify
from recloop.project import open_project
from recloop.recommend.user_states import write_states
from recloop.records import EVENT_SCHEMA, RULE, SECOND, SEQ, USER_ID
from recloop.serve.app import create
from recloop.serve.service import Service

START = 1_752_000_000 * SECOND
USERS = ("u14", "new")  # with and without rows of the import
DEVICES = ("u15", "phone", "tablet")  # the first one has rows of the import
PERSONS = (*USERS, *DEVICES)
LAST = np.iinfo(np.int64).max

event = st.tuples(
    st.just("event"),
    st.sampled_from(PERSONS),
    st.sampled_from(("i01", "i02", "i03")),
    st.sampled_from(("purchase", "purchase", "click", "dislike", "undo")),
    st.sampled_from((None, None, "basket")),
    st.integers(0, 30),  # seconds before the time of receipt
    st.booleans(),  # with an event_id
)
step = st.one_of(
    event, event, event,
    st.tuples(st.just("identify"), st.sampled_from(DEVICES), st.sampled_from(USERS)),
    st.tuples(st.just("ask"), st.sampled_from(PERSONS)),
    st.tuples(st.just("delete"), st.integers(0, 10)),
    st.tuples(st.just("reopen")),
)  # fmt: skip


class Definition:
    """Persons by the written rule, from posted rows and identifies alone.

    A row before the first identify of its id arrives again with the identify, as a row of that user. A later row is of
    the user who was identified last.
    """

    def __init__(self, archived: pl.DataFrame, users: pl.DataFrame | None) -> None:
        self.users = users
        self.rows = [dict(row) for row in archived.iter_rows(named=True)]
        self.newest: dict[str, str] = {}

    def person(self, name: str) -> str:
        return self.newest.get(name, name)

    def identify(self, device: str, user: str) -> None:
        if device not in self.newest:
            own = [row for row in self.rows if row[USER_ID] == device]
            self.rows = [row for row in self.rows if row[USER_ID] != device] + [{**row, USER_ID: user} for row in own]
        self.newest[device] = user

    def states(self, labeler: EventLabeler) -> dict[str, str]:
        rows = [{**row, SEQ: seq} for seq, row in enumerate(self.rows, 1)]
        frame = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
        history = StateHistory(moment_stamps(labeler.label(frame)), self.users)
        names = [self.person(name) for name in PERSONS]
        states = history.states(names, [LAST] * len(names))
        return {name: states.digest(b) for b, name in enumerate(PERSONS)}


class Shop:
    """A service, and the definition beside it."""

    def __init__(self, folder: Path) -> None:
        self.project = open_project(folder)
        archive = self.project.open_archive()
        self.definition = Definition(archive.for_users(list(PERSONS)), archive.users())
        self.stamps = iter(range(START, START + 1_000_000 * SECOND, 100 * SECOND))
        self.event_ids: list[str] = []

    def run(self, steps: list[Any]) -> None:
        """Run steps; ``reopen`` starts the service again from its files."""
        part: list[Any] = []
        for one in [*steps, ("reopen",)]:
            if one[0] != "reopen":
                part.append(one)
                continue
            app = create(self.project, clock=lambda: next(self.stamps))
            inside(app, lambda client, service, part=part: self.serve(client, service, part))  # type: ignore[misc]
            part = []

    async def serve(self, client: httpx.AsyncClient, service: Service, steps: list[Any]) -> None:
        for kind, *arguments in steps:
            await getattr(self, f"{kind}_step")(client, service, *arguments)
        await self.compare(client, service)

    async def event_step(
        self, client: httpx.AsyncClient, service: Service, name: str, item: str, event_type: str, group: str | None,
        before: int, with_id: bool,
    ) -> None:  # fmt: skip
        stamp = next(self.stamps) - before * SECOND
        body = {"item_id": item, "event_type": event_type, "timestamp": stamp, "group_id": group}
        if with_id:
            self.event_ids.append(f"e{len(self.event_ids)}")
            body["event_id"] = self.event_ids[-1]
        key = "anonymous_id" if name in DEVICES else USER_ID
        answer = await client.post("/v1/events", json={key: name, **body})
        assert answer.json()["accepted"] == 1, answer.text
        row = service.log.events().row(-1, named=True)
        assert row[USER_ID] == self.definition.person(name)
        self.definition.rows.append(
            {**{column: row[column] for column in EVENT_SCHEMA}, "posted": body.get("event_id")}
        )

    async def identify_step(self, client: httpx.AsyncClient, _: Service, device: str, user: str) -> None:
        answer = await client.post("/v1/identify", json={"anonymous_id": device, USER_ID: user})
        status = "duplicate" if self.definition.newest.get(device) == user else "accepted"
        assert answer.json()["status"] == status
        self.definition.identify(device, user)

    async def ask_step(self, client: httpx.AsyncClient, service: Service, name: str) -> None:
        key = "anonymous_id" if name in DEVICES else USER_ID
        assert (await client.get("/v1/recommend", params={key: name, "n": 5})).status_code == 200

    async def delete_step(self, client: httpx.AsyncClient, _: Service, number: int) -> None:
        if number < len(self.event_ids):
            event_id = self.event_ids[number]
            assert (await client.delete(f"/v1/events/{event_id}")).status_code == 200
            self.definition.rows = [row for row in self.definition.rows if row.get("posted") != event_id]

    async def compare(self, client: httpx.AsyncClient, service: Service) -> None:
        expected = self.definition.states(EventLabeler.from_spec(service.bundle.spec))
        online = {name: service.user_state(name).digest(0) for name in PERSONS}
        assert online == expected
        rebuilt = service.user_states.over_archive(service.archive, [service.bundle.spec], service.as_of)
        states = rebuilt.get(service.bundle.spec)
        assert {name: states.read(rebuilt.identities.person(name)).digest(0) for name in PERSONS} == expected
        self.compare_stored(service, expected)

    def compare_stored(self, service: Service, expected: dict[str, str]) -> None:
        """States of an update, advanced from stored ones and written from all rows."""
        source = service.user_states.get(service.bundle.spec)
        for earlier in (source.stored, None):
            with tempfile.TemporaryDirectory() as folder:
                path, key = Path(folder) / "states", service.bundle.spec.state_key
                write_states(path, service.as_of, service.archive, service.log, source.signal, key, earlier)
                stored = state_store.read(path, key)
                names = [self.definition.person(name) for name in PERSONS]
                states = stored.history.states(names, [LAST] * len(names))
                assert {name: states.digest(b) for b, name in enumerate(PERSONS)} == expected


@given(st.lists(step, max_size=16))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_states_online_equal_rebuilt_states_for_any_order(trained_folder: Path, steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(shutil.copytree(trained_folder, Path(folder) / "shop"))
        shop.run(steps)
        result = verify(shop.project)
        assert result["unexplained"] == 0, result["differences"]
        with shop.project.open_log() as log:
            rows = log.events().filter(pl.col(RULE).is_null())
        assert rows["event_id"].drop_nulls().is_duplicated().sum() == 0
