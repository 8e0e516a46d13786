"""Stores of a restored project: files of its folder, or PostgreSQL databases.

A restore writes files first and verifies them. Then the rows of log and control store move into the databases that the
configuration names, if it names any.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from recloop.config import FILE
from recloop.config.store_address import POSTGRES_FORM, is_postgres, without_password
from recloop.errors import UserError
from recloop.progress import Progress
from recloop.project import Project, open_project
from recloop.storage import CONTROL_SCHEMA, LOG_SCHEMA, control_database, log_database

FILES: Final = "files"
"""Value of ``--stores`` for files of the project folder."""
AS_FILES: Final = ("stores.log=sqlite:///store/log.db", "stores.control=sqlite:///store/control.db")
"""Settings under which a project whose configuration names databases reads the files of a backup."""
SECTION: Final = re.compile(r"^[ \t]*\[stores\][ \t]*(#.*)?\n", re.MULTILINE)
NEXT_SECTION: Final = re.compile(r"^[ \t]*\[", re.MULTILINE)
KEY: Final = re.compile(r"^[ \t]*(log|control)[ \t]*=.*\n?", re.MULTILINE)


def choose(folder: Path, stores: str) -> None:
    """Write the addresses of log and control store into a project's recloop.toml.

    Args:
        stores: Address of a PostgreSQL database, `FILES`, or empty for those of the file.

    Raises:
        UserError: the address has another form, or the file names the stores in a way that is not replaced.
    """
    if not stores:
        return
    if stores != FILES and not is_postgres(stores):
        raise UserError("--stores", without_password(stores), f"{POSTGRES_FORM} or {FILES}", "recloop restore --help")
    file = folder / FILE
    log, control = (stores, stores) if stores != FILES else (setting.partition("=")[2] for setting in AS_FILES)
    file.write_text(_with_stores(file.read_text("utf-8"), log, control), "utf-8")
    found = open_project(folder).config.stores
    if (found.log, found.control) != (log, control):
        expected = "a section [stores] with log and control, and no such setting in the environment"
        raise UserError(
            FILE, without_password(found.log), expected, "correct recloop.toml of the project, and back up again"
        )


def fill(project: Project, progress: Progress) -> Callable[[], None]:
    """Move the rows of restored files into the databases of the configuration.

    Returns:
        Call to make when the project folder has its name; a restore that ends before it can be repeated.

    Raises:
        UserError: a database has rows of a project, or another encoding than UTF8.
        StoreError: a server does not answer.
    """
    addresses = project.config.stores
    databases = (
        (log_database(addresses.log, project.root), LOG_SCHEMA),
        (control_database(addresses.control, project.root), CONTROL_SCHEMA),
    )
    if not (is_postgres(addresses.log) or is_postgres(addresses.control)):
        return lambda: None
    from recloop.storage import postgres_fill  # needs the extra postgres
    from recloop.storage.postgres import PostgresDatabase

    stores = []
    for database, schema in databases:
        if isinstance(database, PostgresDatabase):
            stores.append(postgres_fill.FilledStore(database, schema, project.store / f"{schema.name}.db"))
            progress.say("restore", f"{schema.name} into {database.name}")
    postgres_fill.fill(stores)
    for store in stores:
        for file in store.file.parent.glob(f"{store.file.name}*"):  # also its -wal and -shm
            file.unlink()
    return lambda: postgres_fill.finish(stores)


def _with_stores(text: str, log: str, control: str) -> str:
    """Return a configuration with other addresses of log and control store."""
    lines = f'log = "{log}"\ncontrol = "{control}"\n'
    section = SECTION.search(text)
    if section is None:
        return f"{text.rstrip()}\n\n[stores]\n{lines}"
    following = NEXT_SECTION.search(text, section.end())
    end = following.start() if following else len(text)
    return text[: section.end()] + lines + KEY.sub("", text[section.end() : end]) + text[end:]
