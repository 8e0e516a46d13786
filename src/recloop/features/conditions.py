"""Condition language: checked SQL expressions over the fields of a row.

    rule = parse("event_type = 'rating' AND value >= 4", EVENT_COLUMNS, "events.positive")
    rule.mask(frame)

Only comparisons, ``AND OR NOT``, ``IN (...)``, ``BETWEEN``, ``LIKE``, ``IS NULL``, arithmetic and the row's own fields
are allowed; functions, tables and further statements are not. The checked tree is written as SQL again, and only that
text runs, so unchecked input never reaches the engine. Null counts as false.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import polars as pl
import sqlglot
from sqlglot import exp

from recloop.errors import UserError

MAX_CHARACTERS: Final = 10_000  # characters; a request may contain a condition
MIN_NAME_SIMILARITY: Final = 0.6  # by difflib; a less similar field is not suggested
MAX_TERMS: Final = 200  # comparisons; each costs time for every item or event
MAX_DEPTH: Final = 500  # nodes from the root; use IN instead of a longer chain of OR

TERM_TOKENS: Final = frozenset(
    sqlglot.TokenType[name] for name in ("EQ", "NEQ", "GT", "GTE", "LT", "LTE", "IS", "IN", "BETWEEN", "LIKE", "ILIKE")
)
"""Tokens of which each comparison has one."""
COMPARISONS: Final = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE)
PREDICATES: Final = (*COMPARISONS, exp.Is, exp.In, exp.Between, exp.Like, exp.ILike, exp.Boolean)
CONNECTIVES: Final = (exp.And, exp.Or, exp.Not, exp.Paren)
ARITHMETIC: Final = (exp.Neg, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Paren)
ALLOWED: Final = (
    *PREDICATES, *CONNECTIVES, *ARITHMETIC, exp.Column, exp.Identifier, exp.Literal, exp.Null,
)  # fmt: skip
GRAMMAR: Final = "field = 'text', field >= 4, IN (...), BETWEEN, LIKE, IS NULL, joined by AND, OR, NOT"
INCOMPLETE: Final = re.compile(r"Required keyword: '\w+' missing for <class '[\w.]+'>")
"""Message of the parser about an operator without an operand."""
FIX: Final = 'write it as SQL over the row, such as "value >= 4"'


@dataclass(frozen=True)
class Rule:
    """Checked condition.

    ``expr`` is Boolean and never null; ``columns`` are its fields.
    """

    text: str
    expr: pl.Expr
    columns: frozenset[str]
    key: str

    def mask(self, frame: pl.DataFrame) -> pl.Series:
        """(n,) Boolean: rows that meet the condition.

        Raises:
            UserError: a field is compared with a value of another kind.
        """
        try:
            return frame.with_columns(self.expr.alias("passes")).get_column("passes")
        except pl.exceptions.PolarsError as error:
            raise _unlike(self.key, self.text, error) from None


def parse(text: str, columns: Collection[str], key: str) -> Rule:
    """Parse and check a condition.

    Args:
        text: The condition.
        columns: The allowed fields; with a mapping to Polars types, types that cannot be compared are errors too.
        key: Name of the setting or parameter, for messages: ``clean.keep``, ``filter``.

    Raises:
        UserError: the text does not parse, contains a forbidden construct, or uses an unknown field.
    """
    _check_characters(text, key)
    try:
        return _parse(text, columns, key)
    except RecursionError:
        raise UserError(key, text, f"a condition ({GRAMMAR}); nested too deeply", FIX) from None


def check_size(text: str, key: str, max_terms: int, max_tokens: int) -> None:
    """Check the size of a condition in a request, without parsing it.

    Raises:
        UserError: more than ``max_terms`` comparisons, or than ``max_tokens`` words, values and signs.
    """
    _check_characters(text, key)
    n_terms, n_tokens = _size(text)
    if n_terms > max_terms:
        expected = f"at most {max_terms} comparisons, found {n_terms}"
        raise UserError(key, text, expected, "field IN (value, value, ...) instead of many OR")
    if n_tokens > max_tokens:
        expected = f"at most {max_tokens:,} words, values and signs, found {n_tokens:,}"
        raise UserError(key, text, expected, "a placement with this filter in recloop.toml")


@lru_cache(256)
def _size(text: str) -> tuple[int, int]:
    """Return the comparisons and tokens of a condition; (0, 0) for invalid text."""
    try:
        tokens = sqlglot.tokenize(text)
    except sqlglot.errors.SqlglotError:
        return 0, 0
    return sum(token.token_type in TERM_TOKENS for token in tokens), len(tokens)


def _check_characters(text: str, key: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UserError(key, text, f"a condition of at most {MAX_CHARACTERS:,} characters", "a shorter condition")


def _parse(text: str, columns: Collection[str], key: str) -> Rule:
    tree = _parsed(text, key)
    names = _check(tree, text, columns, key)
    if isinstance(columns, Mapping):
        lists = {name for name in names if isinstance(columns[name], pl.List)}
        tree = tree.transform(_match_any, lists) if lists else tree
        if lists and any(_is_compared(node, lists) for node in tree.walk()):
            raise UserError(key, text, "=, <>, IN, LIKE or IS NULL for a field of several values", "field = 'text'")
    try:
        expression = pl.sql_expr(tree.sql(identify=True, comments=False)).fill_null(False)
        if isinstance(columns, Mapping):
            frame = pl.DataFrame(schema=dict(columns)).with_columns(expression.alias("passes"))
            if frame.schema["passes"] != pl.Boolean:
                raise UserError(key, text, f"a condition that is true or false: {GRAMMAR}", FIX)
    except (pl.exceptions.PolarsError, RecursionError) as error:
        raise _unlike(key, text, error) from None
    return Rule(text, expression, frozenset(names), key)


def _match_any(node: exp.Expression, lists: set[str]) -> exp.Expression:
    """Rewrite a comparison with a field of several values: one of them must be equal."""
    if isinstance(node, exp.EQ | exp.NEQ) and isinstance(node.expression, exp.Column):
        node = type(node)(this=node.expression, expression=node.this)
    column = node.this if isinstance(node, exp.EQ | exp.NEQ | exp.In | exp.Like | exp.ILike) else None
    if not isinstance(column, exp.Column) or column.name not in lists:
        return node
    if isinstance(node, exp.Like | exp.ILike):
        joined = exp.Anonymous(this="ARRAY_TO_STRING", expressions=[column.copy(), exp.Literal.string(", ")])
        node.set("this", joined)
        return node
    values = node.expressions if isinstance(node, exp.In) else [node.expression]
    if not all(isinstance(value, exp.Literal) for value in values):
        return node
    texts = [exp.Literal.string(value.this) for value in values]
    checks = [exp.Anonymous(this="ARRAY_CONTAINS", expressions=[column.copy(), value]) for value in texts]
    any_equal = exp.paren(exp.or_(*checks))
    return exp.Not(this=any_equal) if isinstance(node, exp.NEQ) else any_equal


def _is_compared(node: Any, lists: set[str]) -> bool:
    """True for an operation on a field of several values that has no rewriting.

    `_match_any` rewrites the others.
    """
    is_operation = isinstance(node, (*COMPARISONS, *ARITHMETIC, exp.In, exp.Between)) and not isinstance(
        node, exp.Paren
    )
    return is_operation and any(isinstance(part, exp.Column) and part.name in lists for part in node.iter_expressions())


def _parsed(text: str, key: str) -> exp.Expression:
    try:
        trees = [tree for tree in sqlglot.parse(text) if tree is not None]
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        message = "nested too deeply"
        if not isinstance(error, RecursionError):
            message = INCOMPLETE.sub("an operand is missing", str(error).splitlines()[0]).rstrip(".")
        raise UserError(key, text, f"a condition ({GRAMMAR}); {message}", FIX) from None
    if len(trees) != 1:
        raise UserError(key, text, f"one condition, found {len(trees)}", FIX)
    tree: Any = trees[0]
    if not isinstance(tree, exp.Expression):
        raise UserError(key, text, f"a condition ({GRAMMAR})", FIX)
    return tree


def field_names(text: str, key: str) -> set[str]:
    """Names of the fields in a condition that is not checked yet.

    Raises:
        UserError: the text does not parse.
    """
    return {node.name for node in _parsed(text, key).walk() if isinstance(node, exp.Column)}


def _check(tree: exp.Expression, text: str, columns: Collection[str], key: str) -> set[str]:
    """Reject every node outside the condition language and return the fields used."""
    names: set[str] = set()
    n_terms = 0
    for node in tree.walk():
        n_terms += isinstance(node, PREDICATES)
        if not isinstance(node, ALLOWED):
            raise UserError(key, text, f"{GRAMMAR}; found {node.sql(comments=False)[:60]}", FIX)
        if node.depth > MAX_DEPTH:
            raise UserError(
                key, text, f"at most {MAX_DEPTH} levels of nesting", "field IN (value, value, ...) instead of many OR"
            )
        if isinstance(node, exp.Column):
            names.add(_known(node, text, columns, key))
        if isinstance(node, exp.Null) and not isinstance(node.parent, exp.Is):
            raise UserError(key, text, "IS NULL, because no value equals NULL", "field IS NULL")
        if isinstance(node, exp.Is) and not isinstance(node.expression, exp.Null):
            raise UserError(key, text, "IS NULL or IS NOT NULL", "field = TRUE")
        if isinstance(node, exp.In) and not _is_list(node):
            raise UserError(key, text, "IN with a list of values", "field IN ('a', 'b')")
        if isinstance(node, exp.Like | exp.ILike) and not node.expression.is_string:
            raise UserError(key, text, "LIKE with a text", "field LIKE 'a%'")
        if isinstance(node, exp.And | exp.Or | exp.Not):
            operands = (node.this,) if isinstance(node, exp.Not) else (node.left, node.right)
            for operand in operands:
                _must_decide(operand, text, key)
    if n_terms > MAX_TERMS:
        expected = f"at most {MAX_TERMS} comparisons, found {n_terms}"
        raise UserError(key, text, expected, "field IN (value, value, ...) instead of many OR")
    _must_decide(tree, text, key)
    return names


def _known(node: exp.Column, text: str, columns: Collection[str], key: str) -> str:
    name = node.name
    if name in columns and len(node.parts) == 1:
        return name
    matches = difflib.get_close_matches(name, list(columns), n=1, cutoff=MIN_NAME_SIMILARITY)
    nearest = f"; nearest to {name}: {matches[0]}" if matches else ""
    quoted = isinstance(node.this, exp.Identifier) and node.this.quoted
    hint = f"; write a text in single quotes: '{name}'" if quoted else ""
    if not columns:
        raise UserError(key, text, f"a condition without fields; no field is known here{hint}", FIX)
    expected = "a known field" if matches else f"a known field instead of {name}"
    raise UserError(key, text, expected + nearest + hint, f"one of {', '.join(sorted(columns)[:20])}")


def _is_list(node: exp.In) -> bool:
    values = node.expressions
    simple = all(
        isinstance(value, exp.Literal) or (isinstance(value, exp.Neg) and value.this.is_number) for value in values
    )
    return bool(values) and simple and not (node.args.get("query") or node.args.get("unnest"))


def _must_decide(node: Any, text: str, key: str) -> None:
    while isinstance(node, exp.Paren):
        node = node.this
    if not isinstance(node, (*PREDICATES, exp.And, exp.Or, exp.Not, exp.Column)):
        raise UserError(key, text, f"a condition that is true or false; found {node.sql(comments=False)[:60]}", FIX)


def _unlike(key: str, text: str, error: Exception) -> UserError:
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(key, text, f"numbers compared with numbers, and texts with texts ({message})", FIX)
