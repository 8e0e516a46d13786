"""Schema of decisions.db: tables, migrations and views of earlier schemas."""

from __future__ import annotations

from collections.abc import Mapping

from recloop.records import Decision

SCHEMA = 6
FORGOTTEN = "forgotten"
"""Role of a decision that was emptied because its user was forgotten."""

PERIODS_INDEX = "CREATE INDEX IF NOT EXISTS periods_answers ON periods (unit, variant, placement, period, answers)"
USERS_TABLE = """
CREATE TABLE users_by_period (
    unit INTEGER NOT NULL, period INTEGER NOT NULL, variant TEXT NOT NULL, placement TEXT NOT NULL, kind TEXT NOT NULL,
    users INTEGER NOT NULL, PRIMARY KEY (unit, variant, placement, kind, period)) WITHOUT ROWID"""
COUNT_TABLES = f"""
CREATE TABLE periods (
    unit INTEGER NOT NULL, period INTEGER NOT NULL, variant TEXT NOT NULL, placement TEXT NOT NULL,
    answers INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (unit, period, variant, placement));
{PERIODS_INDEX};
{USERS_TABLE};
CREATE TABLE item_codes (code INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE);
CREATE TABLE last_seen (
    user_id TEXT NOT NULL, variant TEXT NOT NULL, placement TEXT NOT NULL, kind TEXT NOT NULL, minute INTEGER NOT NULL,
    PRIMARY KEY (user_id, variant, placement, kind)) WITHOUT ROWID;
CREATE TABLE events_by_period (
    unit INTEGER NOT NULL, period INTEGER NOT NULL, variant TEXT NOT NULL, placement TEXT NOT NULL,
    events INTEGER NOT NULL, PRIMARY KEY (unit, period, variant, placement)) WITHOUT ROWID;
CREATE TABLE counted (one INTEGER PRIMARY KEY CHECK (one = 1), decision_id INTEGER NOT NULL, event_seq INTEGER NOT NULL);
INSERT INTO counted VALUES (1, 0, 0);
CREATE INDEX decisions_scored ON decisions (bundle, role) WHERE role <> 'answer'"""
"""Tables of `recloop.storage.decision_counts`, and the index of shadow lists and replicas."""

TOTALS_TABLE = """
CREATE TABLE totals (
    variant TEXT NOT NULL, placement TEXT NOT NULL, answers INTEGER NOT NULL, PRIMARY KEY (variant, placement))"""
REMOVED_TABLE = """
CREATE TABLE removed (
    variant TEXT NOT NULL, placement TEXT NOT NULL, answers INTEGER NOT NULL, PRIMARY KEY (variant, placement))"""
SCRIPT = f"""
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, role TEXT NOT NULL, user_id TEXT NOT NULL,
    served_at INTEGER NOT NULL, as_of_seq INTEGER NOT NULL, bundle TEXT NOT NULL, generation INTEGER NOT NULL,
    variant TEXT NOT NULL, placement TEXT NOT NULL, n INTEGER NOT NULL, query TEXT NOT NULL, items TEXT NOT NULL,
    scores TEXT NOT NULL, sources TEXT NOT NULL, degraded TEXT NOT NULL, session_id TEXT, anonymous_id TEXT,
    positives INTEGER NOT NULL, inputs TEXT NOT NULL, latency_us INTEGER NOT NULL, client_request_id TEXT,
    assigned TEXT NOT NULL DEFAULT 'live', UNIQUE (request_id, role, bundle));
CREATE INDEX decisions_served_at ON decisions (served_at);
CREATE TABLE counts (one INTEGER PRIMARY KEY CHECK (one = 1), settled INTEGER NOT NULL, dropped INTEGER NOT NULL,
    lost INTEGER NOT NULL, repeated INTEGER NOT NULL DEFAULT 0);
INSERT INTO counts VALUES (1, 0, 0, 0, 0);
{TOTALS_TABLE};
{COUNT_TABLES}"""
INPUTS_OF_SCHEMA_3 = (
    """replace(replace(replace(inputs, '"request.hour":', '"context.hour":'), """
    """'"request.weekday":', '"context.weekday":'), '"request.gap":', '"context.days_since_last":')"""
)
"""Inputs of a decision with the present names of the context features."""
MIGRATIONS = {
    1: """
ALTER TABLE decisions ADD COLUMN client_request_id TEXT;
ALTER TABLE decisions ADD COLUMN assigned TEXT NOT NULL DEFAULT 'live';
UPDATE decisions SET assigned = 'candidate' WHERE variant = 'candidate';
ALTER TABLE counts ADD COLUMN repeated INTEGER NOT NULL DEFAULT 0""",
    2: REMOVED_TABLE,
    3: f"""
ALTER TABLE decisions RENAME COLUMN at TO served_at;
ALTER TABLE decisions RENAME COLUMN as_of TO as_of_seq;
ALTER TABLE decisions RENAME COLUMN micros TO latency_us;
ALTER TABLE decisions RENAME COLUMN n TO id;
ALTER TABLE decisions RENAME COLUMN k TO n;
ALTER TABLE decisions DROP COLUMN propensities;
DROP INDEX decisions_at;
CREATE INDEX decisions_served_at ON decisions (served_at);
UPDATE decisions SET role = 'replica', variant = 'replica' WHERE role = 'twin';
UPDATE decisions SET inputs = {INPUTS_OF_SCHEMA_3}""",
    4: f"ALTER TABLE removed RENAME TO totals; {COUNT_TABLES}",
    5: f"""
ALTER TABLE users_by_period RENAME TO users_by_period_5;
{USERS_TABLE};
INSERT INTO users_by_period SELECT * FROM users_by_period_5;
DROP TABLE users_by_period_5;
{PERIODS_INDEX}""",
}
"""Schema 1 does not record the assigned arm: a row keeps the arm that answered."""

PRAGMAS = ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL")
COLUMNS = Decision.__struct_fields__


def _view(expressions: Mapping[str, str]) -> str:
    """Build the view of an older schema's table with the columns of this schema."""
    columns = ", ".join(f"{expressions.get(name, name)} AS {name}" for name in ("id", *COLUMNS))
    return f"CREATE TEMP VIEW decisions AS SELECT {columns} FROM main.decisions"


NAMES_OF_SCHEMA_3 = {
    "id": "n",
    "n": "k",
    "served_at": "at",
    "as_of_seq": "as_of",
    "latency_us": "micros",
    "role": "CASE role WHEN 'twin' THEN 'replica' ELSE role END",
    "variant": "CASE variant WHEN 'twin' THEN 'replica' ELSE variant END",
    "inputs": INPUTS_OF_SCHEMA_3,
}
COLUMNS_AFTER_SCHEMA_1 = {
    "client_request_id": "NULL",
    "assigned": "CASE variant WHEN 'candidate' THEN 'candidate' ELSE 'live' END",
}
NONE_REMOVED = "CREATE TEMP VIEW totals AS SELECT '' AS variant, '' AS placement, 0 AS answers WHERE 0"
NOT_COUNTED = "CREATE TEMP VIEW counted AS SELECT 1 AS one, 0 AS decision_id, 0 AS event_seq"
EMPTY_COUNTS = ";".join(
    f"CREATE TEMP VIEW {table} AS SELECT {', '.join(f'0 AS {column}' for column in columns.split())} WHERE 0"
    for table, columns in {
        "periods": "unit period variant placement answers content",
        "item_codes": "code item_id",
        "users_by_period": "unit period variant placement kind users",
        "events_by_period": "unit period variant placement events",
    }.items()
)
REMOVED_TOTALS = "CREATE TEMP VIEW totals AS SELECT variant, placement, answers FROM removed"
NO_COUNTS = f"{NOT_COUNTED}; {EMPTY_COUNTS}"
"""Views of a file whose answers are not counted yet."""
VIEWS = {
    1: f"{_view(NAMES_OF_SCHEMA_3 | COLUMNS_AFTER_SCHEMA_1)}; {NONE_REMOVED}; {NO_COUNTS}",
    2: f"{_view(NAMES_OF_SCHEMA_3)}; {NONE_REMOVED}; {NO_COUNTS}",
    3: f"{_view(NAMES_OF_SCHEMA_3)}; {REMOVED_TOTALS}; {NO_COUNTS}",
    4: f"{REMOVED_TOTALS}; {NO_COUNTS}",
}
