"""Result of one gate, its formats and the verdict over all gates."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from recloop.files import JsonTree

INPUT_GATE: Final = "input"
NEW_ROWS: Final = "new_rows"
FORGETTING: Final = "forgetting"
EARLIER_NAMES: Final = {"new": NEW_ROWS, "parity": "verification", "cold_coverage_drop": "cold_coverage"}
"""Gate names in the evidence of earlier versions -> present names."""


@dataclass(frozen=True)
class GateResult:
    """Result of one gate: a number, its threshold and the outcome.

    Attributes:
        name: ``new_rows``, ``forgetting``, ``slice:cold``, ``verification``, ...
        value: Measured number; None if it could not be measured (see ``note``).
        threshold: Threshold that the number was compared with.
        ok: True if the candidate passes.
        detectable: Smallest detectable loss (80 % power at 95 %); None if the gate is not a comparison.
        low, high: 95 % CI of an estimated ``value``; for `input_check`, the band.
        note: Short explanation; starts with ``weak`` for a weak pass.
        candidate, live: NDCG@10 of each, if ``value`` is their relative difference.
        waits: True if neither passed nor refused, because more rows are needed.
        users: Users of a slice for whom either bundle finds a target; not written.
    """

    name: str
    value: float | None
    threshold: float
    ok: bool
    detectable: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    candidate: float | None = None
    live: float | None = None
    waits: bool = False
    users: int | None = None

    @property
    def weak(self) -> bool:
        """True if the gate passed without proof that the candidate is good enough."""
        return self.ok and self.note.startswith("weak")

    def to_json(self) -> JsonTree:
        """Format for ``recloop update --json`` and release rows; rounds to six decimals."""
        values = {name: value for name, value in vars(self).items() if name != "users" and (name != "waits" or value)}
        tree = {name: _plain(value) for name, value in values.items()}
        return {name: value for name, value in tree.items() if value is not None or name == "value"}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> GateResult:
        """Parse the output of `to_json`, also of earlier versions.

        A missing threshold becomes NaN.
        """
        threshold = tree.get("threshold")
        name = re.sub("^slice_drop:", "slice:", EARLIER_NAMES.get(tree["name"], tree["name"]))
        return cls(**{**tree, "name": name, "threshold": math.nan if threshold is None else threshold})

    def line(self) -> str:
        """Format for a terminal: number, threshold, interval or band, detectable loss."""
        compared = self.detectable is not None
        text = "-" if self.value is None else f"{self.value:+.4f}" if compared else f"{self.value:.4g}"
        if self.candidate is not None:
            text += f" (NDCG@10 {self.candidate:.4f}, live {self.live:.4f})"
        text += ", no threshold" if math.isnan(self.threshold) else f", threshold {self.threshold:.4g}"
        if self.low is not None and self.high is not None:
            text += f", {'95 % CI' if compared else 'band'} [{self.low:+.4f}, {self.high:+.4f}]"
        if compared:
            text += f", detectable loss {self.detectable:.4f}"
        note = f" ({self.note})" if self.note else ""
        return f"{'pass' if self.ok else 'wait' if self.waits else 'NO':4} {self.name}: {text}{note}"

    @property
    def reason(self) -> str:
        """Reason for not passing: ``new_rows=-0.140 [-0.190, -0.090]: certainly worse``."""
        if self.value is None:
            return f"{self.name}: {self.note or 'not measured'}"
        if self.detectable is None:
            limit = "" if math.isnan(self.threshold) else f", threshold {self.threshold:.4g}"
            return f"{self.name}={self.value:.4g}{limit}{f': {self.note}' if self.note else ''}"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.name}={self.value:+.3f}{bounds}: {self.note}"


def verdict(gates: Sequence[GateResult]) -> str:
    """Combine gates into ``blocked``, ``refused``, ``waiting`` or ``registered``.

    ``blocked``: the input is out of band. ``refused``: another gate failed. ``waiting``: a gate needs more rows.
    """
    failed = {gate.name for gate in gates if not gate.ok and not gate.waits}
    if INPUT_GATE in failed:
        return "blocked"
    if failed:
        return "refused"
    return "waiting" if any(gate.waits for gate in gates) else "registered"


def gates_to_json(gates: Sequence[GateResult]) -> list[JsonTree]:
    """Format gates for ``recloop update --json`` and release rows."""
    return [{"threshold": None, **gate.to_json()} for gate in gates]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
