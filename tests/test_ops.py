"""The page of operation: a line for every alarm that the code can raise."""

from __future__ import annotations

import re
from pathlib import Path

from recloop.serve.alarms import Alarm

PAGE = Path(__file__).parents[1] / "docs" / "ops.md"


def test_page_has_one_line_for_each_alarm() -> None:
    section = PAGE.read_text("utf-8").split("## Alarms")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert named == sorted(alarm.value for alarm in Alarm)
