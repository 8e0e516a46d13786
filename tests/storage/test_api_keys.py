"""File of API keys: contents, rights, damage and names."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from access import control_of

from recloop.errors import Locked, UserError
from recloop.records import now
from recloop.storage import api_keys, locks
from recloop.storage.api_keys import KeyScope


def test_added_key_is_stored_as_a_hash_in_a_private_file(tmp_path: Path) -> None:
    assert api_keys.read(tmp_path) is None
    key, secret = api_keys.add(tmp_path, control_of(tmp_path), "shop", ["ingest", "read"], rate=5.0)
    file = tmp_path / "store" / "api-keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret.startswith("recloop_")
    assert len(secret) == len("recloop_") + 43  # 256 bits
    assert secret not in file.read_text()
    assert key.sha256 == api_keys.sha256(secret.encode())
    assert key.scopes == (KeyScope.READ, KeyScope.INGEST)
    assert api_keys.read(tmp_path) == (key,)
    assert api_keys.add(tmp_path, control_of(tmp_path), "till", ["read"])[1] != secret
    assert {path.name for path in file.parent.iterdir()} == {"api-keys.json", "keys.lock", "control.db"}


def test_revoke_removes_one_key_and_the_last_one_leaves_an_empty_file(tmp_path: Path) -> None:
    for name in ("shop", "till"):
        api_keys.add(tmp_path, control_of(tmp_path), name, ["read"])
    api_keys.record_use(tmp_path, "shop")
    assert api_keys.last_used(tmp_path, "shop")
    assert api_keys.last_used(tmp_path, "till") is None
    api_keys.revoke(tmp_path, control_of(tmp_path), "shop")
    assert api_keys.last_used(tmp_path, "shop") is None
    assert [key.name for key in api_keys.read(tmp_path) or ()] == ["till"]
    api_keys.revoke(tmp_path, control_of(tmp_path), "till")
    assert api_keys.read(tmp_path) == ()
    with pytest.raises(UserError, match="the name of a key; try: recloop keys list"):
        api_keys.revoke(tmp_path, control_of(tmp_path), "till")


@pytest.mark.parametrize(
    ("name", "scopes", "more", "problem"),
    [
        ("", ["read"], {}, "NAME"),
        ("../x", ["read"], {}, "NAME"),
        ("a" * 65, ["read"], {}, "NAME"),
        ("taken", ["read"], {}, "recloop keys revoke taken"),
        ("shop", [], {}, "--scope"),
        ("shop", ["write"], {}, "--scope=write"),
        ("shop", ["public"], {}, "--scope=public"),
        ("shop", ["read"], {"rate": 0.0}, "--rate"),
        ("shop", ["read"], {"rate": float("nan")}, "--rate"),
        ("shop", ["read"], {"expires": 1}, "a time in the future"),
    ],
)
def test_invalid_key_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, scopes: list[str], more: dict[str, float], problem: str
) -> None:
    api_keys.add(tmp_path, control_of(tmp_path), "taken", ["read"])
    before = api_keys.path(tmp_path).read_bytes()
    with pytest.raises(UserError, match=problem):
        api_keys.add(tmp_path, control_of(tmp_path), name, scopes, **more)  # type: ignore[arg-type]
    assert api_keys.path(tmp_path).read_bytes() == before


def test_two_writers_of_the_keys_are_refused(tmp_path: Path) -> None:
    with locks.keys_lock(tmp_path), pytest.raises(Locked):
        api_keys.add(tmp_path, control_of(tmp_path), "shop", ["read"])


KEY = {"name": "shop", "sha256": "0" * 64, "scopes": ["read"], "created": 1}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"keys": 1}', "\x00" * 100,
        json.dumps({"keys": [KEY, KEY]}),
        json.dumps({"keys": [{**KEY, "sha256": "short"}]}),
        json.dumps({"keys": [{**KEY, "scopes": []}]}),
        json.dumps({"keys": [{**KEY, "scopes": ["public"]}]}),
        json.dumps({"keys": [{**KEY, "name": "../x"}]}),
        json.dumps({"keys": [{**KEY, "created": "today"}]}),
    ],
)  # fmt: skip
def test_damaged_file_is_named_with_a_fix(tmp_path: Path, content: str) -> None:
    file = api_keys.path(tmp_path)
    file.parent.mkdir()
    file.write_text(content)
    file.chmod(0o600)
    for action in (
        lambda: api_keys.read(tmp_path),
        lambda: api_keys.add(tmp_path, control_of(tmp_path), "new", ["read"]),
    ):
        with pytest.raises(UserError, match=rf"keys={file}: expected a list of keys .*; try: rm {file}"):
            action()
    assert file.read_text() == content


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    api_keys.add(tmp_path, control_of(tmp_path), "shop", ["read"])
    api_keys.path(tmp_path).chmod(mode)
    with pytest.raises(UserError, match=f"a file of mode 0600, not {mode:04o}; try: chmod 600 "):
        api_keys.read(tmp_path)


def test_key_expires_at_its_time(tmp_path: Path) -> None:
    key, _ = api_keys.add(tmp_path, control_of(tmp_path), "shop", ["read"], expires=now() + 60_000_000)
    assert key.expires is not None
    assert not key.is_expired(key.expires - 1)
    assert key.is_expired(key.expires)
