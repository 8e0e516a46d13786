"""``recloop doctor --effect``: the counting models with and without a rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recloop.errors import UserError
from recloop.pipeline.rule_effect import measure_rule
from recloop.project import Project, open_project

HEAD = "user_id,item_id,timestamp,group_id\n"


def baskets(*charges: str) -> str:
    """200 orders of 40 users; each user orders the two goods again, and every order also has the charges."""
    lines = []
    for order in range(200):
        user = order % 40
        stamp = f"2025-{1 + order // 112:02}-{1 + order // 4 % 28:02}T{8 + order % 4:02}:{user:02}:{order % 60:02}"
        goods = [f"{2000 + user % 20}", f"{2000 + (user * 3 + 1) % 20}", *charges]
        lines += [f"u{user},{item},{stamp},b{order}" for item in goods]
    return "\n".join(lines) + "\n"


@pytest.fixture
def shop(tmp_path: Path) -> Callable[[str], Project]:
    def write(rows: str) -> Project:
        (tmp_path / "log.csv").write_text(HEAD + rows)
        (tmp_path / "recloop.toml").write_text('[data.columns]\ngroup_id = "group_id"\n[clean]\nmax_removed = 1.0\n')
        return open_project(tmp_path)

    return write


def test_measure_rule_of_duplicates_answers_the_same_moments(shop: Callable[[str], Project]) -> None:
    rows = baskets()
    effect = measure_rule(shop(rows + rows.splitlines()[0] + "\n"), "duplicates")
    assert (effect.rule, effect.on, effect.off, effect.removed) == ("clean.duplicates", "exact", "off", 1)
    assert effect.moments >= 15
    found = {row.name: row for row in effect.lists}
    assert set(found) == {"popular", "bought_before", "covisitation", "served"}
    assert found["bought_before"].with_rule > 0.9  # every order repeats the user's two goods
    assert found["bought_before"].difference.verdict == "inconclusive"
    assert {row["list"] for row in effect.to_json()["lists"]} == set(found)


def test_measure_rule_that_is_unknown_or_removes_nothing_is_refused(shop: Callable[[str], Project]) -> None:
    project = shop(baskets())
    with pytest.raises(UserError, match="a rule of \\[clean\\]: duplicates, burst, keep"):
        measure_rule(project, "clean.nonsense")
    with pytest.raises(UserError, match="a rule that removes rows of this log"):
        measure_rule(project, "clean.keep")


def test_doctor_effect_prints_a_row_for_each_list(
    shop: Callable[[str], Project], cli: Callable[..., tuple[int, str, str]]
) -> None:
    rows = baskets("POST")
    project = shop(rows)
    code, out, error = cli("-C", project.root, "doctor", "--effect", "clean.exclude_items")
    assert code == 0, error
    assert "clean.exclude_items = POST removes 200 rows" in out
    assert [line.split()[0] for line in out.splitlines()[-4:]] == ["popular", "bought_before", "covisitation", "served"]
