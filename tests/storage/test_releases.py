"""The release machine: every move it knows, every move it refuses, and what a rollback brings back."""

from __future__ import annotations

from pathlib import Path

import pytest

from recloop.errors import Refused, UserError
from recloop.storage import ControlStore, open_control, releases
from recloop.storage.control import ReleaseConflict

WHO = {"by": "test", "reason": "r", "at": 1}


@pytest.fixture
def control(tmp_path: Path) -> ControlStore:
    control = open_control("sqlite:///store/control.db", tmp_path)
    for name in ("a", "b", "c"):
        releases.register(control, name, name * 64, **WHO)
        releases.checked(control, name, **WHO)
    return control


def states(control: ControlStore) -> dict[str, str]:
    return {row["bundle"]: row["state"] for row in releases.release_table(control)["bundles"]}


def test_before_the_first_row(tmp_path: Path) -> None:
    control = open_control("sqlite:///store/control.db", tmp_path)
    assert releases.live(control) is None
    assert releases.lives(control) == []
    assert releases.release_table(control) == {
        "live": None,
        "shadow": None,
        "experiment": None,
        "generation": 0,
        "bundles": [],
    }


def test_one_is_live_and_the_former_retires(control: ControlStore) -> None:
    releases.promote(control, "a", **WHO)
    row = releases.promote(control, "b", **{**WHO, "at": 9, "reason": "better"})
    assert (row.generation, row.from_, row.to, row.sha256) == (8, "checked", "live", "b" * 64)
    assert releases.live(control) == row
    assert states(control) == {"a": "retired", "b": "live", "c": "checked"}
    table = releases.release_table(control)
    assert (table["live"], table["generation"]) == ("b", 8)
    assert table["bundles"][0] == {"bundle": "a", "state": "retired", "at": 9, "reason": "better"}


def test_the_way_through_shadow_and_experiment(control: ControlStore) -> None:
    releases.promote(control, "a", to="shadow", **WHO)
    assert releases.release_table(control)["shadow"] == "a"
    releases.promote(control, "a", to="experiment", **WHO)
    assert releases.release_table(control)["shadow"] is None
    assert releases.release_table(control)["experiment"] == "a"
    assert releases.promote(control, "a", **WHO).from_ == "experiment"
    assert states(control)["a"] == "live"


def test_rollback_goes_back_one_live_bundle_at_a_time(control: ControlStore) -> None:
    for name in ("a", "b", "c"):
        releases.promote(control, name, **WHO)
    assert [row.bundle for row in releases.lives(control)] == ["c", "b", "a"]
    row = releases.rollback(control, **WHO)
    assert (row.bundle, row.from_, row.sha256, row.evidence) == ("b", "retired", "b" * 64, {"rolled_back": "c"})
    assert states(control) == {"a": "retired", "b": "live", "c": "rolled_back"}
    assert [row.bundle for row in releases.lives(control)] == ["b", "a"]  # c was bad: it answers nothing any more
    assert releases.rollback(control, **WHO).bundle == "a"
    with pytest.raises(Refused, match="earlier live bundles=0, threshold 1"):
        releases.rollback(control, **WHO)
    releases.promote(control, "c", **WHO)  # but a person may say otherwise
    assert releases.rollback(control, **WHO).bundle == "a"


def test_a_refused_bundle_never_comes_back(control: ControlStore) -> None:
    releases.promote(control, "a", **WHO)
    releases.promote(control, "b", **WHO)
    with pytest.raises(Refused, match="state=live"):
        releases.reject(control, "b", **WHO)
    releases.reject(control, "a", **WHO)
    assert states(control)["a"] == "refused"
    assert [row.bundle for row in releases.lives(control)] == ["b"]
    with pytest.raises(Refused, match="state=refused"):
        releases.promote(control, "a", **WHO)
    with pytest.raises(Refused, match="earlier live bundles"):
        releases.rollback(control, **WHO)


def test_wrong_moves_change_nothing(control: ControlStore) -> None:
    releases.promote(control, "a", **WHO)
    with pytest.raises(Refused):
        releases.promote(control, "a", **WHO)
    with pytest.raises(Refused):
        releases.promote(control, "a", to="shadow", **WHO)
    with pytest.raises(Refused):
        releases.register(control, "a", "", **WHO)
    with pytest.raises(UserError, match=r"bundle=zzz: expected a registered bundle \(a, b, c\)"):
        releases.promote(control, "zzz", **WHO)
    with pytest.raises(UserError, match="--to=moon"):
        releases.promote(control, "b", to="moon", **WHO)
    assert releases.release_table(control)["generation"] == 7


def test_what_was_not_checked_moves_nowhere_but_to_the_first_live(tmp_path: Path) -> None:
    control = open_control("sqlite:///store/control.db", tmp_path)
    for name in ("a", "b"):
        releases.register(control, name, name * 64, **WHO)
    with pytest.raises(Refused, match="state=registered"):
        releases.promote(control, "a", to="shadow", **WHO)
    assert releases.promote(control, "a", **WHO).to == "live"  # nothing is live yet: there is nothing to compare with
    with pytest.raises(Refused, match="state=registered, threshold one of checked, shadow"):
        releases.promote(control, "b", **WHO)
    assert releases.checked(control, "b", **{**WHO, "reason": "loaded"}).from_ == "registered"
    with pytest.raises(Refused):
        releases.checked(control, "b", **WHO)
    assert releases.promote(control, "b", **WHO).to == "live"


def test_one_experiment_at_a_time_and_several_shadows(control: ControlStore) -> None:
    releases.promote(control, "a", **WHO)
    releases.promote(control, "b", to="shadow", **WHO)
    releases.promote(control, "c", to="shadow", **WHO)
    assert [row.bundle for row in releases.read_state(control).rows_in("shadow")] == ["b", "c"]
    assert releases.release_table(control)["shadow"] == "b"  # the candidate is the one that came first
    releases.promote(control, "b", to="experiment", **WHO)
    assert (releases.release_table(control)["shadow"], releases.release_table(control)["experiment"]) == ("c", "b")
    with pytest.raises(Refused, match="bundle in the experiment=b"):
        releases.promote(control, "c", to="experiment", **WHO)
    releases.reject(control, "b", **WHO)
    assert releases.promote(control, "c", to="experiment", **WHO).from_ == "shadow"


def test_every_drawn_move_and_no_other(tmp_path: Path) -> None:
    """The table of moves is the drawing of the docstring: each state, tried towards each other one."""
    moves = {"checked": releases.checked, "refused": releases.reject}
    found = set()
    for number, (state, to) in enumerate(
        (a, b) for a in [*releases.FROM, "registered", "retired", "rolled_back"] for b in releases.FROM
    ):
        control = open_control(f"sqlite:///{number}/control.db", tmp_path)
        for name in ("first", "second", "x"):
            releases.register(control, name, "", **WHO)
            if name != "x" or state != "registered":
                releases.checked(control, name, **WHO)
        releases.promote(control, "first", **WHO)
        for step in {"retired": ["live"], "rolled_back": ["live"], "checked": [], "registered": []}.get(state, [state]):
            moves[step](control, "x", **WHO) if step in moves else releases.promote(control, "x", to=step, **WHO)
        if state == "retired":
            releases.promote(control, "second", **WHO)
        if state == "rolled_back":
            releases.rollback(control, **WHO)
        assert states(control)["x"] == state
        try:
            moves[to](control, "x", **WHO) if to in moves else releases.promote(control, "x", to=to, **WHO)
            found.add((state, to))
        except Refused:
            pass
    assert found == {(state, to) for to, sources in releases.FROM.items() for state in sources}


def test_a_move_made_meanwhile_stops_this_one(control: ControlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = control.releases()
    releases.promote(control, "b", **WHO)
    monkeypatch.setattr(control, "releases", lambda: looked)
    with pytest.raises(ReleaseConflict, match="meanwhile test moved b to live; look again"):
        releases.promote(control, "a", **WHO)
    monkeypatch.undo()
    assert releases.release_table(control)["live"] == "b"
