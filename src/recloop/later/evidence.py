"""What the gate of an update looks at: the queries of *old*, and what the last quarter may not have broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.errors import BundleError
from recloop.features.state import Timeline
from recloop.later.run import Run
from recloop.learn import compare
from recloop.learn.evaluate import Moments, moments
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.recommender import check_golden
from recloop.records import DAY, STAMP, USER_ID, is_old
from recloop.watch import gate
from recloop.watch.gate import Gate

OLD_DAYS = 90
OVERLAPPED = 200
"""Queries whose lists before and after the last quarter are compared."""


def world(run: Run) -> tuple[Timeline, Catalogue]:
    """The states and the catalogue that every question of this run is asked from."""
    return Timeline(run.data.events, run.data.users), Catalogue.of([run.data.items])


def old_queries(run: Run) -> Moments:
    """Moments of the *old* users in the 90 days before live's cut: both have counted them, no loss has seen them."""
    events = run.data.events
    users = [user for user in events[USER_ID].unique().sort().to_list() if is_old(user)]
    span = pl.col(STAMP).is_between(run.live.cut - OLD_DAYS * DAY, run.live.cut, closed="left")
    return compare.thin(moments(events.filter(span & pl.col(USER_ID).is_in(users)), "successive"))


def settled(run: Run, candidate: Bundle, written: Bundle) -> list[Gate]:
    """What the last quarter may not have broken."""
    broken = 0
    try:
        check_golden(bundles.load(run.folder / "bundles" / written.id))
    except BundleError:
        broken = 1
    lists: list[Sequence[Sequence[str]]] = [[], []]
    if not run.full:
        timeline, catalogue = world(run)
        some = compare.thin(moments(run.data.test, "successive"), OVERLAPPED)
        if len(some):
            lists = [compare.ask(bundle, some, timeline, catalogue).lists for bundle in (written, candidate)]
    logged = run.folder / "rest" / "log.jsonl"
    losses = [json.loads(line)["loss"] for line in logged.read_text("utf-8").splitlines()] if logged.exists() else []
    return gate.settled(losses, broken, lists[0], lists[1])


def trees(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    """Gates as ``recloop update --json`` has them."""
    return [{"threshold": None, **one.to_json()} for one in gates]
