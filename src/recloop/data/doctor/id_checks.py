"""Checks of ids: charges, words for a missing user, joins with other tables.

The functions take frames with columns of EVENT_SCHEMA. ``init`` calls them on a sample, ``doctor`` on the whole log.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from recloop.records import GROUP_ID, ITEM_ID, USER_ID, VALUE

MISSING_WORDS: Final = frozenset(
    (
        *["na", "n/a", "#n/a", "<na>", "nan", "null", "(null)", "[null]", "\\n", "none", "(none)", "nil", "undefined", "unknown", "(unknown)", "unbekannt"],
        *["guest", "gast", "invité", "invitado", "anonymous", "anonym", "anonyme", "-", "--", "?", "未知", "匿名", "游客"],
        "not set", "(not set)", "not provided", "(not provided)", "guest user", "00000000-0000-0000-0000-000000000000",
    )
)  # fmt: skip
"""Texts, in lower case, that exports write for a user they do not know."""
MISSING_NUMBERS: Final = frozenset({"0", "0.0", "-1", "-1.0"})
"""Numbers that mean a missing user if they dominate the log."""
DOMINANT_RATIO: Final = 3  # an id with this many times the rows of the next one dominates
MIN_DOMINANT_SHARE: Final = 0.01  # of all rows
CHARGE_WORDS: Final = (
    "postage", "shipping", "carriage", "delivery", "discount", "surcharge", "voucher", "coupon", "handling", "bank",
    "charges", "charge", "fees", "fee", "tip", "deposit", "refund", "adjustment", "giftcard", "versandkosten", "versand",
    "porto", "rabatt", "gutschein", "zuschlag", "pfand", "trinkgeld", "livraison", "remise", "frais", "spedizione",
    "sconto", "envio", "descuento", "运费", "邮费", "优惠券",
)  # fmt: skip
MIN_ITEMS: Final = 20  # a log with fewer items has no usual form of ids
USUAL_SHARE: Final = 0.8  # of items share the usual form of ids
CODE: Final = r"^\pL{0,4}[-_]?\d[\w.-]*$"
"""Usual form of article numbers: digits after at most four letters."""
MAX_UNUSUAL_ITEMS: Final = 10
MAX_UNUSUAL_SHARE: Final = 0.05  # of items; a form that more items have is not an exception
MIN_BASKET_SHARE: Final = 0.1
MIN_PRICES: Final = 20  # distinct prices of an item whose price is judged
MIN_PRICES_PER_ROW: Final = 0.2
ODD_PRICE_RATIO: Final = 5  # distinct prices per row of an item, divided by those of all items


@dataclass(frozen=True)
class NonProduct:
    """Item that is probably postage, a discount or another charge.

    Attributes:
        rows: Rows with this item.
        share: Share of baskets with it; without groups, of users.
        reasons: Facts that speak against a product.
        proposed: True if the id or a negative price speaks, or two other facts do; False: look at it first.
    """

    item_id: str
    rows: int
    share: float
    reasons: tuple[str, ...]
    proposed: bool

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return "; ".join(self.reasons)


def non_products(frame: pl.DataFrame, catalog: Collection[str] = ()) -> tuple[NonProduct, ...]:
    """Find items that are probably not products, most rows first.

    Args:
        frame: Rows with item_id and user_id; group_id and value (a price) are used if present.
        catalog: Ids of the shop's items file; the unusual form of such an id is not a reason.
    """
    facts = _item_facts(frame)
    if not len(facts):
        return ()
    strong = [*_id_checks(facts[ITEM_ID], facts["rows"], catalog), *_negative_price(facts)]
    checks = [*strong, *_odd_price(facts), *_many_baskets(facts)]
    flags = pl.DataFrame(dict(checks))
    strong_reasons = {reason for reason, _ in strong}
    found = []
    for item, flag in zip(facts.iter_rows(named=True), flags.iter_rows(named=True), strict=True):
        reasons = tuple(reason for reason, applies in flag.items() if applies)
        if reasons:
            proposed = len(reasons) > 1 or reasons[0] in strong_reasons
            found.append(NonProduct(item[ITEM_ID], item["rows"], round(item["share"], 4), reasons, proposed))
    return tuple(found)


def _item_facts(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows, share of baskets and prices of each item, most rows first."""
    grouped = GROUP_ID in frame.columns and frame[GROUP_ID].null_count() < len(frame)
    basket = GROUP_ID if grouped else USER_ID
    price = pl.col(VALUE) if VALUE in frame.columns else pl.lit(None, dtype=pl.Float64)
    n_baskets = max(1, frame[basket].n_unique())
    return (
        frame.filter(pl.col(ITEM_ID).is_not_null())
        .select(ITEM_ID, pl.col(basket).alias("basket"), price.cast(pl.Float64).alias("price"))
        .group_by(ITEM_ID)
        .agg(
            pl.len().alias("rows"),
            (pl.col("basket").n_unique() / n_baskets).alias("share"),
            pl.col("price").drop_nulls().n_unique().alias("prices"),
            pl.col("price").median().alias("median"),
        )
        .sort(["rows", ITEM_ID], descending=[True, False])
    )


def _id_checks(ids: pl.Series, rows: pl.Series, catalog: Collection[str]) -> list[tuple[str, pl.Series]]:
    """Reason and (items,) mask of each check of the id's form."""
    charge = "|".join(CHARGE_WORDS)
    letters = ids.str.to_lowercase().str.replace_all(r"[\d\W_]", "")
    is_charge = letters.str.contains(f"^({charge})+$")
    checks = [("the id names a charge", is_charge)]
    if len(ids) < MIN_ITEMS:
        return checks
    digits = ids.str.contains(r"\d")
    codes = ids.str.contains(CODE)
    is_listed = ids.is_in(list(catalog))
    if codes.sum() >= USUAL_SHARE * len(ids):
        families = ids.filter(digits).str.extract(r"^(\pL{3})").drop_nulls().unique()
        in_family = ids.str.slice(0, 3).is_in(families.implode())
        checks += _exceptions("an id of letters where the others have digits", ~digits & ~in_family & ~is_listed)
    if ids.str.contains(r"^\d").sum() >= USUAL_SHARE * len(ids):
        usual_length = int(ids.str.len_chars().median() or 0)  # type: ignore[arg-type]
        is_short = digits & ids.str.contains(r"^\pL") & (ids.str.len_chars() <= usual_length / 2) & ~is_listed
        checks += _exceptions("a letter and far fewer digits than the others", is_short)
    leads = rows >= DOMINANT_RATIO * int(rows[1])
    is_zero = ids.str.contains(r"^0+(\.0)?$")
    counted_from_zero = bool(ids.is_in(["1", "1.0"]).any())
    checks.append(("the id is 0", is_zero & leads if counted_from_zero else is_zero))
    return checks


def _exceptions(reason: str, mask: pl.Series) -> list[tuple[str, pl.Series]]:
    """Return the check if few items have the form."""
    return [(reason, mask)] if mask.sum() <= max(MAX_UNUSUAL_ITEMS, MAX_UNUSUAL_SHARE * len(mask)) else []


def _has_prices(facts: pl.DataFrame) -> bool:
    """Values with many levels are prices; ratings and flags have few."""
    return facts["median"].drop_nulls().n_unique() >= MIN_ITEMS


def _negative_price(facts: pl.DataFrame) -> list[tuple[str, pl.Series]]:
    if not _has_prices(facts):
        return []
    return _exceptions("its price is below 0", (facts["median"] < 0).fill_null(value=False))


def _odd_price(facts: pl.DataFrame) -> list[tuple[str, pl.Series]]:
    often = facts.filter(pl.col("rows") >= MIN_PRICES)
    if not _has_prices(facts) or len(often) < MIN_ITEMS:
        return []
    usual = often.select((pl.col("prices") / pl.col("rows")).median()).item()
    per_row = facts["prices"] / facts["rows"]
    is_odd = (facts["prices"] >= MIN_PRICES) & (per_row >= max(MIN_PRICES_PER_ROW, ODD_PRICE_RATIO * usual))
    few = is_odd.sum() <= max(3, 0.01 * len(often))  # goods by weight have many prices too
    return [("a new price in many of its rows", is_odd)] if few else []


def _many_baskets(facts: pl.DataFrame) -> list[tuple[str, pl.Series]]:
    if len(facts) < MIN_ITEMS:
        return []
    next_share = float(facts["share"].sort(descending=True)[1])
    limit = max(MIN_BASKET_SHARE, DOMINANT_RATIO * next_share)
    return [("in far more baskets than the next item", facts["share"] >= limit)]


def missing_words(ids: pl.Series, known: Collection[str] = ()) -> dict[str, int]:
    """Rows of each text that means a missing id, most rows first.

    Args:
        ids: (n,) texts with nulls.
        known: Ids of the users or items file; they are ids whatever their text.
    """
    counts = ids.drop_nulls().alias("id").value_counts().sort(["count", "id"], descending=[True, False])
    words = counts["id"].str.strip_chars().str.to_lowercase()
    n_next = counts.filter(~words.is_in(list(MISSING_NUMBERS | MISSING_WORDS)))["count"].max()
    limit = max(DOMINANT_RATIO * (n_next if isinstance(n_next, int) else 0), MIN_DOMINANT_SHARE * len(ids))
    is_missing = words.is_in(list(MISSING_WORDS)) | (words.is_in(list(MISSING_NUMBERS)) & (counts["count"] >= limit))
    found = counts.filter(is_missing & ~counts["id"].is_in(list(known)))
    return {str(word): int(rows) for word, rows in found.iter_rows()}


@dataclass(frozen=True)
class JoinShare:
    """Share of the log's ids that are in a table, as written and in other forms.

    Attributes:
        share: Share as the ids are written, 0 to 1.
        ids: Distinct ids of the log.
        forms: Share in each form that both sides are brought to: ``integer`` (without ``.0``), ``zeros:N``, ``strip``
            and ``casefold``.
    """

    share: float
    ids: int
    forms: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """Form that joins clearly more ids than the written one; empty without one."""
        name, share = max(self.forms.items(), key=lambda form: form[1], default=("", 0.0))
        return name if share >= self.share + 0.05 else ""


FORM_CAUSES: Final = {
    "integer": "one side has .0 at the end",
    "zeros": "one side lost its leading zeros",
    "strip": "one side has blanks around the ids",
    "casefold": "the sides differ in upper and lower case",
}


def join_share(log_ids: pl.Series, table_ids: pl.Series) -> JoinShare:
    """Return the share of the log's ids that are in a table."""
    log, table = log_ids.drop_nulls().unique(), table_ids.drop_nulls().unique()
    if not len(log):
        return JoinShare(1.0, 0)
    share = _share_in(log, table)
    forms: dict[str, float] = {}
    if share < 1:
        lengths = pl.concat([log, table]).filter(pl.concat([log, table]).str.contains(r"^\d+$")).str.len_chars()
        width = int(str(lengths.max() or 1))
        forms = {
            "integer": _share_in(_without_fraction(log), _without_fraction(table)),
            f"zeros:{width}": _share_in(_padded(log, width), _padded(table, width)),
            "strip": _share_in(log.str.strip_chars(), table.str.strip_chars()),
            "casefold": _share_in(log.str.to_lowercase(), table.str.to_lowercase()),
        }
    return JoinShare(round(share, 4), len(log), {name: round(value, 4) for name, value in forms.items()})


def _share_in(ids: pl.Series, table: pl.Series) -> float:
    return float(ids.is_in(table.implode()).sum() / len(ids))


def _without_fraction(ids: pl.Series) -> pl.Series:
    return ids.str.replace(r"^(-?\d+)\.0+$", "$1")


def _padded(ids: pl.Series, width: int) -> pl.Series:
    is_number = ids.str.contains(r"^\d+$")
    return pl.select(pl.when(is_number).then(ids.str.zfill(width)).otherwise(ids)).to_series()


def spreadsheet_ids(ids: pl.Series) -> dict[str, int]:
    """Rows of each id in scientific notation, such as ``1.23457E+12``."""
    cut = ids.drop_nulls().alias("id")
    counts = cut.filter(cut.str.contains(r"^\d[.,]?\d*E\+\d+$")).value_counts().sort(["count", "id"], descending=True)
    return {str(text): int(rows) for text, rows in counts.iter_rows()}
