"""An opened project has the verbs of the command line."""

from __future__ import annotations

import importlib

import pytest
import typer

import recloop
from recloop.errors import UserError
from recloop.project import Project

NEEDS_NO_PROJECT = {"init", "demo", "restore"}


def test_every_verb_is_a_method() -> None:
    verbs = set(typer.main.get_command(importlib.import_module("recloop.cli").app).commands)  # type: ignore[attr-defined]
    assert verbs - NEEDS_NO_PROJECT <= set(vars(recloop.ProjectFolder))


def test_opened_project_inspects(project: Project) -> None:
    shop = recloop.open(project.root)
    assert shop.status()["verdict"] is None
    assert shop.doctor()["read"] > 0
    assert set(shop.doctor()) < set(shop.doctor(signals=True))
    assert shop.verify()["unexplained"] == 0
    assert shop.gc(dry_run=True).to_json()
    assert shop.token() == shop.token()
    assert shop.recommend("u05", n=3)["items"]


def test_messages_of_a_project_name_calls(project: Project) -> None:
    shop = recloop.open(project.root)
    with pytest.raises(UserError, match=r"bundle=nothing.*try: shop\.status\(\)"):
        shop.recommend("u05", bundle="nothing")
    with pytest.raises(UserError, match="n=0: expected a whole number from 1 to 1000; try: n=10"):
        shop.recommend("u05", n=0)
    with pytest.raises(UserError, match="try: recloop init FILE"):
        recloop.open(project.root / "nothing")
