"""A PostgreSQL database that cannot be used: one message, exit 2, nothing half-done, no password shown."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres_server import PostgresServer, free_port, silent_listener, write_stores

from recloop.config.store_address import without_password
from recloop.errors import UserError
from recloop.project import Project, open_project
from recloop.storage import open_control, open_decisions, open_log

CLI = Callable[..., tuple[int, str, str]]
WRONG = "wrong-password"


def refused(cli: CLI, folder: Path, *words: str) -> str:
    """Run a command that must fail with one line; return this line."""
    code, out, err = cli("-C", folder, *words)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: stores.")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project folder without data."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "recloop.toml").write_text("")
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("verb", ["serve", "status", "update"])
def test_server_away_is_one_message(shop: Project, cli: CLI, verb: str) -> None:
    before = files_of(shop.root)
    write_stores(shop.root, f"postgresql://recloop:{WRONG}@127.0.0.1:{free_port()}/shop")
    message = refused(cli, shop.root, verb)
    assert "a PostgreSQL database that answers (" in message
    assert "Connection refused" in message
    assert 'try: psql "postgresql://recloop@127.0.0.1:' in message
    assert WRONG not in message
    assert files_of(shop.root) == before


@pytest.mark.parametrize("verb", ["serve", "status", "update"])
def test_server_that_does_not_answer_is_one_message_in_time(shop: Project, cli: CLI, verb: str) -> None:
    before = files_of(shop.root)
    with silent_listener() as port:
        write_stores(shop.root, f"postgresql://recloop:{WRONG}@127.0.0.1:{port}/shop")
        begin = time.monotonic()
        message = refused(cli, shop.root, verb)
    assert time.monotonic() - begin < 10
    assert "a PostgreSQL database that answers (connection timeout expired)" in message
    assert WRONG not in message
    assert files_of(shop.root) == before


def test_wrong_password_is_one_message_without_it(postgres: PostgresServer, shop: Project, cli: CLI) -> None:
    write_stores(shop.root, postgres.address("trained", WRONG))
    message = refused(cli, shop.root, "serve")
    assert 'password authentication failed for user "recloop"' in message
    assert WRONG not in message


def test_database_of_another_encoding_is_refused_and_unchanged(
    postgres: PostgresServer, shop: Project, cli: CLI
) -> None:
    address = postgres.create("latin", "ENCODING 'LATIN1'")
    write_stores(shop.root, address)
    assert "expected a database with encoding UTF8, not LATIN1; try: createdb" in refused(cli, shop.root, "serve")
    with postgres.connect("latin") as session:
        assert session.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'recloop%'").fetchall() == []


@pytest.mark.parametrize("store", ["log", "control"])
def test_database_of_a_newer_schema_is_refused(postgres: PostgresServer, shop: Project, cli: CLI, store: str) -> None:
    with postgres.connect(shop.config.stores.log.rpartition("/")[2]) as session:
        session.execute(f"UPDATE recloop_{store}.schema_version SET version = 99")
    for verb in ("serve", "status"):
        message = refused(cli, shop.root, verb)
        assert f"error: stores.{store}=postgresql://recloop@127.0.0.1" in message
        assert "expected schema 5 or older, not 99; try: pip install --upgrade recloop" in message


def test_server_without_fsync_is_refused(postgres: PostgresServer, address: str, tmp_path: Path) -> None:
    with fsync_off(postgres), pytest.raises(UserError, match="expected a server with fsync = on"):
        open_log(address, tmp_path, write=True)
    open_log(address, tmp_path, write=True).close()


@contextmanager
def fsync_off(postgres: PostgresServer) -> Iterator[None]:
    """Change the server's setting, which new sessions see at once."""
    with postgres.connect() as session:
        for value in ("off", "on"):
            session.execute(f"ALTER SYSTEM SET fsync = {value}")
            session.execute("SELECT pg_reload_conf()")
            while postgres.setting("fsync") != value:
                pass
            if value == "off":
                yield


def test_commit_is_synchronous_although_the_user_is_not(postgres: PostgresServer, address: str, tmp_path: Path) -> None:
    with postgres.connect() as session:
        session.execute(f"ALTER DATABASE {address.rpartition('/')[2]} SET synchronous_commit = off")
    with open_log(address, tmp_path, write=True) as log, log.commit() as writer:
        assert writer.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_tables_that_cannot_be_created_leave_nothing(postgres: PostgresServer, tmp_path: Path) -> None:
    address = postgres.create("barred")
    with postgres.connect("barred") as session:
        session.execute("CREATE SCHEMA recloop_log CREATE TABLE retractions (another BIGINT)")
    with pytest.raises(OSError, match="retractions"):
        open_log(address, tmp_path, write=True)
    with postgres.connect("barred") as session:
        tables = session.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'recloop_log'").fetchall()
    assert tables == [("retractions",)]


def test_decisions_in_a_database_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stores\.decisions=.*expected sqlite:///PATH;") as caught:
        open_decisions(address, tmp_path)
    assert address.partition("@")[0].rpartition(":")[2] not in str(caught.value)


@pytest.mark.parametrize("address", ["postgresql://u:secret@[::1/shop", "postgresql://u:secret@host:port:/?x=%"])
def test_malformed_address_is_refused_without_its_password(address: str, tmp_path: Path) -> None:
    for opened in (open_log, open_control):
        with pytest.raises(UserError, match="expected postgresql://USER@HOST:PORT/DATABASE") as caught:
            opened(address, tmp_path)
        assert "secret" not in str(caught.value)


def test_missing_extra_is_named(folder: Path) -> None:
    write_stores(folder, "postgresql://u:secret@host/shop")
    program = 'import sys; sys.modules["psycopg"] = None; from recloop.cli import main; main()'
    done = subprocess.run(
        [sys.executable, "-c", program, "-C", folder, "status"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: stores.control=postgresql://u@host/shop: expected the extra postgres for this address; "
        'try: pip install "recloop[postgres]"\n'
    )


def test_migration_leaves_the_database(shop: Project, cli: CLI) -> None:
    assert cli("-C", shop.root, "migrate", "--dry-run")[:2] == (0, "every store has the newest schema\n")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sqlite:///store/log.db", "sqlite:///store/log.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://u@host:1/db", "postgresql://u@host:1/db"),
        ("postgresql://u:p@host/db", "postgresql://u@host/db"),
        ("postgres://u:p:/?#@@host/db", "postgres://u@host/db"),
        ("postgresql:///db?host=/run&password=p%40&user=u", "postgresql:///db?host=/run&password=***&user=u"),
        ("postgresql:///db?sslpassword=p", "postgresql:///db?sslpassword=***"),
        ("mysql://u:p@host/db", "mysql://u@host/db"),
    ],
)
def test_address_is_shown_without_passwords(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_dumped_configuration_has_no_password(shop: Project, postgres: PostgresServer) -> None:
    assert postgres.password in shop.config.stores.log
    assert postgres.password not in shop.config.model_dump_json()
    assert open_project(shop.root).config.stores.log == shop.config.stores.log
