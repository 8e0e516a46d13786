"""Form of a text table: separator, quotes, header and lines above it.

A separator is judged by how many records it splits into the same number of fields, not by the first line.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from recloop.config import Data
from recloop.data.encoding import scan_text
from recloop.data.sources import InputFile
from recloop.errors import UserError

SEPARATORS: Final = (",", ";", "\t", "|", "::", " ")
LITERAL_QUOTE_SEPARATORS: Final = ("\t", "|", "::", " ")
"""Separators of files in which a quote may be a letter, as in ``12" pipe``."""
INNER_MARK: Final = "\x1f"
"""Separator of one character that replaces ``::`` while a file is read."""
SAMPLE_BYTES: Final = 1 << 17
MAX_RECORDS: Final = 200
MAX_COMPARED_RECORDS: Final = 50
MAX_TITLE_RECORDS: Final = 20
MAX_FIELD_BYTES: Final = 1 << 24
MIN_FIT: Final = 0.95
"""Share of records with the same number of fields from which a separator is consistent."""
MIN_ROUGH_FIT: Final = 0.5
"""Share of records with the same number of fields from which blanks are not the separator."""
MIN_SAME_TYPE: Final = 0.9
MIN_BLANK_SHARE: Final = 0.8
"""Share of fields that begin with a blank from which blanks after separators are cut."""
SEPARATOR_LINE: Final = re.compile(r'\ufeff?"?sep=(::|.)"?[\r\n]', re.IGNORECASE)
NUMBERED_NAMES: Final = re.compile(r"(\D+)\d+(\x1f\1\d+)*")
NUMBER_SHAPE: Final = "9"
NUMBER: Final = re.compile(r"[-+]?\d+([.,]\d+)*([eE][-+]?\d+)?")


FirstLine = Literal["values", "names", "unclear"]


@dataclass(frozen=True)
class Dialect:
    """Form of a text table.

    Attributes:
        separator: Text between two fields.
        has_quotes: True if a quote at the start of a field encloses it; false: quotes are letters.
        names: Names in the header as written; without a header ``c1``, ``c2``, ...
        n_skipped: Lines before the first record, including the header.
        n_titles: Lines before the header.
        has_blanks: True if separators are followed by blanks that are cut.
        header: The first line as written.
        is_headless: True if the first line looks like values.
    """

    separator: str
    has_quotes: bool
    names: tuple[str, ...]
    n_skipped: int
    n_titles: int = 0
    has_blanks: bool = False
    header: str = ""
    is_headless: bool = False

    @property
    def delimiter(self) -> str:
        """Separator of one character; `INNER_MARK` replaces ``::`` while a file is read."""
        return INNER_MARK if self.separator == "::" else self.separator

    @property
    def replacement(self) -> tuple[str, str] | None:
        return (self.separator, INNER_MARK) if self.separator == "::" else None

    def records(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """Fields of every record, blank ones included as empty lists."""
        csv.field_size_limit(MAX_FIELD_BYTES)
        return csv.reader(
            (line.replace("::", INNER_MARK) for line in lines) if self.separator == "::" else lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE,
            skipinitialspace=self.has_blanks,
        )


@dataclass(frozen=True)
class _Candidate:
    """A dialect, its records from the header on, and the share that fit the header."""

    dialect: Dialect
    records: list[list[str]]
    fit: float


def looks_headless(source: InputFile, data: Data | None = None) -> bool:
    """True if the first line of a text table holds values, not names.

    Its fields are of the same type or pattern as those of the next records, or are repeated there.
    """
    settings = data or Data()
    return find_dialect(source, scan_text(source, settings.encoding).encoding, settings).is_headless


def find_dialect(source: InputFile, encoding: str, data: Data) -> Dialect:
    """Form of a text table, by many of its first records.

    ``data.separator`` and ``data.header`` override what the records say. A first line that is clearly of names is a
    header also with ``header = false``: a log without names may have a catalog with names.

    Raises:
        UserError: the file is blank.
    """
    head = source.head(SAMPLE_BYTES)
    text = head.decode(encoding, "ignore").lstrip("\ufeff")
    is_whole = len(head) < SAMPLE_BYTES
    separator_line = SEPARATOR_LINE.match(text)
    n_lines = 1 if separator_line else 0
    if separator_line:
        text = text[separator_line.end() :].removeprefix("\n")
    separators: Sequence[str] = SEPARATORS
    if data.separator != "auto":
        separators = (data.separator,)
    elif separator_line and separator_line[1] in SEPARATORS:
        separators = (separator_line[1],)
    candidates = _candidates(text, separators, is_whole)
    if not candidates:
        raise UserError(source.key, source.name, "a header and rows; the file is blank", source.use_of_new)
    best = _best(candidates)
    first_line = judge_first_line(best.records)
    dialect = replace(
        best.dialect,
        n_skipped=best.dialect.n_skipped + n_lines,
        n_titles=best.dialect.n_titles + n_lines,
        is_headless=first_line == "values",
    )
    if data.header or first_line == "names":
        return dialect
    n_fields = _common_length(best.records)
    names = tuple(f"c{number}" for number in range(1, n_fields + 1))
    return replace(dialect, names=names, n_skipped=dialect.n_titles, is_headless=True)


def _candidates(text: str, separators: Sequence[str], is_whole: bool) -> list[_Candidate]:
    """Dialects of the separators in a text; blanks only if no other separator fits."""
    candidates: list[_Candidate] = []
    for separator in separators:
        if (separator not in text and len(separators) > 1 and separator != ",") or (
            separator == " "
            and any(len(other.dialect.names) > 1 and other.fit >= MIN_ROUGH_FIT for other in candidates)
        ):
            continue
        has_quotes = separator != "::"
        candidate = _candidate(text, separator, has_quotes, is_whole)
        if candidate is None:
            continue
        candidates.append(candidate)
        if has_quotes and candidate.fit < 1 and separator in LITERAL_QUOTE_SEPARATORS and '"' in text:
            literal = _candidate(text, separator, has_quotes=False, is_whole=is_whole)
            candidates += [literal] if literal is not None else []
    return candidates


def _candidate(text: str, separator: str, has_quotes: bool, is_whole: bool) -> _Candidate | None:
    dialect = Dialect(separator, has_quotes, (), 0)
    records = _sample(text, dialect, is_whole)
    if not records:
        return None
    if separator != " " and _has_blanks([fields for fields, _, _ in records]):
        dialect = replace(dialect, has_blanks=True)
        records = _sample(text, dialect, is_whole)
    first = _header_index([fields for fields, _, _ in records], [is_after_blank for _, _, is_after_blank in records])
    rows = [fields for fields, _, _ in records[first:]]
    header = separator.join(rows[0])
    names = _names(rows)
    if dialect.has_blanks:
        names = tuple(name.strip() for name in names)
    dialect = replace(
        dialect, names=names, n_skipped=records[first][1], n_titles=records[first - 1][1] if first else 0, header=header
    )
    n_equal = sum(len(fields) == len(names) for fields in rows[1:])
    return _Candidate(dialect, rows, n_equal / (len(rows) - 1) if len(rows) > 1 else 1.0)


def _sample(text: str, dialect: Dialect, is_whole: bool) -> list[tuple[list[str], int, bool]]:
    """First records with text.

    Each has its fields, its last line, and True if a blank line is before it.
    """
    records: list[tuple[list[str], int, bool]] = []
    is_after_blank = False
    n_lines = 0

    def lines() -> Iterator[str]:
        nonlocal n_lines
        for line in io.StringIO(text, newline=""):
            n_lines += 1
            yield line

    try:
        for fields in dialect.records(lines()):
            if fields:
                records.append((fields, n_lines, is_after_blank))
            is_after_blank = not fields
            if len(records) == MAX_RECORDS:
                return records
    except csv.Error:
        return records
    return records if is_whole or len(records) < 2 else records[:-1]


def _names(records: Sequence[list[str]]) -> tuple[str, ...]:
    """Names of the header.

    A separator at the end of only the header or only the rows is ignored.
    """
    names, *rows = records
    common = _common_length(rows) if rows else len(names)
    if common == len(names) - 1 and not names[-1].strip():
        return tuple(names[:-1])
    if common == len(names) + 1 and not any(row[-1].strip() for row in rows if len(row) == common):
        return (*names, "")
    return tuple(names)


def _header_index(records: Sequence[list[str]], after_blank: Sequence[bool]) -> int:
    """Index of the header.

    Title lines above it have one field with text, or end at a blank line.
    """
    common = _common_length(records)
    for index, fields in enumerate(records[: MAX_TITLE_RECORDS + 1]):
        if len(fields) >= common and sum(field.strip() != "" for field in fields) > 1:
            is_title = [sum(field.strip() != "" for field in title) <= 1 for title in records[:index]]
            return index if all(is_title) or (after_blank[index] and len(fields) == common) else 0
    return 0


def _common_length(records: Sequence[list[str]]) -> int:
    counts = Counter(len(fields) for fields in records)
    n_records = max(counts.values())
    return max(length for length, count in counts.items() if count == n_records)


def _has_blanks(records: Sequence[list[str]]) -> bool:
    """True if blanks follow the separators of the header and of most rows."""
    names, *rows = records
    if len(names) < 2 or not all(name.startswith(" ") for name in names[1:]):
        return False
    fields = [field for row in rows for field in row[1:] if field]
    return sum(field.startswith(" ") for field in fields) >= MIN_BLANK_SHARE * len(fields)


def _best(candidates: Sequence[_Candidate]) -> _Candidate:
    """Consistent candidate with the most fields.

    Blanks separate fields only if nothing else does.
    """
    split = [candidate for candidate in candidates if len(candidate.dialect.names) > 1]
    others = [candidate for candidate in split if candidate.dialect.separator != " "]
    for group in (others, split):
        consistent = [candidate for candidate in group if candidate.fit >= MIN_FIT]
        if consistent:
            return max(consistent, key=_preference)
    fitting = [candidate for candidate in others if candidate.fit > 0]
    if fitting:
        return max(fitting, key=lambda candidate: (candidate.fit, _preference(candidate)))
    return max(others or candidates, key=_preference)


def _preference(candidate: _Candidate) -> tuple[bool, int, float, bool]:
    """Order of consistent candidates: no lines above the header, then the most fields."""
    return not candidate.dialect.n_titles, len(candidate.dialect.names), candidate.fit, candidate.dialect.has_quotes


# -- header


def judge_first_line(records: Sequence[list[str]]) -> FirstLine:
    """Judge whether the first record holds values as the next ones do, or names.

    Values: at least a third of its fields are like their column, at least one of them by number or pattern, and no
    field looks like a name above numbers or codes. Names: some field does, and none is like its column by pattern.
    """
    first, *rows = records[: MAX_COMPARED_RECORDS + 1]
    if NUMBERED_NAMES.fullmatch(INNER_MARK.join(first)):
        return "unclear"
    n_fields = n_typed = n_repeated = n_named = 0
    for index, field in enumerate(name.strip() for name in first):
        column = [row[index].strip() for row in rows if index < len(row) and row[index].strip()]
        if not field or not column:
            continue
        n_fields += 1
        shape = value_shape(field)
        shapes = [value_shape(value) for value in column]
        min_same = MIN_SAME_TYPE * len(column)
        if _has_digit(field) and shapes.count(shape) >= min_same:
            n_typed += 1
        elif shape != NUMBER_SHAPE and shapes.count(NUMBER_SHAPE) >= min_same:
            n_named += 1
        elif field in column:
            n_repeated += 1
        elif not _has_digit(field) and sum(map(_has_digit, column)) >= min_same:
            n_named += 1
    if n_named:
        return "unclear" if n_typed else "names"
    return "values" if n_typed and (n_typed + n_repeated) * 3 >= n_fields else "unclear"


def _has_digit(value: str) -> bool:
    return any(character.isdigit() for character in value)


def value_shape(value: str) -> str:
    """Pattern of a value: ``9`` is a number, ``a9`` is ``U17``, ``9/9/9`` a date."""
    if NUMBER.fullmatch(value):
        return NUMBER_SHAPE
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", value))
