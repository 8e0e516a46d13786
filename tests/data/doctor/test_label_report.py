"""``recloop doctor --signals``: rules with events and examples, unmatched types, unused rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recloop.data.doctor.label_report import examine_signals, render
from recloop.errors import UserError
from recloop.project import Project, open_project

RULES = """
[data]
events = "log.jsonl"
[data.columns]
event_type = "event_type"
value = "value"
[events]
positive = ["purchase"]
negative = []
neutral = []
weights = { %s }
"""


def project(folder: Path, weights: str) -> Project:
    kinds = [("purchase", None)] * 8 + [("rating", float(n % 5 + 1)) for n in range(10)] + [("skip", None)] * 3
    kinds += [("view", None)] * 4 + [("dwell", 3.0)]
    rows = [
        {
            "user_id": f"u{n % 4}",
            "item_id": f"i{n % 7}",
            "timestamp": 1_700_000_000 + 60 * n,
            "event_type": kind,
            "value": value,
        }
        for n, (kind, value) in enumerate(kinds)
    ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recloop.toml").write_text(RULES % weights)
    return open_project(folder)


def test_doctor_signals_lists_each_rule_with_events_and_examples(tmp_path: Path) -> None:
    here = project(tmp_path, "purchase = 5, \"event_type = 'rating' AND value >= 4\" = 2, skip = -0.5, dislike = -1")
    found = examine_signals(here)
    tree = found.to_json()
    rules = [(one["rule"], one["means"], one["weight"], one["events"]) for one in tree["signals"]]
    assert rules == [
        ("quantity < 0", "undo", 0.0, 0),
        ("purchase", "positive", 5.0, 8),
        ("event_type = 'rating' AND value >= 4", "positive", 2.0, 4),
        ("skip", "negative", -0.5, 3),
        ("dislike", "negative", -1.0, 0),
        ("dwell_pct >= 0.7", "positive", 2.0, 0),
        ("dwell", "neutral", 0.0, 1),
        ("purchase", "positive", 1.0, 0),
    ]
    assert [len(one["examples"]) for one in tree["signals"]] == [0, 5, 4, 3, 0, 0, 1, 0]
    assert {one["value"] for one in tree["signals"][2]["examples"]} == {4.0, 5.0}
    assert tree["unnamed"] == {"rating": 6, "view": 4}
    assert tree["dwells"] == {"events": 1, "compared": 0, "bands": 0}
    words = "\n".join(tree["signal_warnings"])
    assert "'dislike' (events.weights.dislike) matches no event" in words
    assert "'view' (4 rows) is not in a rule" in words
    assert "1 of 1 dwells are neutral" in words
    json.dumps(tree)
    assert render(found).renderables


def test_doctor_signals_with_an_unknown_field_names_the_rule(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"events\.weights\..*nearest to valeu: value"):
        examine_signals(project(tmp_path, "\"event_type = 'rating' AND valeu >= 4\" = 2"))


def test_doctor_signals_with_mixed_types_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"events\.weights.*numbers compared with numbers"):
        examine_signals(project(tmp_path, '"event_type >= 4" = 2'))
