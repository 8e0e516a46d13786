"""Inputs of an update run that its steps share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import polars as pl
from said_lines import Lines

from recloop.data.labelled_log import LabelledLog
from recloop.pipeline.update_run import UpdateRun, start_or_resume
from recloop.project import Project
from recloop.records import Event, now

USERS = ("a", "b", "c")


def run_over_rows() -> UpdateRun:
    """A run over two rows of each user; user ``d`` has attributes only."""
    rows = [
        {"seq": 2 * n + k, "user_id": user, "item_id": f"i{k}", "stamp": k, "label": 1, "weight": 1.0, "use": 1}
        for n, user in enumerate(USERS)
        for k in range(2)
    ]
    types = {"label": pl.Int8, "weight": pl.Float32, "use": pl.Int8}
    attributes = pl.DataFrame({"user_id": ["c", "d"], "seq": [0, 1], "attributes": ["{}", "{}"]})
    log = SimpleNamespace(events=pl.DataFrame(rows, schema_overrides=types), users=attributes)
    nothing: Any = None
    return UpdateRun(*[nothing] * 3, nothing, False, False, nothing, 0, loaded=cast("LabelledLog", log))


def test_states_of_a_run_for_users_of_an_earlier_call_are_not_computed_again() -> None:
    run = run_over_rows()
    timeline = run.states_of(["a", "c", "a"])
    assert run.states_of(["c"]) is timeline
    assert timeline.states(["c"], [5]).positives.tolist() == [2]


def test_states_of_a_run_for_other_users_have_their_rows() -> None:
    run = run_over_rows()
    run.states_of(["a"])  # knows the attributes of user c, but none of its rows
    assert run.states_of(["a", "c"]).states(["a", "c"], [5, 5]).positives.tolist() == [2, 2]


def test_resumed_run_names_the_last_row_that_it_reads(project: Project) -> None:
    """A row that arrives after the interruption waits for the next run."""

    def add_event(number: int) -> None:
        with project.open_log(write=True) as log:
            log.append_events([Event(user_id="u01", item_id=f"i{number:02}", timestamp=now(), received_at=now())])

    add_event(1)
    run = start_or_resume(project, full=False, reset=False, progress=Lines())
    add_event(2)
    lines = Lines()
    resumed = start_or_resume(project, full=False, reset=False, progress=lines)
    assert run is not None
    assert resumed is not None
    assert resumed.until == run.until
    assert lines.said == [f"resuming run {run.folder.name}: warm, up to seq {run.until:,}"]
