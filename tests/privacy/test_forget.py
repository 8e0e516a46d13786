"""Erasure of users: byte scans after each line, other users' lists, returns and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import servers
from byte_scan import files_naming

from recloop import loop
from recloop.errors import Refused, UserError
from recloop.monitoring.verify import verify
from recloop.pipeline.forget import forget
from recloop.pipeline.redaction import redact
from recloop.privacy import erasure
from recloop.progress import NullProgress
from recloop.project import Project, open_project
from recloop.records import USER_ID
from recloop.serve import offline
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import forgotten
from recloop.storage.forgotten import ForgottenUsers

FORGOTTEN = [f"person-{number:03d}-x" for number in range(10, 30)]
OTHERS = [f"person-{number:03d}-x" for number in range(30, 40)]
IMPORTED = ("events.csv", "users.csv")


async def shop_a_little(client: httpx.AsyncClient, _: Service) -> None:
    """Let 30 users ask for a list, buy from it and change an attribute."""
    for user in (*FORGOTTEN, *OTHERS):
        parameters = {"anonymous_id": f"browser-of-{user}", "session_id": f"session-of-{user}"}
        listed = (await client.get(f"/v1/recommend/{user}", params=parameters)).json()
        row = {
            USER_ID: user, "item_id": listed["items"][0]["item_id"], "event_type": "purchase",
            "request_id": listed["request_id"], "anonymous_id": f"browser-of-{user}", "event_id": f"bought-by-{user}",
        }  # fmt: skip
        broken = {**row, "event_id": f"broken-by-{user}", "quantity": 0}
        counts = (await client.post("/v1/events", json=[row, broken])).json()
        assert (counts["accepted"], counts["quarantined"]) == (1, 1)
        wrong = [{**row, "item_id": ""}, {"user": user}, {"user_id": 7, "anonymous_id": user, "event_type": "purchase"}]
        assert (await client.post("/v1/events", json=wrong)).json()["rejected"] == 3
        lines = f'{json.dumps(row)}\n{{"user_id": "{user}", "item_id'
        reply = await client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
        assert (reply.json()["duplicate"], reply.json()["rejected"]) == (1, 1)
        await client.post("/v1/users", json={USER_ID: user, "attributes": {"age": "60+"}, "unknown": 1})
        await client.post("/v1/users", json={USER_ID: user, "attributes": {"age": "60+"}})
        await client.get(f"/v1/recommend/{user}", headers={"X-Request-Id": f"seen-by-{user}"})


@pytest.fixture(scope="module")
def used_folder(named_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop after requests and events of 30 users, with a rejected row that names one."""
    folder = shutil.copytree(named_folder, tmp_path_factory.mktemp("used") / "shop")
    servers.inside(create(open_project(folder)), shop_a_little)
    rejected = {"place": "events.csv:7", "reason": "no item_id", "raw": f"{FORGOTTEN[0]},,2025"}
    (folder / "data" / "rejects.jsonl").write_text(json.dumps(rejected) + "\n", "utf-8")
    return folder


@pytest.fixture
def used(used_folder: Path, tmp_path: Path) -> Project:
    """A copy of the used shop."""
    return open_project(shutil.copytree(used_folder, tmp_path / "shop"))


def lists(project: Project, users: Sequence[str]) -> dict[str, Any]:
    """Lists without a running service, by user."""
    return {user: offline.recommend(project, user)["items"] for user in users}


def test_no_byte_of_20_users_is_left_after_each_line(used: Project) -> None:
    before = lists(used, OTHERS)
    assert files_naming(used.store, FORGOTTEN)
    assert len(used.open_rejected().rows()) == 5 * len((*FORGOTTEN, *OTHERS))
    tree = forget(used, FORGOTTEN)
    assert [row["stores"] is not None for row in tree["users"]] == [True] * 20
    assert {(row["data"], row["backups"]) for row in tree["users"]} == {(None, None)}
    assert tree["files"] == ["events.csv", "users.csv"]
    assert files_naming(used.store, FORGOTTEN) == []
    assert len(used.open_rejected().rows()) == 5 * len(OTHERS)
    assert lists(used, OTHERS) == before
    assert len(files_naming(used.root, FORGOTTEN, IMPORTED)) > 10

    assert redact(used, NullProgress())  # the first step of an update
    assert lists(used, OTHERS) == before
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []
    used.load_bundle()  # its hashes hold
    loop.update(used)
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []
    done = erasure.receipt(used, FORGOTTEN)["users"]
    assert all(row["data"] and row["backups"] > row["data"] for row in done)


def test_examples_of_the_evaluation_name_no_forgotten_user(used: Project) -> None:
    evaluation = used.reports / "evaluation.json"
    named = [example[USER_ID] for example in json.loads(evaluation.read_text("utf-8"))["examples"]]
    page = used.reports / "report.html"
    page.write_text(f"<p>{named[0]}</p>", "utf-8")
    forget(used, named[:2])
    assert redact(used, NullProgress())
    left = [example[USER_ID] for example in json.loads(evaluation.read_text("utf-8"))["examples"]]
    assert (left, page.exists()) == (named[2:], False)
    assert files_naming(used.root, named[:2], IMPORTED) == []


def test_redaction_keeps_counts_and_other_rows(used: Project) -> None:
    archive = used.open_archive()
    others = archive.events().filter(~pl.col(USER_ID).is_in(FORGOTTEN))
    n_archived = len(archive.events())
    counts = archive.manifest.counts
    forget(used, FORGOTTEN)
    assert used.open_archive().events().equals(others)  # ignored before they are removed
    assert not loop.load(used).events[USER_ID].is_in(FORGOTTEN).any()
    loop.update(used)
    after = used.open_archive()
    assert after.events().filter(pl.col("seq") <= archive.watermark).equals(others)
    removed = n_archived - len(others)
    if after.watermark == archive.watermark:
        assert counts.kept - after.manifest.counts.kept == removed
        assert counts.train + counts.valid + counts.test - removed == sum(
            (after.manifest.counts.train, after.manifest.counts.valid, after.manifest.counts.test)
        )
    assert not loop.load(used).events[USER_ID].is_in(FORGOTTEN).any()


def test_verify_of_other_users_is_clean_and_counts_erased_decisions(used: Project) -> None:
    before = verify(used)
    assert (before["checked"], before["equal"]) == (60, 60)
    forget(used, FORGOTTEN)
    after = verify(used)
    assert (after["checked"], after["equal"], after["removed"], after["unexplained"]) == (60, 20, 40, 0)
    loop.update(used)
    assert verify(used)["unexplained"] == 0


def test_running_service_forgets_from_the_next_request_on(used: Project) -> None:
    user, other = FORGOTTEN[0], OTHERS[0]
    seen: dict[str, Any] = {}

    async def forget_and_return(client: httpx.AsyncClient, service: Service) -> None:
        kept = (await client.get(f"/v1/recommend/{other}")).json()["items"]
        unknown = (await client.get("/v1/recommend/unknown-user")).json()["items"]
        reply = await client.delete(f"/v1/users/{user}")
        assert reply.status_code == 200, reply.text
        assert reply.json()["users"][0][USER_ID] == user
        assert (await client.get(f"/v1/users/{user}")).status_code == 404
        assert (await client.get(f"/v1/recommend/{user}")).json()["items"] == unknown
        assert (await client.get(f"/v1/recommend/{other}")).json()["items"] == kept
        row = {USER_ID: user, "item_id": "i01", "event_type": "purchase", "event_id": f"bought-by-{user}"}
        assert (await client.post("/v1/events", json=row)).json()["accepted"] == 1
        state = (await client.get(f"/v1/users/{user}")).json()
        assert (state["events"], [past["item_id"] for past in state["last_events"]]) == (1, ["i01"])
        await client.get(f"/v1/recommend/{user}")
        seen["decisions"] = service.decisions.flush()

    servers.inside(create(used), forget_and_return)
    assert verify(used)["unexplained"] == 0
    with used.open_log() as log:
        assert log.events(user)["item_id"].to_list() == ["i01"]
    loop.update(used)  # removes the former rows and keeps the new one
    assert verify(used)["unexplained"] == 0
    with used.open_log() as log:
        assert log.events(user)["item_id"].to_list() == ["i01"]


def test_command_asks_the_running_service(used: Project, serving: Callable[..., servers.Server]) -> None:
    server = serving(used.root)
    tree = forget(used, FORGOTTEN)
    assert len(tree["users"]) == 20
    assert server.client.get(f"/v1/users/{FORGOTTEN[3]}").status_code == 404
    loop.update(used)  # beside the service
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []
    assert server.client.get(f"/v1/recommend/{OTHERS[0]}").status_code == 200
    assert server.stop() == 0
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []
    assert verify(used)["unexplained"] == 0


def test_workers_forget_before_the_answer(used: Project, serving: Callable[..., servers.Server]) -> None:
    server = serving(used.root, "--workers", "2")
    user = FORGOTTEN[0]
    assert server.client.delete(f"/v1/users/{user}").status_code == 200
    unknown = server.client.get("/v1/recommend/unknown-user").json()["items"]
    for _ in range(10):
        with httpx.Client(base_url=server.url, headers=server.client.headers) as client:  # a connection of its own
            assert client.get(f"/v1/recommend/{user}").json()["items"] == unknown


def test_interrupted_erasure_is_completed_at_the_next_start(used: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "erase_stores", fail)
        with pytest.raises(OSError, match="killed"):
            forget(used, FORGOTTEN)
    assert files_naming(used.store, FORGOTTEN)  # decisions and states
    assert all(one.stores is None for one in ForgottenUsers.read(used.root))

    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.get(f"/v1/users/{FORGOTTEN[0]}")).status_code == 404

    servers.inside(create(used), ask)
    assert files_naming(used.store, FORGOTTEN) == []
    assert all(one.stores is not None for one in ForgottenUsers.read(used.root))


def test_interrupted_redaction_is_completed_by_the_next_update(used: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(used, FORGOTTEN)
    with monkeypatch.context() as patch:
        patch.setattr("recloop.bundle.redaction.swap_folder", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.update(used)
    loop.update(used)
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []
    used.load_bundle()


def test_new_first_run_does_not_import_forgotten_users_again(used: Project) -> None:
    forget(used, FORGOTTEN)
    loop.update(used, restart=True)
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []
    assert used.open_archive().manifest.counts.removed["forgotten"] > 0


@pytest.mark.parametrize("is_redacted", [True, False])
def test_lost_list_of_erasures_is_written_again_from_the_audit_log(used: Project, is_redacted: bool) -> None:
    forget(used, FORGOTTEN)
    if is_redacted:
        loop.update(used)
    listed = {one.user: one.requested for one in ForgottenUsers.read(used.root)}
    (used.store / forgotten.FILE_NAME).unlink()
    loop.update(used, restart=True)
    assert {one.user: one.requested for one in ForgottenUsers.read(used.root)} == listed
    assert not used.open_archive().events()[USER_ID].is_in(FORGOTTEN).any()
    create(used).state.service.close()
    assert all(one.stores is not None for one in ForgottenUsers.read(used.root))
    loop.update(used)
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []


def test_lost_list_and_key_of_erasures_are_refused(used: Project) -> None:
    forget(used, FORGOTTEN)
    for name in (forgotten.FILE_NAME, forgotten.KEY_FILE):
        (used.store / name).unlink()
    for start in (create, loop.update):
        with pytest.raises(UserError, match=r"restore .*person-key from a backup"):
            start(used)


def test_grown_file_does_not_bring_forgotten_users_back(used: Project) -> None:
    forget(used, FORGOTTEN)
    with (used.root / "events.csv").open("a", encoding="utf-8") as file:
        for number, user in enumerate((FORGOTTEN[0], OTHERS[0])):
            file.write(f"late-{number},{user},i01,2025-06-30T10:00:00Z,purchase,,,\n")
    loop.update(used)
    assert files_naming(used.root, FORGOTTEN, IMPORTED) == []


def test_user_who_returns_is_forgotten_again(used: Project) -> None:
    user = FORGOTTEN[0]
    forget(used, [user])

    async def buy(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/events", json={USER_ID: user, "item_id": "i01", "event_type": "purchase"})

    servers.inside(create(used), buy)
    assert files_naming(used.store, [user])
    first = ForgottenUsers.read(used.root).get(user)
    forget(used, [user])
    second = ForgottenUsers.read(used.root).get(user)
    assert first is not None
    assert second is not None
    assert (second.seq or 0) > (first.seq or 0)
    assert files_naming(used.store, [user]) == []
    loop.update(used)
    assert files_naming(used.root, [user], IMPORTED) == []


def test_forget_of_nobody_and_of_unknown_users_changes_nothing(used: Project) -> None:
    with pytest.raises(UserError, match="USER=: expected one or more user ids"):
        forget(used, [])
    with pytest.raises(UserError, match="USER=unknown-1: expected a user with stored rows or decisions"):
        forget(used, [FORGOTTEN[0], "unknown-1"])
    assert len(ForgottenUsers.read(used.root)) == 0
    assert files_naming(used.store, FORGOTTEN[:1])


def test_forget_twice_repeats_the_lines(used: Project) -> None:
    forget(used, FORGOTTEN[:1])
    assert len(forget(used, FORGOTTEN[:1])["users"]) == 1
    loop.update(used)
    assert forget(used, FORGOTTEN[:1])["users"][0]["stores"]
    loop.update(used)
    assert erasure.receipt(used, FORGOTTEN[:1])["users"][0]["data"]


def test_forget_of_everybody_is_refused(used: Project) -> None:
    names = [
        *(f"person-{number:03d}-x" for number in range(1, 301)),
        *(f"browser-of-{user}" for user in (*FORGOTTEN, *OTHERS)),
    ]
    with pytest.raises(Refused, match="users left=0, threshold 1: to forget everybody, delete the project folder"):
        forget(used, names)
    assert len(ForgottenUsers.read(used.root)) == 0


def test_delete_of_an_unknown_user_is_404(used: Project) -> None:
    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.delete("/v1/users/unknown-1")).status_code == 404
        assert (await client.post("/v1/admin/forget", json={"users": []})).status_code == 422
        assert (await client.post("/v1/admin/forget", json={"user": "x"})).status_code == 422

    servers.inside(create(used), ask)


def test_anonymous_id_is_removed_from_the_rows_of_its_user(used: Project) -> None:
    forget(used, [f"browser-of-{OTHERS[0]}"])
    assert files_naming(used.store, [f"browser-of-{OTHERS[0]}"]) == []
    with used.open_log() as log:
        assert log.events(OTHERS[0])["anonymous_id"].to_list() == [None, None]
    assert verify(used)["unexplained"] == 0


def test_list_of_erasures_has_no_id_and_a_private_key(used: Project) -> None:
    forget(used, FORGOTTEN)
    for name in (forgotten.FILE_NAME, forgotten.KEY_FILE):
        assert (used.store / name).stat().st_mode & 0o077 == 0
    (used.store / forgotten.KEY_FILE).unlink()
    with pytest.raises(UserError, match="person-key"):
        used.open_archive()
    (used.store / forgotten.FILE_NAME).write_text("{")
    with pytest.raises(UserError, match="a list of erasures"):
        used.open_archive()


@pytest.mark.parametrize(
    "change", [lambda key: key[:7], lambda key: key[::-1], lambda _: b""], ids=["cut", "other", "empty"]
)
def test_key_that_does_not_fit_the_erasures_is_refused(
    used: Project, cli: Callable[..., tuple[int, str, str]], change: Callable[[bytes], bytes]
) -> None:
    """With another key no user is found under the hashes, so the rows of forgotten users would be back."""
    forget(used, FORGOTTEN)
    key = used.store / forgotten.KEY_FILE
    right = key.read_bytes()
    key.write_bytes(change(right))
    with pytest.raises(UserError, match=r"person-key=.*expected the key of the hashes.*restore .*person-key from a"):
        create(used)
    code, _, err = cli("-C", used.root, "update")
    assert (code, "person-key=" in err) == (2, True)
    key.write_bytes(right)
    assert not used.open_archive().events()[USER_ID].is_in(FORGOTTEN).any()


def test_list_of_erasures_of_an_earlier_version_is_read(used: Project) -> None:
    forget(used, FORGOTTEN)
    file = used.store / forgotten.FILE_NAME
    tree = json.loads(file.read_text("utf-8"))
    del tree["key"]
    file.write_text(json.dumps(tree), "utf-8")
    assert len(ForgottenUsers.read(used.root)) == len(FORGOTTEN)
    forgotten.record(used.root, [])
    assert json.loads(file.read_text("utf-8"))["key"]


def test_command_prints_three_dated_lines(used: Project, cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = cli("-C", used.root, "forget", FORGOTTEN[0])
    assert code == 0
    lines_ = out.splitlines()
    assert lines_[0] == FORGOTTEN[0]
    assert lines_[1].endswith("log, decisions and states are free of the user")
    assert lines_[2] == "  next recloop update  archive, split and bundles"
    assert cli("-C", used.root, "forget")[0] == 2


def test_copy_of_the_project_keeps_the_erasures(used: Project, tmp_path: Path) -> None:
    forget(used, FORGOTTEN)
    copied = open_project(shutil.copytree(used.root, tmp_path / "copied"))
    assert copied.open_archive().for_users(FORGOTTEN).is_empty()
