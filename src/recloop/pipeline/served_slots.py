"""Slots of the served lists that rows refer to, kept between updates.

A decision does not change, so each request is read from decisions.db once. The file also outlives decisions that
retention deletes. It is a cache: without it, all requests of the rows are read again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import polars as pl

from recloop.files import replacing
from recloop.project import Project
from recloop.records import SEQ
from recloop.training.negatives import REQUEST_ID, slots_of

PREFIX: Final = "served-slots-"
"""Files in ``store/``; the seq up to which their rows were read follows."""


def served_slots(project: Project, rows: pl.DataFrame) -> pl.DataFrame | None:
    """Return the slots of answered lists with a click; None if no row names a request."""
    requests = _requests(rows)
    return _answered(project, requests) if requests else None


def kept_slots(project: Project, rows: pl.DataFrame, until: int) -> pl.DataFrame | None:
    """`served_slots` from the kept file and later requests; keep the result.

    Training ignores the slots of requests that its rows do not name.

    Args:
        rows: All labelled rows up to seq ``until``.
    """
    if not _requests(rows):
        return None
    kept, read_until = _read(project)
    later = _requests(rows.filter(pl.col(SEQ) > read_until))
    new = _answered(project, later).join(kept, on=REQUEST_ID, how="anti")
    slots = pl.concat([kept, new]) if len(new) else kept
    if until > read_until:
        _write(project, slots, until)
    return slots


def forget(project: Project) -> None:
    """Delete the kept slots; rows with new seqs need it."""
    for file in project.store.glob(f"{PREFIX}*.parquet"):
        file.unlink(missing_ok=True)


def drop(project: Project, request_ids: Collection[str]) -> None:
    """Remove the kept slots of requests, such as those of a forgotten user."""
    kept, until = _read(project)
    left = kept.filter(~pl.col(REQUEST_ID).is_in(pl.Series(sorted(request_ids), dtype=pl.String).implode()))
    if len(left) < len(kept):
        _write(project, left, until)


def _requests(rows: pl.DataFrame) -> list[str]:
    return rows[REQUEST_ID].drop_nulls().unique().sort().to_list() if REQUEST_ID in rows.columns else []


def _answered(project: Project, requests: Sequence[str]) -> pl.DataFrame:
    if not requests:
        return slots_of([])
    with project.open_decisions() as decisions:
        return slots_of(decisions.answered(requests))


def _read(project: Project) -> tuple[pl.DataFrame, int]:
    """Read the kept slots and the seq that they reach; 0 without a readable file."""
    files = {int(file.stem.rsplit("-", 1)[1]): file for file in project.store.glob(f"{PREFIX}*.parquet")}
    for until in sorted(files, reverse=True):
        try:
            return pl.read_parquet(files[until]).select(slots_of([]).columns), until
        except (pl.exceptions.PolarsError, OSError):
            continue  # a damaged cache is read again from the decisions
    return slots_of([]), 0


def _write(project: Project, slots: pl.DataFrame, until: int) -> None:
    path = project.store / f"{PREFIX}{until}.parquet"
    with replacing(path) as temporary:
        slots.write_parquet(temporary)
    for file in project.store.glob(f"{PREFIX}*.parquet"):
        if file != path:
            file.unlink(missing_ok=True)
