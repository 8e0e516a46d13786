"""Column detection for log files: by name, by content and by ids of other files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import polars as pl

from recloop.data.numbers import read_numbers
from recloop.features.timestamp_text import COMPACT_PATTERN, NUMBER_PATTERN, YEAR_FIRST_PATTERN, YEAR_LAST_PATTERN
from recloop.records import EVENT_ID, EVENT_TYPE, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

KNOWN_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    USER_ID: (
        "userid", "user", "customerid", "customer", "custid", "customernumber", "householdid", "household", "memberid",
        "member", "clientid", "client", "accountid", "account", "visitorid", "visitor", "shopperid", "shopper",
        "buyerid", "buyer", "reviewerid", "readerid", "subscriberid", "uid", "kundennummer", "kundenid", "kunde",
        "用户id", "用户", "会员id", "会员", "email", "customeremail", "emailaddress", "deviceid", "cookieid", "cookie", "sessionid",
    ),
    ITEM_ID: (
        "itemid", "item", "productid", "product", "sku", "skuid", "stockcode", "articleid", "article", "artikelnummer",
        "artikel", "goodsid", "asin", "parentasin", "isbn", "movieid", "movie", "trackid", "track", "songid", "song",
        "bookid", "book", "videoid", "video", "newsid", "contentid", "content", "offerid", "adid", "businessid",
        "商品id", "商品", "iid",
    ),
    TIMESTAMP: (
        "timestamp", "transactiontimestamp", "eventtime", "eventtimestamp", "datetime", "ts", "time", "createdat",
        "occurredat", "invoicedate", "orderdate", "purchasedate", "purchasetime", "orderedat", "transactiondate",
        "transactiontime", "unixreviewtime", "reviewtime", "date", "tdat", "day", "zeit", "zeitstempel", "datum",
        "bestelldatum", "时间", "日期",
    ),
    GROUP_ID: (
        "groupid", "basketid", "basket", "invoiceid", "invoiceno", "invoicenumber", "invoice", "orderid", "orderno",
        "ordernumber", "order", "transactionid", "receiptid", "receipt", "ticketid", "cartid", "bonid", "bon",
        "bestellnummer", "rechnung", "订单id", "订单", "impressionid", "pageviewid", "slateid",
    ),
    EVENT_TYPE: (
        "eventtype", "eventname", "event", "action", "actiontype", "behavior", "behaviour", "behaviortype",
        "behaviourtype", "interactiontype", "activity", "type", "verb",
    ),
    VALUE: (
        "value", "rating", "stars", "score", "overall", "salesvalue", "amount", "revenue", "sales", "total", "price",
        "unitprice", "preis", "betrag",
    ),
    QUANTITY: ("quantity", "qty", "units", "menge", "anzahl", "count", "数量"),
    EVENT_ID: ("eventid", "eventuuid", "uuid", "id", "rowid", "transactionid"),
}  # fmt: skip
"""Known names by our column, most likely first, in `normalize_name` form."""

NAME_PATTERNS: Final[Mapping[str, str]] = {
    USER_ID: r"(user|customer|household|member|visitor|shopper).*(id|no|number|key)$",
    ITEM_ID: r"(item|product|article|sku|movie|track).*(id|no|number|key|code)$|sku$",
    TIMESTAMP: r"timestamp|datetime|date$|time$",
}
"""Patterns of column names that are not in the list of known names."""

ORDER_NAMES: Final = ("pos", "position", "seq", "sequence", "order", "rank", "step", "index", "sessionposition")
"""Columns with the number of a user's row, which replace a missing time."""

OUTCOME_NAMES: Final = ("click", "clicked", "label", "purchased", "bought", "target", "conversion", "converted")
"""Columns of 0 and 1 with the outcome of an impression."""

TITLE_NAMES: Final = (
    "name", "title", "productname", "itemname", "producttitle", "movietitle", "description", "productdescription",
    "articlename", "label", "bezeichnung", "名称", "标题",
)  # fmt: skip
"""Known names of display columns."""

MAX_TYPES: Final = 50
MAX_EMPTY_SHARE: Final = 0.1
"""Share of empty rows above which another column of a known name is preferred."""
MIN_UNIQUE_ROWS: Final = 50
"""Number of rows below which an item column may contain each item only once."""
SAMPLE_ROWS: Final = 2_000


class ColumnGuess(NamedTuple):
    """Detected column ("" for none) and the reason."""

    name: str
    why: str


def normalize_name(name: str) -> str:
    """Lower-case name without spaces and signs.

    ``Customer ID`` equals ``customer_id``.
    """
    return re.sub(r"[\W_]+", "", name.lower())


def guess_columns(frame: pl.DataFrame, separator: str, others: Mapping[str, Sequence[str]]) -> dict[str, ColumnGuess]:
    """Guess the columns of an event log.

    Args:
        frame: The rows or a sample of them.
        separator: Separator of the file, for decimal commas.
        others: Columns of the items file by ``item_id`` and of the users file by ``user_id``; a shared column is an id.

    Returns:
        Guess by our column; its name is "" if none was found.
    """
    guesses: dict[str, ColumnGuess] = {}

    def free() -> list[str]:
        used = {guess.name for guess in guesses.values()}
        return [name for name in frame.columns if name not in used]

    for field in (USER_ID, ITEM_ID):
        guesses[field] = _id(field, free(), frame, others.get(field, ()))
    guesses[TIMESTAMP] = _time(free(), frame)
    guesses[EVENT_TYPE] = _first(EVENT_TYPE, free(), lambda name: _types(frame[name]))
    guesses[GROUP_ID] = _first(GROUP_ID, free(), lambda name: _groups(frame, name, guesses[USER_ID].name))
    guesses[EVENT_ID] = _first(EVENT_ID, free(), lambda name: _unique(frame[name]))
    for field in (QUANTITY, VALUE):
        guesses[field] = _first(field, free(), lambda name: _numeric(frame[name], separator))
    if not guesses[VALUE].name:
        candidates = (name for name in free() if normalize_name(name) in OUTCOME_NAMES)
        outcome = next((name for name in candidates if _is_outcome(frame[name], separator)), "")
        guesses[VALUE] = ColumnGuess(outcome, "0 and 1: the outcome of an impression") if outcome else guesses[VALUE]
    return guesses


def _id(field: str, names: Sequence[str], frame: pl.DataFrame, other_columns: Sequence[str]) -> ColumnGuess:
    shared = [name for name in names if name in other_columns]
    for name in _ranked(field, shared):
        return ColumnGuess(name, "its name, and the other file has it too")
    candidates = [name for name in _ranked(field, names) if _missing(frame[name]) < 1]
    candidates = candidates or [
        name for name in names if re.search(NAME_PATTERNS[field], normalize_name(name)) and _missing(frame[name]) < 1
    ]
    if candidates:
        return _fullest(field, candidates, frame)
    if len(shared) == 1:
        return ColumnGuess(shared[0], "the other file has it too")
    return ColumnGuess("", "no column has such a name")


def _fullest(field: str, names: Sequence[str], frame: pl.DataFrame) -> ColumnGuess:
    """First of these columns with few empty rows and, for items, repeated values."""

    def poor(name: str) -> tuple[bool, bool]:
        unique = field == ITEM_ID and len(frame) >= MIN_UNIQUE_ROWS and frame[name].n_unique() == len(frame)
        return _missing(frame[name]) > MAX_EMPTY_SHARE, unique

    best = min(names, key=poor)
    if best == names[0]:
        return ColumnGuess(best, "its name")
    why = "never repeats" if poor(names[0])[1] else f"is empty in {_missing(frame[names[0]]):.1%} of the rows"
    return ColumnGuess(best, f"its name; {names[0]} {why}")


def _time(names: Sequence[str], frame: pl.DataFrame) -> ColumnGuess:
    likely = [
        *_ranked(TIMESTAMP, names),
        *(name for name in names if re.search(NAME_PATTERNS[TIMESTAMP], normalize_name(name))),
    ]
    likely = [name for name in dict.fromkeys(likely) if _holds_stamps(frame[name])]
    if likely:
        # prefer a full column over a half-empty one with a better name
        return ColumnGuess(
            min(likely, key=lambda name: _missing(frame[name]) > MAX_EMPTY_SHARE), "its name, and it holds stamps"
        )
    for name in names:
        if frame.schema[name] in (pl.Date, pl.Datetime):
            return ColumnGuess(name, "it holds dates")
    for name in names:
        if normalize_name(name) in ORDER_NAMES and _holds_stamps(frame[name]):
            return ColumnGuess(name, "no time; it numbers the rows, read as seconds")
    return ColumnGuess("", "no column has such a name and holds stamps")


def _first(field: str, names: Sequence[str], accepts: object) -> ColumnGuess:
    assert callable(accepts)
    for name in _ranked(field, names):
        if accepts(name):
            return ColumnGuess(name, "its name")
    return ColumnGuess("", "no such column")


def _ranked(field: str, names: Iterable[str]) -> list[str]:
    rank_of = {name: rank for rank, name in enumerate(KNOWN_NAMES[field])}
    return sorted(
        (name for name in names if normalize_name(name) in rank_of), key=lambda name: rank_of[normalize_name(name)]
    )


def _missing(column: pl.Series) -> float:
    empty = column.is_null() if column.dtype != pl.String else column.is_null() | (column == "")
    return _mean(empty)


def is_blank(column: pl.Series) -> bool:
    """True if all rows of a column are empty."""
    return _missing(column) == 1


def holds_several(name: str, column: pl.Series) -> bool:
    """True if a column named like items has a list separator in a third of its cells."""
    if column.dtype != pl.String or not re.search(r"item|product|article|goods", normalize_name(name)):
        return False
    return _mean(column.str.contains(r"\S\s*[,;|]\s*\S")) > 1 / 3


def _holds_stamps(column: pl.Series) -> bool:
    if column.dtype in (pl.Date, pl.Datetime) or column.dtype.is_integer() or column.dtype.is_float():
        return column.null_count() < len(column)
    if column.dtype != pl.String:
        return False
    texts = column.drop_nulls().head(SAMPLE_ROWS).str.strip_chars()
    texts = texts.filter(texts != "")
    matches = [
        texts.str.contains(pattern)
        for pattern in (NUMBER_PATTERN, COMPACT_PATTERN, YEAR_FIRST_PATTERN, YEAR_LAST_PATTERN)
    ]
    is_stamp = matches[0] | matches[1] | matches[2] | matches[3]
    return len(texts) > 0 and _mean(is_stamp) >= 0.9


def _groups(frame: pl.DataFrame, name: str, user: str) -> bool:
    """True if rows share values of a column and nearly all sharing rows have one user."""
    if not user:
        return False
    rows = frame.select(name, user).filter(pl.col(name).cast(pl.String).fill_null("") != "")
    values = rows[name].n_unique()
    if values <= 1 or values > 0.95 * len(rows):
        return False
    pairs = rows.select(pl.struct(name, user).n_unique()).item()
    return bool(pairs <= 1.05 * values + 1)


def _types(column: pl.Series) -> bool:
    """True if a column has few distinct values; a single value counts too."""
    return _missing(column) < 1 and column.n_unique() <= MAX_TYPES


def _unique(column: pl.Series) -> bool:
    return _missing(column) == 0 and column.n_unique() == len(column) > 1


def _numeric(column: pl.Series, separator: str) -> bool:
    if column.dtype.is_numeric():
        return True
    if column.dtype != pl.String:
        return False
    numbers, wrong, _ = read_numbers(column.head(SAMPLE_ROWS * 10), separator)
    return numbers.null_count() < len(numbers) and _mean(wrong) < 0.02


def _is_outcome(column: pl.Series, separator: str) -> bool:
    if not _numeric(column, separator):
        return False
    numbers = column if column.dtype.is_numeric() else read_numbers(column, separator)[0]
    return set(numbers.drop_nulls().unique().to_list()) == {0, 1}


def _mean(column: pl.Series) -> float:
    """Mean of numbers, or share of true values; 0 for an empty column."""
    mean = column.mean()
    assert mean is None or isinstance(mean, float)
    return mean or 0.0
