"""Messages of the Python API name arguments of Python."""

from __future__ import annotations

import polars as pl
import pytest

import recloop
from recloop.api.messages import argument_of, in_python, python_fix
from recloop.errors import BundleError, UserError


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("data.columns.user_id", 'columns["user_id"]'),
        ("data.columns.value (price)", 'columns["value"] (price)'),
        ("clean.keep", 'config["clean"]["keep"]'),
        ("split.protocol", "holdout"),
        ("model.name", "model"),
        ("data.events", "events"),
        ("rule duplicates", "rule duplicates"),
        ("n", "n"),
        ("--items", "items"),
        ("FILE", "events"),
    ],
)
def test_key_becomes_an_argument(name: str, argument: str) -> None:
    assert argument_of(name) == argument
    assert argument_of(argument) == argument


@pytest.mark.parametrize(
    ("fix", "fit", "project"),
    [
        (
            "--set clean.max_removed=0.2 or --set 'clean.burst=\"off\"'",
            'config={"clean": {"max_removed": 0.2}} or config={"clean": {"burst": "off"}}',
            'recloop.open(folder, clean__max_removed=0.2) or recloop.open(folder, clean__burst="off")',
        ),
        (
            "recloop update --set clean.max_rejected=0.06 to ignore these rows; otherwise set data.columns.timestamp",
            'config={"clean": {"max_rejected": 0.06}} to ignore these rows; otherwise columns={"timestamp": "NAME"}',
            "recloop.open(folder, clean__max_rejected=0.06) to ignore these rows; otherwise set data.columns.timestamp",
        ),
        (
            "--set split.ties=row --set split.filter_seen=true",
            'config={"split": {"ties": "row", "filter_seen": True}}',
            'recloop.open(folder, split__ties="row", split__filter_seen=True)',
        ),
        (
            "correct clean.keep in recloop.toml",
            'correct config["clean"]["keep"]',
            "correct clean.keep in recloop.toml",
        ),
        (
            'time_unit = "days" or "order" under [data]',
            'config={"data": {"time_unit": "days" or "order"}}',
            'time_unit = "days" or "order" under [data]',
        ),
        ("recloop promote X --to live", "recloop promote X --to live", 'shop.promote("X", to="live")'),
        ("recloop update --full", "recloop update --full", "shop.update(full=True)"),
        (
            "recloop init FILE",
            'columns={"user_id": "NAME", "item_id": "NAME", "timestamp": "NAME"}',
            "recloop init FILE",
        ),
    ],
)
def test_fix_becomes_python(fix: str, fit: str, project: str) -> None:
    assert python_fix(fix, "fit") == fit
    assert python_fix(fix, "project") == project
    assert python_fix(fit, "fit") == fit


def test_rewritten_error_keeps_class_and_notes_the_samples() -> None:
    rewritten = in_python(BundleError("file", "x", "y", "recloop update", ("row 1", "row 2")), "project")
    assert isinstance(rewritten, BundleError)
    assert rewritten.fix == "shop.update()"
    assert rewritten.__notes__ == ["row 1\nrow 2"]


def test_refused_fit_names_arguments_of_python() -> None:
    rows = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"], "timestamp": ["2025-01-01", "soon"]})
    with pytest.raises(UserError) as refused:
        recloop.fit(rows, columns={"timestamp": "timestamp"})
    text = str(refused.value)
    assert "--set" not in text
    assert "recloop update" not in text
    assert "config={" in text or "columns={" in text
