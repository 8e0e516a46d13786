"""Schema of log.db: tables, migrations, views of earlier schemas and settings."""

from __future__ import annotations

from recloop.storage import identities
from recloop.storage.database import StoreSchema

SCHEMA = 5

SCRIPT = f"""
CREATE TABLE counter (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL);
INSERT INTO counter VALUES (1, 0);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, event_id TEXT, user_id TEXT NOT NULL, anonymous_id TEXT, item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL, received_at INTEGER NOT NULL, event_type TEXT NOT NULL, value REAL, quantity REAL,
    group_id TEXT, session_id TEXT, placement TEXT, request_id TEXT, context TEXT, rule TEXT);
CREATE UNIQUE INDEX events_event_id ON events (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX events_user_time ON events (user_id, timestamp);
CREATE TABLE items (
    seq INTEGER PRIMARY KEY, item_id TEXT NOT NULL, received_at INTEGER NOT NULL, attributes TEXT NOT NULL,
    hidden INTEGER NOT NULL, deleted INTEGER NOT NULL);
CREATE INDEX items_item ON items (item_id, seq);
CREATE TABLE users (
    seq INTEGER PRIMARY KEY, user_id TEXT NOT NULL, received_at INTEGER NOT NULL, attributes TEXT NOT NULL,
    deleted INTEGER NOT NULL);
CREATE INDEX users_user ON users (user_id, seq);
CREATE TABLE retractions (seq INTEGER PRIMARY KEY, retracted_seq INTEGER NOT NULL, rule TEXT NOT NULL);
CREATE INDEX retractions_event ON retractions (retracted_seq, seq);
{identities.TABLE}"""
MIGRATIONS = {
    1: "ALTER TABLE retractions RENAME COLUMN of_seq TO retracted_seq",
    2: "CREATE INDEX events_user_time ON events (user_id, timestamp); DROP INDEX events_user",
    3: "DROP INDEX events_item",
    4: f"CREATE INDEX retractions_event ON retractions (retracted_seq, seq); {identities.TABLE}",
}
VIEWS = {
    1: f"""CREATE TEMP VIEW retractions AS SELECT seq, of_seq AS retracted_seq, rule FROM main.retractions;
{identities.NO_IDENTITIES}""",
    **dict.fromkeys((2, 3, 4), identities.NO_IDENTITIES),
}

PRAGMAS = (
    "auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL",
    "cache_size = -8192",  # 8 MiB; a larger one fills for an hour and saves nothing
    "wal_autocheckpoint = 8000",  # 32 MB: a page that many commits change is copied to the file once
)  # fmt: skip
LOG_SCHEMA = StoreSchema("log", SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS, VIEWS)
