"""Guess ``[catalog]``: columns of an items file with a meaning of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from recloop.config import Catalog
from recloop.init.log_input import Guesses
from recloop.init.names import normalize_name

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "price": ("price", "unitprice", "saleprice", "listprice"),
    "availability": (
        "availability",
        "availabilitystatus",
        "stockstatus",
        "instock",
        "isavailable",
        "available",
        "stock",
    ),
    "published": ("availabilitydate", "availablefrom", "publishedat", "publishdate", "published"),
    "expires": ("expirationdate", "expiresat", "expires", "expirydate", "expiry", "validuntil"),
    "image": ("imagelink", "imageurl", "image", "picture", "pictureurl", "thumbnail"),
    "url": ("link", "url", "producturl", "itemurl"),
    "group": ("itemgroupid", "parentid", "parentsku", "variantgroup", "variantgroupid", "productgroupid"),
}
"""Names of columns without signs, by key of ``[catalog]``; the first one that the file has counts."""
REASONS: Final[Mapping[str, str]] = {
    "price": "properties=price adds it to a list",
    "availability": "items that are sold out are in no list",
    "published": "items are listed from this time on",
    "expires": "items are listed until this time",
    "image": "properties=image adds it to a list",
    "url": "properties=url adds it to a list",
    "group": "variants of one product: a list holds one of them",
}


def guess_catalog(columns: Sequence[str], guesses: Guesses) -> dict[str, str]:
    """Return the keys of ``[catalog]`` whose columns differ from the defaults.

    Args:
        columns: Columns of the items file.
    """
    by_name = {normalize_name(column): column for column in reversed(columns)}
    chosen = {}
    for key, names in NAMES.items():
        column = next((by_name[name] for name in names if name in by_name), None)
        if column is None:
            continue
        guesses.say(f"catalog.{key}", column, REASONS[key], 0.9)
        if column != getattr(Catalog(), key):
            chosen[key] = column
    return chosen
