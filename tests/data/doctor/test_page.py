"""HTML page of the doctor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recloop.data.doctor.page import bars, named_bars

HEAD = "user_id,item_id,timestamp\n"


def test_bars_draws_one_bar_a_count_and_escapes_labels() -> None:
    picture = bars([1, 4, 0], ["<a>", "b", "c"], "rows & users")
    assert picture.count("<rect") == 3
    assert 'aria-label="rows &amp; users"' in picture
    assert "&lt;a&gt;: 1" in picture
    assert 'height="138.0"' in picture  # the largest count fills the picture


def test_named_bars_are_relative_to_the_first() -> None:
    picture = named_bars([("<a>", 4), ("b", 1)])
    assert "<li><span>&lt;a&gt;</span><span>4</span>" in picture
    assert 'style="width: 25.0%"' in picture
    assert "<li>" not in named_bars([])


def test_doctor_out_writes_a_page_that_loads_nothing(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    rows = "".join(f"u{n % 9},<i{n % 30}>,2025-01-{1 + n % 28:02}T10:00:{n % 60:02}\n" for n in range(90))
    (tmp_path / "log.csv").write_text(HEAD + rows)
    (tmp_path / "recloop.toml").write_text("")
    assert cli("-C", tmp_path, "doctor", "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "90 rows read" in page
    assert page.count("<svg") == 3
    assert "&lt;i0&gt;" in page
    assert "<i0>" not in page
    assert not any(word in page for word in ("http:", "https:", "<script", "src="))


def test_doctor_out_with_effect_is_refused(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, error = cli("-C", tmp_path, "doctor", "--out", "page.html", "--effect", "keep")
    assert code == 2
    assert "expected doctor without --effect and --signals; try: recloop doctor --out page.html" in error
