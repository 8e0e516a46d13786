"""Release state machine: states of bundles and moves, stored as release rows.

    registered ──> checked ──> shadow ──> experiment ──> live ──> retired, when another becomes live
        │             ├───────────┴──────────>│ ^          │ ^         │
        │             └───────────────────────┴─┘          v └─────────┤ (by rollback or promotion)
        │                                             rolled_back ─────┘
        └──> refused, permanently; from any state but live

A bundle is ``registered`` with the hash of its manifest, which serving compares. ``update`` registers it after its gate,
``train`` before it. It is ``checked`` when it was loaded and its hashes and golden lists agreed. The server checks it,
or ``promote`` without a server. In shadow, a bundle scores requests after live has answered them; several bundles may be
in shadow. In an experiment, one bundle answers a share of the users. The first bundle of a project becomes live at once.

One bundle is live. When another becomes live, the same row makes the former ``retired``, or ``rolled_back`` if the row
is a rollback. The state is a fold of the rows, and a move is a compare-and-set on ``generation``. Of two concurrent
moves one succeeds and the other gets a `ReleaseConflict`. This module knows only the allowed moves; the requirements of
each step are in `recloop.release.transitions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recloop.errors import Refused, UserError
from recloop.files import JsonTree
from recloop.storage import ControlStore
from recloop.storage.audit import AuditAction
from recloop.storage.control import ReleaseRow

Target = Literal["shadow", "experiment", "live"]
TARGETS: tuple[Target, ...] = ("shadow", "experiment", "live")
ROLLED_BACK = "rolled_back"
"""A state, and a key in a rollback's evidence: the bundle that was live before it."""
RESTARTED = "restarted"
"""Key in the evidence of the row that made a bundle of a new first run live.

Decisions of earlier generations refer to other data.
"""
FROM: Mapping[str, tuple[str, ...]] = {
    "checked": ("registered",),
    "shadow": ("checked",),
    "experiment": ("checked", "shadow"),
    "live": ("checked", "shadow", "experiment", "retired", ROLLED_BACK),
    "refused": ("registered", "checked", "shadow", "experiment", "retired", ROLLED_BACK),
}
"""Allowed source states of each target state."""


@dataclass
class ReleaseState:
    """Release state folded from all rows.

    Attributes:
        states: State of each bundle and the row of its last move.
        hashes: Manifest hash of each bundle as registered.
        lives: Targets of successive rollbacks, then the live bundle.
        generation: Generation of the last row.
    """

    states: dict[str, tuple[str, ReleaseRow]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    lives: list[str] = field(default_factory=list)
    generation: int = 0

    @classmethod
    def from_rows(cls, rows: Sequence[ReleaseRow]) -> ReleaseState:
        state = cls()
        for row in rows:
            state.apply(row)
        return state

    def apply(self, row: ReleaseRow) -> None:
        """Apply one row."""
        self.hashes.setdefault(row.bundle, row.sha256)
        if row.to == "live":
            is_rollback = ROLLED_BACK in row.evidence
            if self.lives and self.lives[-1] != row.bundle:
                self.states[self.lives[-1]] = (ROLLED_BACK if is_rollback else "retired", row)
            if is_rollback:
                while self.lives and self.lives[-1] != row.bundle:
                    self.lives.pop()
            if not self.lives or self.lives[-1] != row.bundle:
                self.lives.append(row.bundle)
        elif row.to == "refused":
            self.lives = [bundle for bundle in self.lives if bundle != row.bundle]
        self.states[row.bundle] = (row.to, row)
        self.generation = row.generation

    def state(self, bundle: str) -> str:
        """Return the state of a bundle.

        Raises:
            UserError: unknown bundle.
        """
        if bundle not in self.states:
            registered = ", ".join(self.states) or "none yet"
            raise UserError("bundle", bundle, f"a registered bundle ({registered})", "recloop status")
        return self.states[bundle][0]

    def rows_in(self, state: str) -> list[ReleaseRow]:
        """Rows of the bundles in this state, oldest move first."""
        return sorted((row for found, row in self.states.values() if found == state), key=lambda row: row.generation)

    def since(self, bundle: str) -> ReleaseRow:
        """Row of a bundle's last move."""
        return self.states[bundle][1]


def read_state(control: ControlStore) -> ReleaseState:
    """Read the current release state."""
    return ReleaseState.from_rows(control.releases())


def register(
    control: ControlStore,
    bundle: str,
    sha256: str,
    *,
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any] | None = None,
) -> ReleaseRow:
    """Register a bundle; ``sha256`` is the hash of its manifest.

    Raises:
        Refused: the bundle is already registered.
        ReleaseConflict: another process moved a release meanwhile.
    """
    machine = read_state(control)
    if bundle in machine.states:
        raise Refused("state", machine.state(bundle), "not registered yet", f"{bundle} is already registered")
    return control.move(
        bundle, sha256, "", "registered",
        by=by, reason=reason, evidence=evidence or {}, expected_generation=machine.generation, at=at,
    )  # fmt: skip


def checked(
    control: ControlStore, bundle: str, *, by: str, reason: str, at: int, evidence: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Mark a registered bundle as checked: its hashes and golden lists agree.

    Raises:
        UserError: unknown bundle.
        Refused: the bundle is not in state registered.
        ReleaseConflict: another process moved a release meanwhile.
    """
    return _move(control, read_state(control), bundle, "checked", by, reason, at, evidence or {})


def promote(
    control: ControlStore,
    bundle: str,
    *,
    to: Target = "live",
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any] | None = None,
) -> ReleaseRow:
    """Promote a bundle, by default to live.

    Raises:
        UserError: unknown bundle or target state.
        Refused: the bundle's state does not allow the move, or another bundle is in an experiment.
        ReleaseConflict: another process moved a release meanwhile.
    """
    if to not in TARGETS:
        raise UserError("--to", to, f"one of {', '.join(TARGETS)}", f"recloop promote {bundle} --to live")
    return _move(control, read_state(control), bundle, to, by, reason, at, evidence or {})


def rollback(control: ControlStore, *, by: str, reason: str, at: int) -> ReleaseRow:
    """Restore the previous live bundle.

    Raises:
        Refused: no bundle was live before.
        ReleaseConflict: another process moved a release meanwhile.
    """
    machine = read_state(control)
    if len(machine.lives) < 2:
        raise Refused("earlier live bundles", max(0, len(machine.lives) - 1), 1, "no earlier live bundle to restore")
    current = machine.lives[-1]
    previous = machine.lives[-2]
    return _move(control, machine, previous, "live", by, reason, at, {ROLLED_BACK: current})


def reject(
    control: ControlStore, bundle: str, *, by: str, reason: str, at: int, evidence: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Exclude a bundle permanently.

    Raises:
        UserError: unknown bundle.
        Refused: the bundle is live (roll back first) or already refused.
        ReleaseConflict: another process moved a release meanwhile.
    """
    return _move(control, read_state(control), bundle, "refused", by, reason, at, evidence or {})


def live(control: ControlStore) -> ReleaseRow | None:
    """Row that made the live bundle live; None if no bundle is live yet."""
    rows = lives(control)
    return rows[0] if rows else None


def lives(control: ControlStore) -> list[ReleaseRow]:
    """Rows of the live bundle and of rollback targets, newest first."""
    rows = control.releases()
    newest = {row.bundle: row for row in rows if row.to == "live"}
    return [newest[bundle] for bundle in dict.fromkeys(reversed(ReleaseState.from_rows(rows).lives))]


def data_since(control: ControlStore) -> int:
    """Generation of the last new first run; 0 if there was only one first run."""
    return max((row.generation for row in control.releases() if RESTARTED in row.evidence), default=0)


def release_table(control: ControlStore) -> JsonTree:
    """Build the release part of ``recloop status``.

    ``shadow`` is the candidate: the first of several bundles in shadow.
    """
    machine = read_state(control)
    tested = {state: next((row.bundle for row in machine.rows_in(state)), None) for state in ("shadow", "experiment")}
    return {
        "live": machine.lives[-1] if machine.lives else None,
        **tested,
        "generation": machine.generation,
        "bundles": [
            {"bundle": bundle, "state": state, "at": row.at, "reason": row.reason}
            for bundle, (state, row) in machine.states.items()
        ],
    }


def allowed(machine: ReleaseState, bundle: str, to: str) -> None:
    """Check that a move is allowed.

    Raises:
        UserError: unknown bundle.
        Refused: the move is not allowed, or another bundle is in an experiment.
    """
    state = machine.state(bundle)
    is_first_live = state == "registered" and to == "live" and not machine.lives
    if state not in FROM[to] and not is_first_live:
        fix = f"{bundle} is live; roll back first" if to == "refused" and state == "live" else f"{bundle} is {state}"
        raise Refused("state", state, f"one of {', '.join(FROM[to])}", fix)
    experiments = machine.rows_in("experiment")
    if to == "experiment" and experiments:
        raise Refused("bundle in the experiment", experiments[0].bundle, "none", "promote or reject that bundle first")


def _move(
    control: ControlStore,
    machine: ReleaseState,
    bundle: str,
    to: str,
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any],
) -> ReleaseRow:
    allowed(machine, bundle, to)
    return control.move(
        bundle, machine.hashes[bundle], machine.state(bundle), to,
        by=by, reason=reason, evidence=evidence, expected_generation=machine.generation, at=at,
        action=_audit_action(to, evidence),
    )  # fmt: skip


def _audit_action(to: str, evidence: Mapping[str, Any]) -> AuditAction | None:
    if to == "checked":
        return None
    if ROLLED_BACK in evidence:
        return AuditAction.ROLLBACK
    return AuditAction.REJECT if to == "refused" else AuditAction.PROMOTE
