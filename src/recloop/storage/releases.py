"""The release machine: which bundle is live, and every move of every bundle as a row of the control store.

    registered ──> checked ──> shadow ──> experiment ──> live ──> retired, when another becomes live
        │             ├───────────┴──────────>│ ^          │ ^         │
        │             └───────────────────────┴─┘          v └─────────┤ (a rollback, or a promotion)
        │                                             rolled_back ─────┘
        └──> refused, for good: from any state but live

A bundle enters as ``registered`` with the hash of its manifest, which is what serving compares: by ``update`` after its
gate, by ``train`` before. It is ``checked`` once it was loaded, its hashes and golden lists agreed: by the server, or by
``promote`` where none runs. In the shadow it scores requests after live has answered them (several may stand there);
in the experiment it answers a share of the users (one at a time). Where nothing is live yet the first one becomes live
at once.

One bundle is live; when another becomes live the former is ``retired`` by the same row, ``rolled_back`` where that row
is a rollback. The rows are the truth: a state is their fold, a move is a compare-and-set on ``generation``; of two
movers at once one wins, the other is told who. Which steps must be earned is `recloop.recommend.loading`'s business; this file
knows only which moves exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recloop.errors import Refused, UserError
from recloop.json_object import JsonTree
from recloop.storage import ControlStore
from recloop.storage.control import ReleaseRow

Target = Literal["shadow", "experiment", "live"]
TARGETS: tuple[Target, ...] = ("shadow", "experiment", "live")
ROLLED_BACK = "rolled_back"
"""A state, and in the evidence of a rollback's row: the bundle that was live until then."""
RESTARTED = "restarted"
"""In the evidence of the row that made a bundle of new data live: decisions of earlier generations know other data."""
FROM: Mapping[str, tuple[str, ...]] = {
    "checked": ("registered",),
    "shadow": ("checked",),
    "experiment": ("checked", "shadow"),
    "live": ("checked", "shadow", "experiment", "retired", ROLLED_BACK),
    "refused": ("registered", "checked", "shadow", "experiment", "retired", ROLLED_BACK),
}
"""The states from which a bundle may go to each state."""


@dataclass
class ReleaseState:
    """The fold over all rows.

    ``states`` holds each bundle's state and the row that put it there; ``hashes`` those of the manifests as
    registered; ``lives`` the bundles that a rollback could bring back, the live one last.
    """

    states: dict[str, tuple[str, ReleaseRow]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    lives: list[str] = field(default_factory=list)
    generation: int = 0

    @classmethod
    def of(cls, rows: Sequence[ReleaseRow]) -> ReleaseState:
        read_state = cls()
        for row in rows:
            read_state.take(row)
        return read_state

    def take(self, row: ReleaseRow) -> None:
        """One more row."""
        self.hashes.setdefault(row.bundle, row.sha256)
        if row.to == "live":
            back = ROLLED_BACK in row.evidence
            if self.lives and self.lives[-1] != row.bundle:
                self.states[self.lives[-1]] = (ROLLED_BACK if back else "retired", row)
            if back:
                while self.lives and self.lives[-1] != row.bundle:
                    self.lives.pop()
            if not self.lives or self.lives[-1] != row.bundle:
                self.lives.append(row.bundle)
        elif row.to == "refused":
            self.lives = [bundle for bundle in self.lives if bundle != row.bundle]
        self.states[row.bundle] = (row.to, row)
        self.generation = row.generation

    def state(self, bundle: str) -> str:
        """The state of a bundle.

        Raises:
            UserError: no such bundle.
        """
        if bundle not in self.states:
            known = ", ".join(self.states) or "none yet"
            raise UserError("bundle", bundle, f"a registered bundle ({known})", "recloop status")
        return self.states[bundle][0]

    def rows_in(self, state: str) -> list[ReleaseRow]:
        """The rows that put bundles where they are now, oldest move first."""
        return sorted((row for found, row in self.states.values() if found == state), key=lambda row: row.generation)

    def since(self, bundle: str) -> ReleaseRow:
        """The row that put a bundle where it is."""
        return self.states[bundle][1]


def read_state(control: ControlStore) -> ReleaseState:
    """The machine as it stands now."""
    return ReleaseState.of(control.releases())


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
    """Let a bundle in; ``sha256`` is that of its manifest.

    Raises:
        Refused: it is registered already.
        Moved: another process moved a release meanwhile.
    """
    now = read_state(control)
    if bundle in now.states:
        raise Refused("state", now.state(bundle), "not registered yet", f"{bundle} is known")
    return control.move(
        bundle, sha256, "", "registered",
        by=by, reason=reason, evidence=evidence or {}, expected_generation=now.generation, at=at,
    )  # fmt: skip


def checked(
    control: ControlStore, bundle: str, *, by: str, reason: str, at: int, evidence: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Note that a registered bundle may be served: its hashes and golden lists agree.

    Raises:
        UserError: no such bundle.
        Refused: it is past that step.
        Moved: another process moved a release meanwhile.
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
    """Move a bundle on, to live unless said otherwise.

    Raises:
        UserError: no such bundle, or no such state to move to.
        Refused: it was refused, is there already, was not checked yet, or another one is in the experiment.
        Moved: another process moved a release meanwhile.
    """
    if to not in TARGETS:
        raise UserError("--to", to, f"one of {', '.join(TARGETS)}", f"recloop promote {bundle} --to live")
    return _move(control, read_state(control), bundle, to, by, reason, at, evidence or {})


def rollback(control: ControlStore, *, by: str, reason: str, at: int) -> ReleaseRow:
    """Bring back the bundle that was live before the present one.

    Raises:
        Refused: there was none.
        Moved: another process moved a release meanwhile.
    """
    found = read_state(control)
    if len(found.lives) < 2:
        raise Refused("earlier live bundles", max(0, len(found.lives) - 1), 1, "nothing to go back to")
    now, before = found.lives[-1], found.lives[-2]
    return _move(control, found, before, "live", by, reason, at, {ROLLED_BACK: now})


def refuse(
    control: ControlStore, bundle: str, *, by: str, reason: str, at: int, evidence: Mapping[str, Any] | None = None
) -> ReleaseRow:
    """Take a bundle out for good.

    Raises:
        UserError: no such bundle.
        Refused: it is live (roll back first), or refused already.
        Moved: another process moved a release meanwhile.
    """
    return _move(control, read_state(control), bundle, "refused", by, reason, at, evidence or {})


def live(control: ControlStore) -> ReleaseRow | None:
    """The row that made the live bundle live; None: nothing is live yet."""
    found = lives(control)
    return found[0] if found else None


def lives(control: ControlStore) -> list[ReleaseRow]:
    """The live bundle's row, then those of the earlier live ones that a rollback would bring back, newest first."""
    rows = control.releases()
    newest = {row.bundle: row for row in rows if row.to == "live"}
    return [newest[bundle] for bundle in dict.fromkeys(reversed(ReleaseState.of(rows).lives))]


def data_since(control: ControlStore) -> int:
    """The generation since which the present data are served; 0: since the first bundle."""
    return max((row.generation for row in control.releases() if RESTARTED in row.evidence), default=0)


def release_table(control: ControlStore) -> JsonTree:
    """What is live, what is tried, since when: the release part of ``recloop status``.

    ``shadow`` is the candidate: of several bundles in the shadow the one that came first.
    """
    found = read_state(control)
    first = {state: next((row.bundle for row in found.rows_in(state)), None) for state in ("shadow", "experiment")}
    return {
        "live": found.lives[-1] if found.lives else None,
        **first,
        "generation": found.generation,
        "bundles": [
            {"bundle": bundle, "state": state, "at": row.at, "reason": row.reason}
            for bundle, (state, row) in found.states.items()
        ],
    }


def allowed(found: ReleaseState, bundle: str, to: str) -> None:
    """Whether the machine knows this move.

    Raises:
        UserError: no such bundle.
        Refused: it does not, or another bundle is in the experiment.
    """
    state = found.state(bundle)
    first = state == "registered" and to == "live" and not found.lives
    if state not in FROM[to] and not first:
        fix = f"{bundle} is live; roll back first" if to == "refused" and state == "live" else f"{bundle} is {state}"
        raise Refused("state", state, f"one of {', '.join(FROM[to])}", fix)
    tried = found.rows_in("experiment")
    if to == "experiment" and tried:
        raise Refused("bundle in the experiment", tried[0].bundle, "none", "promote or refuse that one first")


def _move(
    control: ControlStore,
    found: ReleaseState,
    bundle: str,
    to: str,
    by: str,
    reason: str,
    at: int,
    evidence: Mapping[str, Any],
) -> ReleaseRow:
    allowed(found, bundle, to)
    return control.move(
        bundle, found.hashes[bundle], found.state(bundle), to,
        by=by, reason=reason, evidence=evidence, expected_generation=found.generation, at=at,
    )  # fmt: skip
