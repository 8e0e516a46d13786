"""The release machine: which bundle is live, and every move of every bundle as a row of the control store.

    registered ──> shadow ──> experiment ──> live ──> retired ──> live again, by a rollback or a promotion
        └────────────┴────────────┴────────────^
    registered, shadow, experiment, retired ──> refused, for good

A bundle enters as ``registered`` with the hash of its manifest, which is what serving compares. One bundle is live;
when another becomes live the former is ``retired`` by the same row. The rows are the truth: a state is their fold, a
move is a compare-and-set on ``generation``, so two processes never both move. Which steps must be earned before live
is the gate's business; this file knows only which moves exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recloop.backends import Control
from recloop.backends.control import ReleaseRow
from recloop.errors import Refused, UserError

Target = Literal["shadow", "experiment", "live"]
TARGETS: tuple[Target, ...] = ("shadow", "experiment", "live")
ROLLED_BACK = "rolled_back"
"""In the evidence of a rollback's row: the bundle that was live until then."""


@dataclass
class _Machine:
    """The fold over all rows.

    ``states`` holds each bundle's state and the row that put it there; ``hashes`` those of the manifests as
    registered; ``lives`` the bundles that a rollback could bring back, the live one last.
    """

    states: dict[str, tuple[str, ReleaseRow]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    lives: list[str] = field(default_factory=list)
    generation: int = 0

    def take(self, row: ReleaseRow) -> None:
        self.hashes.setdefault(row.bundle, row.sha256)
        if row.to == "live":
            if self.lives and self.lives[-1] != row.bundle:
                self.states[self.lives[-1]] = ("retired", row)
            if ROLLED_BACK in row.evidence:
                while self.lives and self.lives[-1] != row.bundle:
                    self.lives.pop()
            if not self.lives or self.lives[-1] != row.bundle:
                self.lives.append(row.bundle)
        elif row.to == "refused":
            self.lives = [bundle for bundle in self.lives if bundle != row.bundle]
        self.states[row.bundle] = (row.to, row)
        self.generation = row.generation

    def state(self, bundle: str) -> str:
        if bundle not in self.states:
            known = ", ".join(self.states) or "none yet"
            raise UserError("bundle", bundle, f"a registered bundle ({known})", "recloop status")
        return self.states[bundle][0]


def register(
    control: Control,
    bundle: str,
    sha256: str,
    *,
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any] | None = None,
) -> ReleaseRow:
    """Let a bundle in; ``sha256`` is that of its manifest.

    Raises:
        Refused: it is registered already.
        Moved: another process moved a release meanwhile.
    """
    machine = _fold(control.releases())
    if bundle in machine.states:
        raise Refused("state", machine.state(bundle), "not registered yet", f"{bundle} is known")
    return control.move(
        bundle, sha256, "", "registered",
        by=by, reason=reason, evidence=evidence or {}, expected_generation=machine.generation, at=at,
    )  # fmt: skip


def promote(
    control: Control,
    bundle: str,
    *,
    to: Target = "live",
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any] | None = None,
) -> ReleaseRow:
    """Move a bundle on, to live unless said otherwise.

    Raises:
        UserError: no such bundle, or no such state to move to.
        Refused: it was refused, or is there already.
        Moved: another process moved a release meanwhile.
    """
    if to not in TARGETS:
        raise UserError("--to", to, f"one of {', '.join(TARGETS)}", f"recloop promote {bundle} --to live")
    machine = _fold(control.releases())
    state = machine.state(bundle)
    if state in {"refused", to} or (state == "live" and to != "live"):
        raise Refused("state", state, f"a state that may go to {to}", f"{bundle} stays {state}")
    return _move(control, machine, bundle, to, by, reason, at, evidence or {})


def rollback(control: Control, *, by: str, reason: str, at: int) -> ReleaseRow:
    """Bring back the bundle that was live before the present one.

    Raises:
        Refused: there was none.
        Moved: another process moved a release meanwhile.
    """
    machine = _fold(control.releases())
    if len(machine.lives) < 2:
        raise Refused("earlier live bundles", max(0, len(machine.lives) - 1), 1, "nothing to go back to")
    now, before = machine.lives[-1], machine.lives[-2]
    return _move(control, machine, before, "live", by, reason, at, {ROLLED_BACK: now})


def refuse(control: Control, bundle: str, *, by: str, reason: str, at: int) -> ReleaseRow:
    """Take a bundle out for good.

    Raises:
        UserError: no such bundle.
        Refused: it is live (roll back first), or refused already.
        Moved: another process moved a release meanwhile.
    """
    machine = _fold(control.releases())
    state = machine.state(bundle)
    if state in {"live", "refused"}:
        mend = "roll back first" if state == "live" else "it was refused before"
        raise Refused("state", state, "registered, shadow, experiment or retired", mend)
    return _move(control, machine, bundle, "refused", by, reason, at, {})


def live(control: Control) -> ReleaseRow | None:
    """The row that made the live bundle live; None: nothing is live yet."""
    found = lives(control)
    return found[0] if found else None


def lives(control: Control) -> list[ReleaseRow]:
    """The live bundle's row, then those of the earlier live ones that a rollback would bring back, newest first."""
    rows = control.releases()
    newest = {row.bundle: row for row in rows if row.to == "live"}
    return [newest[bundle] for bundle in dict.fromkeys(reversed(_fold(rows).lives))]


def table(control: Control) -> dict[str, Any]:
    """What is live, what is tried, since when: the release part of ``recloop status``."""
    machine = _fold(control.releases())
    by_state = {state: bundle for bundle, (state, _) in machine.states.items()}
    return {
        "live": by_state.get("live"),
        "shadow": by_state.get("shadow"),
        "experiment": by_state.get("experiment"),
        "generation": machine.generation,
        "bundles": [
            {"bundle": bundle, "state": state, "at": row.at, "reason": row.reason}
            for bundle, (state, row) in machine.states.items()
        ],
    }


def _fold(rows: Sequence[ReleaseRow]) -> _Machine:
    machine = _Machine()
    for row in rows:
        machine.take(row)
    return machine


def _move(
    control: Control,
    machine: _Machine,
    bundle: str,
    to: str,
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any],
) -> ReleaseRow:
    return control.move(
        bundle, machine.hashes[bundle], machine.state(bundle), to,
        by=by, reason=reason, evidence=evidence, expected_generation=machine.generation, at=at,
    )  # fmt: skip
