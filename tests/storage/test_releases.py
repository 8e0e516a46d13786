"""Releases: allowed moves, refused moves, and rollback targets."""

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


def test_release_table_without_rows_is_empty(tmp_path: Path) -> None:
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


def test_promote_to_live_retires_the_former(control: ControlStore) -> None:
    releases.promote(control, "a", **WHO)
    row = releases.promote(control, "b", **{**WHO, "at": 9, "reason": "better"})
    assert (row.generation, row.from_, row.to, row.sha256) == (8, "checked", "live", "b" * 64)
    assert releases.live(control) == row
    assert states(control) == {"a": "retired", "b": "live", "c": "checked"}
    table = releases.release_table(control)
    assert (table["live"], table["generation"]) == ("b", 8)
    assert table["bundles"][0] == {"bundle": "a", "state": "retired", "at": 9, "reason": "better"}


def test_promote_through_shadow_and_experiment_to_live(control: ControlStore) -> None:
    releases.promote(control, "a", to="shadow", **WHO)
    assert releases.release_table(control)["shadow"] == "a"
    releases.promote(control, "a", to="experiment", **WHO)
    assert releases.release_table(control)["shadow"] is None
    assert releases.release_table(control)["experiment"] == "a"
    assert releases.promote(control, "a", **WHO).from_ == "experiment"
    assert states(control)["a"] == "live"


def test_rollback_returns_to_the_previous_live_bundle(control: ControlStore) -> None:
    for name in ("a", "b", "c"):
        releases.promote(control, name, **WHO)
    assert [row.bundle for row in releases.lives(control)] == ["c", "b", "a"]
    row = releases.rollback(control, **WHO)
    assert (row.bundle, row.from_, row.sha256, row.evidence) == ("b", "retired", "b" * 64, {"rolled_back": "c"})
    assert states(control) == {"a": "retired", "b": "live", "c": "rolled_back"}
    assert [row.bundle for row in releases.lives(control)] == ["b", "a"]  # c was rolled back and is not live again
    assert releases.rollback(control, **WHO).bundle == "a"
    with pytest.raises(Refused, match="earlier live bundles=0, threshold 1"):
        releases.rollback(control, **WHO)
    releases.promote(control, "c", **WHO)  # an explicit promotion is allowed
    assert releases.rollback(control, **WHO).bundle == "a"


def test_refused_bundle_cannot_be_promoted_or_rolled_back_to(control: ControlStore) -> None:
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


def test_invalid_moves_change_nothing(control: ControlStore) -> None:
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


def test_unchecked_bundle_is_refused_except_as_the_first_live(tmp_path: Path) -> None:
    control = open_control("sqlite:///store/control.db", tmp_path)
    for name in ("a", "b"):
        releases.register(control, name, name * 64, **WHO)
    with pytest.raises(Refused, match="state=registered"):
        releases.promote(control, "a", to="shadow", **WHO)
    assert releases.promote(control, "a", **WHO).to == "live"  # the first live bundle has no comparison
    with pytest.raises(Refused, match="state=registered, threshold one of checked, shadow"):
        releases.promote(control, "b", **WHO)
    assert releases.checked(control, "b", **{**WHO, "reason": "loaded"}).from_ == "registered"
    with pytest.raises(Refused):
        releases.checked(control, "b", **WHO)
    assert releases.promote(control, "b", **WHO).to == "live"


def test_promote_allows_one_experiment_and_several_shadows(control: ControlStore) -> None:
    releases.promote(control, "a", **WHO)
    releases.promote(control, "b", to="shadow", **WHO)
    releases.promote(control, "c", to="shadow", **WHO)
    assert [row.bundle for row in releases.read_state(control).rows_in("shadow")] == ["b", "c"]
    assert releases.release_table(control)["shadow"] == "b"  # the candidate is the first shadow
    releases.promote(control, "b", to="experiment", **WHO)
    assert (releases.release_table(control)["shadow"], releases.release_table(control)["experiment"]) == ("c", "b")
    with pytest.raises(Refused, match="bundle in the experiment=b"):
        releases.promote(control, "c", to="experiment", **WHO)
    releases.reject(control, "b", **WHO)
    assert releases.promote(control, "c", to="experiment", **WHO).from_ == "shadow"


def move(control: ControlStore, bundle: str, to: str) -> None:
    """Move a bundle to a state by the function of that state."""
    if to == "checked":
        releases.checked(control, bundle, **WHO)
    elif to == "refused":
        releases.reject(control, bundle, **WHO)
    else:
        releases.promote(control, bundle, to=to, **WHO)


def test_release_moves_equal_the_transition_table(tmp_path: Path) -> None:
    """A move between two states is allowed exactly if the table contains it."""
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
            move(control, "x", step)
        if state == "retired":
            releases.promote(control, "second", **WHO)
        if state == "rolled_back":
            releases.rollback(control, **WHO)
        assert states(control)["x"] == state
        try:
            move(control, "x", to)
            found.add((state, to))
        except Refused:
            pass
    assert found == {(state, to) for to, sources in releases.FROM.items() for state in sources}


def test_promote_after_a_concurrent_move_raises_a_conflict(
    control: ControlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = control.releases()
    releases.promote(control, "b", **WHO)
    monkeypatch.setattr(control, "releases", lambda: looked)
    with pytest.raises(ReleaseConflict, match="test moved b to live meanwhile; for the new state"):
        releases.promote(control, "a", **WHO)
    monkeypatch.undo()
    assert releases.release_table(control)["live"] == "b"
