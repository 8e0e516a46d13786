"""An opened project has the verbs of the command line."""

from __future__ import annotations

import importlib

import polars as pl
import pytest
import typer

import recloop
from recloop.errors import UserError
from recloop.project import Project

NEEDS_NO_PROJECT = {"init", "demo", "restore"}
METHODS = {"items": "sync_items"}
"""Groups of verbs with a method of another name."""


def test_every_verb_is_a_method() -> None:
    verbs = set(typer.main.get_command(importlib.import_module("recloop.cli").app).commands)  # type: ignore[attr-defined]
    names = {METHODS.get(verb, verb) for verb in verbs - NEEDS_NO_PROJECT}
    assert names <= set(vars(recloop.ProjectFolder))


def test_opened_project_inspects(project: Project) -> None:
    shop = recloop.open(project.root)
    assert shop.status()["verdict"] is None
    assert shop.doctor()["read"] > 0
    assert set(shop.doctor()) < set(shop.doctor(signals=True))
    assert shop.verify()["unexplained"] == 0
    assert shop.gc(dry_run=True).to_json()
    assert shop.token() == shop.token()
    assert shop.recommend("u05", n=3)["items"]


def test_sync_items_brings_the_catalog_to_a_frame(project: Project) -> None:
    shop = recloop.open(project.root)
    rows = pl.DataFrame({"item_id": [f"i{number:02d}" for number in range(1, 81)], "stock": range(80)})
    assert shop.sync_items(rows).changed == 80
    assert shop.sync_items(rows.head(79), dry_run=True).hidden == 1
    with pytest.raises(recloop.RecloopError, match="40 items would be hidden"):
        shop.sync_items(rows.head(40))


def test_messages_of_a_project_name_calls(project: Project) -> None:
    shop = recloop.open(project.root)
    with pytest.raises(UserError, match=r"bundle=nothing.*try: shop\.status\(\)"):
        shop.recommend("u05", bundle="nothing")
    with pytest.raises(UserError, match="n=0: expected a whole number from 1 to 1000; try: n=10"):
        shop.recommend("u05", n=0)
    with pytest.raises(UserError, match="try: recloop init FILE"):
        recloop.open(project.root / "nothing")
