"""Scores of column names: whole words in many languages that name a field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from recloop.records import EVENT_ID, EVENT_TYPE, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KNOWN_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    USER_ID: (
        "userid", "user", "customerid", "customer", "custid", "customernumber", "customerno", "householdid", "household",
        "memberid", "member", "clientid", "client", "accountid", "account", "visitorid", "visitor", "shopperid", "shopper",
        "buyerid", "buyer", "reviewerid", "readerid", "subscriberid", "uid", "kundennummer", "kundenid", "kunde",
        "用户id", "用户", "会员id", "会员", "username", "email", "customeremail", "emailaddress", "userpseudoid",
        "anonymousid", "deviceid", "cookieid", "cookie", "sessionid", "session",
    ),
    ITEM_ID: (
        "itemid", "item", "productid", "product", "sku", "skuid", "stockcode", "articleid", "article", "artikelnummer",
        "articlenumber", "artikel", "goodsid", "goods", "parentasin", "asin", "isbn", "movieid", "movie", "trackid",
        "track", "songid", "song", "bookid", "book", "videoid", "video", "newsid", "contentid", "content", "offerid",
        "adid", "businessid", "gameid", "商品id", "商品", "iid", "aid", "pid", "productsku", "itemsku",
    ),
    TIMESTAMP: (
        "timestamp", "transactiontimestamp", "eventtime", "eventtimestamp", "datetime", "ts", "time", "createdat",
        "occurredat", "invoicedate", "orderdate", "purchasedate", "purchasetime", "orderedat", "transactiondate",
        "transactiontime", "ordertime", "unixreviewtime", "reviewtime", "eventdate", "date", "tdat", "day", "zeit",
        "zeitstempel", "datum", "bestelldatum", "时间", "日期",
    ),
    GROUP_ID: (
        "groupid", "basketid", "basket", "invoiceid", "invoiceno", "invoicenumber", "invoice", "orderid", "orderno",
        "ordernumber", "order", "transactionid", "receiptid", "receipt", "ticketid", "cartid", "bonid", "bon",
        "bestellnummer", "rechnung", "订单id", "订单", "impressionid", "pageviewid", "slateid",
    ),
    EVENT_TYPE: (
        "eventtype", "eventname", "event", "action", "actiontype", "behavior", "behaviour", "behaviortype",
        "behaviourtype", "interactiontype", "activity", "type", "verb", "行为", "行为类型",
    ),
    VALUE: (
        "value", "rating", "stars", "score", "overall", "salesvalue", "price", "unitprice", "lineitemprice", "itemprice",
        "preis", "amount", "revenue", "sales", "total", "betrag",
    ),
    QUANTITY: ("quantity", "qty", "units", "qtyordered", "lineitemquantity", "menge", "anzahl", "count", "数量"),
    EVENT_ID: ("eventid", "eventuuid", "uuid", "messageid", "id", "rowid", "transactionid"),
}  # fmt: skip
"""Known names by our column, most likely first, in `normalize_name` form."""

FIELD_WORDS: Final[Mapping[str, frozenset[str]]] = {
    USER_ID: _words(
        "user users customer customers client member visitor shopper buyer household reviewer reader "
        "subscriber account person player uid email mail username login anonymous pseudo kunde kunden kundin "
        "benutzer nutzer mitglied utilisateur acheteur cliente usuario comprador utente klant gebruiker "
        "klient uzytkownik użytkownik пользователь клиент покупатель musteri müşteri kullanici kullanıcı 顧客 "
        "会員 ユーザー 用户 会员 买家"
    ),
    ITEM_ID: _words(
        "item items product products article sku stock goods asin isbn movie film track song book video news "
        "content offer ad business recipe game listing artikel produkt ware produit produits producto "
        "prodotto produto товар ürün urun 商品 货品 品番 plu ean gtin"
    ),
    TIMESTAMP: _words(
        "timestamp time date datetime at when ts created ordered visited zeit datum zeitpunkt fecha hora data "
        "heure tijd дата время tarih zaman 时间 日期 日時 下单"
    ),
    GROUP_ID: _words(
        "order orders basket invoice receipt transaction ticket cart bon beleg bestellung bestell rechnung "
        "commande facture pedido ordine ordre zamowienie заказ чек siparis sipariş fatura 订单 注文"
    ),
    EVENT_TYPE: _words(
        "event events action behavior behaviour activity interaction verb ereignis aktion accion acción "
        "evento evenement действие событие islem işlem 行为 事件"
    ),
    VALUE: _words(
        "rating stars score price amount revenue total sales preis betrag bewertung prix precio prezzo preço "
        "цена fiyat 价格 单价 售价 评分 金额"
    ),
    QUANTITY: _words(
        "quantity qty units menge anzahl pieces pcs stück stueck stk cantidad quantité quantite quantita "
        "aantal количество adet 数量"
    ),
    EVENT_ID: _words("uuid guid"),
}
"""Whole words of a column name by field."""

ID_WORDS: Final = _words("id ids no nr num number key code ref uuid hash nummer numero número sku 编号 номер kodu")
OTHER_WORDS: Final[Mapping[str, frozenset[str]]] = {
    USER_ID: _words(
        "type count price agent property properties first last creation birth age group segment registered "
        "language rating score total accepts marketing number-of new sum phone city zip country street "
        "company tax session"
    ),
    ITEM_ID: _words(
        "type category categories price name title count quantity qty total brand weight tax discount "
        "description desc color colour size url image group sold status vendor requires taxable fulfillment "
        "compare creation text date"
    ),
    TIMESTAMP: _words(
        "updated update modified shipped shipping delivered delivery cleared release released birth birthday "
        "cancelled canceled paid refunded fulfilled expires expiry first touch original received sent server "
        "processed since session zone format days previous estimated format intraday bundle"
    ),
    GROUP_ID: _words(
        "status state type date time name count price total value amount dow hour number-of email first sequence"
    ),
    EVENT_TYPE: _words("date time timestamp id bundle value count server params parameter index"),
    VALUE: _words("count number currency compare tax discount shipping name id date type average avg mean code rows"),
    QUANTITY: _words("refunded canceled cancelled shipped invoiced inventory stock available sold"),
    EVENT_ID: frozenset(),
}
"""Words that say that a column is about something else."""

ORDER_NAMES: Final = (
    "pos",
    "position",
    "seq",
    "sequence",
    "order",
    "ordernumber",
    "rank",
    "step",
    "index",
    "sessionposition",
)
"""Columns with the number of a user's row, which replace a missing time."""

OUTCOME_NAMES: Final = ("click", "clicked", "label", "purchased", "bought", "target", "conversion", "converted")
"""Columns of 0 and 1 with the outcome of an impression."""

TITLE_NAMES: Final = (
    "name", "title", "productname", "itemname", "producttitle", "movietitle", "description", "productdescription",
    "articlename", "prodname", "lineitemname", "label", "bezeichnung", "artikelname", "商品名称", "名称", "标题",
)  # fmt: skip
"""Known names of display columns."""

FUTURE_WORDS: Final = _words("sold sales avg average popularity reviews ratings views clicks")
"""Words of columns that count events after a row, such as ``units_sold`` or ``avg_rating``."""

DEVICE_WORDS: Final = _words("anonymous pseudo device cookie visitor browser session fingerprint")
"""Words of ids that are known before a login."""


def normalize_name(name: str) -> str:
    """Lower-case name without spaces and signs.

    ``Customer ID`` equals ``customer_id``.
    """
    return re.sub(r"[\W_]+", "", name.lower())


def leaf(name: str) -> str:
    """Last key of a JSON path: ``item_id`` for ``items[].item_id``."""
    return name.rpartition(".")[2].removesuffix("[]") or name


def words_of(name: str) -> tuple[str, ...]:
    """Lower-case words of a name: ``Lineitem sku``, ``qty_ordered``, ``customerId``."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return tuple(word.lower() for word in re.findall(r"[^\W_]+", spaced))


def name_score(field: str, name: str) -> float:
    """Score from 0 to 1 of a column name for a field; a known name has at least 0.7."""
    normalized = {normalize_name(name), normalize_name(leaf(name))}
    known = KNOWN_NAMES[field]
    ranks = [rank for rank, text in enumerate(known) if text in normalized]
    if ranks:
        return 1.0 - 0.3 * min(ranks) / len(known)
    found = set(words_of(leaf(name)))
    if not found & FIELD_WORDS[field] and not any(_contains_cjk_word(word, FIELD_WORDS[field]) for word in found):
        return 0.0
    if found & OTHER_WORDS[field]:
        return 0.1
    if field in (USER_ID, ITEM_ID, GROUP_ID) and not found & ID_WORDS:
        return 0.5
    return 0.65


def ranked(field: str, names: Iterable[str]) -> list[str]:
    """Names with a score above 0.3, best first; equal scores in the given order."""
    scores = {name: name_score(field, name) for name in names}
    return sorted((name for name in scores if scores[name] > 0.3), key=lambda name: -scores[name])


def _contains_cjk_word(word: str, words: Iterable[str]) -> bool:
    return bool(re.search(r"[\u3040-\u9fff]", word)) and any(part in word for part in words if ord(part[0]) > 0x3000)
