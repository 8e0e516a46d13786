"""Google Merchant feeds: products of XML, and prices with a currency."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NoReturn
from xml.parsers import expat

from recloop.errors import UserError
from recloop.files import JsonTree

PRODUCT_TAGS: Final = frozenset({"item", "entry"})
PRICE_NAMES: Final = ("price", "sale_price")
PRICE: Final = re.compile(r"(\d+(?:\.\d+)?) ([A-Z]{3})")
MAX_TEXT_CHARACTERS: Final = 1_000_000
"""Longest text of one product field."""


def is_xml(file: Path) -> bool:
    """Return True if a file starts with a tag."""
    with file.open("rb") as opened:
        return opened.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def is_html(file: Path) -> bool:
    """Return True if a file starts as an HTML page."""
    with file.open("rb") as opened:
        return opened.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def read_products(file: Path) -> list[JsonTree]:
    """Read the products of an XML feed as objects.

    Tags lose their namespace: ``g:price`` is ``price``. A tag that is repeated gives a list. Tags with inner tags, such as
    ``g:shipping``, are left out.

    Raises:
        UserError: the file is not XML, is cut, has a document type (HTML, entities), or has no product.
    """
    reader = _Products(file)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.refuse_document_type
    try:
        with file.open("rb") as opened:
            parser.ParseFile(opened)
    except expat.ExpatError as error:
        raise UserError("FILE", file.name, f"a complete XML feed ({error})", "download the feed again") from None
    if not reader.products:
        raise UserError(
            "FILE", file.name, "an XML feed with <item> or <entry> products, found none", "pass a product feed"
        )
    return reader.products


class _Products:
    """Handlers that collect the products of a feed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.products: list[JsonTree] = []
        self._path: list[str] = []  # tags from the product to the present one
        self._product: dict[str, list[str]] | None = None
        self._text: list[str] = []
        self._size = 0
        self._has_inner_tags = False

    def refuse_document_type(self, name: str, *_: Any) -> NoReturn:
        raise UserError(
            "FILE",
            self._file.name,
            f"an XML feed without a document type, found <!DOCTYPE {name}>",
            "pass a product feed",
        )

    def start(self, tag: str, _: Any) -> None:
        name = tag.rpartition(" ")[2]
        if self._product is None:
            if name in PRODUCT_TAGS:
                self._product = {}
            return
        self._has_inner_tags = bool(self._path)
        self._path.append(name)
        self._text.clear()
        self._size = 0

    def text(self, text: str) -> None:
        if not self._path:
            return
        self._size += len(text)
        if self._size > MAX_TEXT_CHARACTERS:
            raise UserError(
                "FILE",
                self._file.name,
                f"at most {MAX_TEXT_CHARACTERS:,} characters in <{self._path[-1]}>",
                "cut the text",
            )
        self._text.append(text)

    def end(self, _: str) -> None:
        if self._product is None:
            return
        if not self._path:
            self.products.append({name: texts if len(texts) > 1 else texts[0] for name, texts in self._product.items()})
            self._product = None
            return
        name = self._path.pop()
        value = "".join(self._text).strip()
        if not self._path and not self._has_inner_tags and value:
            self._product.setdefault(name, []).append(value)
        if not self._path:
            self._has_inner_tags = False


def with_numeric_prices(attributes: JsonTree) -> JsonTree:
    """Split prices such as ``15.00 USD`` into the number and ``price_currency``."""
    changed = dict(attributes)
    for name in PRICE_NAMES:
        value = attributes.get(name)
        if isinstance(value, str) and (match := PRICE.fullmatch(value)):
            changed[name] = float(match[1])
            changed[f"{name}_currency"] = match[2]
    return changed
