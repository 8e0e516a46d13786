"""Report of a fit: rows read, kept and dropped, and the guessed settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from recloop.files import JsonTree
from recloop.init.log_input import GuessedSetting


@dataclass(frozen=True)
class FitReport:
    """Numbers of a fit: ``read = kept + sum(removed) + left_out + rejected``.

    Attributes:
        removed: Rows by cleaning rule. left_out: Rows that do not meet ``data.where``.
        rejected: Unreadable rows. reasons: Their most common reasons, as text.
        users, items: Distinct ids of the kept rows, without guests. guest_baskets, guest_rows: Baskets without a user
            and their rows, which teach about items. learned: Rows that the models learned. held_out: Rows of the test.
        guesses: Guessed settings, each with its reason.
        unused_names: Columns named like a field that another column was read for.
    """

    read: int
    kept: int
    removed: Mapping[str, int]
    left_out: int
    rejected: int
    reasons: str
    users: int
    items: int
    learned: int
    held_out: int
    guest_baskets: int
    guest_rows: int
    guesses: tuple[GuessedSetting, ...]
    unused_names: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        """Rows that were removed by a rule or rejected."""
        return sum(self.removed.values()) + self.rejected

    @property
    def rows_line(self) -> str:
        """Row counts as one line."""
        parts = [f"{count:,} removed by {rule}" for rule, count in self.removed.items()]
        parts += [f"{self.left_out:,} left out by where"] if self.left_out else []
        parts += [f"{self.rejected:,} rejected: {self.reasons}"] if self.rejected else []
        return f"{self.read:,} rows read = {' + '.join([f'{self.kept:,} kept', *parts])}"

    @property
    def warning(self) -> str:
        """Text of the warning of a fit; empty if nothing was dropped or unused."""
        parts = [self.rows_line] if self.dropped else []
        for name in self.unused_names:
            guess = next((guess for guess in self.guesses if guess.key == f"columns.{name}"), None)
            if guess is not None:
                fix = f'columns={{"{name}": "{name}"}}'
                parts.append(
                    f"{name} is read from {guess.value} ({guess.why}), not from the column {name}; to use it: {fix}"
                )
        return f"recloop.fit: {'; '.join(parts)}; details: rec.report" if parts else ""

    def to_json(self) -> JsonTree:
        """Return all numbers and guesses as a JSON object."""
        tree = {**vars(self), "removed": dict(self.removed), "unused_names": list(self.unused_names)}
        return {**tree, "guesses": [vars(guess) for guess in self.guesses]}

    def __str__(self) -> str:
        lines = [self.rows_line, self._counts_line]
        return "\n".join([*lines, *(f"{guess.key} = {guess.value}   ({guess.why})" for guess in self.guesses)])

    @property
    def _counts_line(self) -> str:
        guests = f", {self.guest_baskets:,} guest baskets of {self.guest_rows:,} rows" if self.guest_baskets else ""
        learned = f"{self.learned:,} rows learned, {self.held_out:,} held out"
        return f"{self.users:,} users{guests}, {self.items:,} items; {learned}"

    def _repr_html_(self) -> str:
        """Render for a notebook."""
        head = f"<p>{escape(self.rows_line)}<br>{self._counts_line}</p>"
        if not self.guesses:
            return head
        rows = "".join(
            f"<tr><td>{escape(guess.key)}</td><td>{escape(str(guess.value))}</td><td>{escape(guess.why)}</td></tr>"
            for guess in self.guesses
        )
        return f"{head}<table><tr><th>guessed setting</th><th>value</th><th>reason</th></tr>{rows}</table>"
