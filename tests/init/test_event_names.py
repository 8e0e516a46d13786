"""Meanings of event type names by their whole words."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.init.event_names import Meaning, meaning_of, numeric_meanings, partner
from recloop.init.events import guess_events
from recloop.init.order_status import order_status

NAMES = {
    Meaning.PURCHASE: "purchase buy transaction order checkout sale Order_Completed checkout_completed subscribe booked paid",
    Meaning.STRONG: "like add_to_cart addtocart addToCart AddToCart cart basket save rating review thumbs_up begin_checkout "
    "wishlist add_to_wishlist upvote follow download download_report Product-Added-to-Cart favourite",
    Meaning.WEAK: "view click page_view pv view_cart Cart-Viewed order_viewed facebook_click return_visit Returned-to-page report_view "
    "ProductViewed productview listen play detail_view Order-Details-Opened view_item",
    Meaning.SHOWN: "impression view_item_list Product-List-Viewed search skip abandoned_cart ecommerceAbandonedCart "
    "checkout_failed transaction_failed payment_declined shown view_search_results",
    Meaning.NEGATIVE: "dislike hide block report report_item not_interested thumbs_down downvote ThumbsDown reported",
    Meaning.RETURN: "return refund order_refunded Order-Cancelled cancel returned partial_refund chargeback",
    Meaning.UNDO: "undislike unlike undo_dislike undo-like remove_dislike remove_like unfollow unfavorite unsave unhide "
    "unblock remove_from_cart Product-Removed unsubscribe removefromcart undo",
    Meaning.OTHER: "generate_lead conversation_started interaction 1 4 foo bookworm_level understand",
}


@pytest.mark.parametrize(
    ("meaning", "name"), [(meaning, name) for meaning, names in NAMES.items() for name in names.split()]
)
def test_meaning_of_an_event_name_follows_its_whole_words(meaning: Meaning, name: str) -> None:
    assert meaning_of(name) is meaning
    assert meaning_of(name.replace("-", " ")) is meaning


TRACKERS = {
    Meaning.PURCHASE: "ecommerceOrder, Order Completed, buys, orders, trackTransaction",
    Meaning.STRONG: "Product Added, add_payment_info, add_shipping_info, Payment Info Entered, Checkout Started, carts, "
    "AddPaymentInfo, Product Added to Wishlist, fav",
    Meaning.WEAK: "select_item, Product Clicked, ViewContent, Cart Viewed, clicks",
    Meaning.SHOWN: "Products Searched, view_promotion, Promotion Viewed, Order Updated, user_engagement, change of sort order",
    Meaning.RETURN: "refund, Order Refunded, Order Cancelled, cancel_order",
    Meaning.UNDO: "Product Removed, Product Removed from Wishlist, cancel_like",
}
LANGUAGES = {
    Meaning.PURCHASE: "购买, Kauf, achat, compra, acquisto, aankoop, zakup, покупка, satın alma, 購入, Bestellung",
    Meaning.STRONG: "加购, 收藏, 加入购物车, In den Warenkorb, ajout au panier, me gusta, aggiunto al carrello, gefällt mir, "
    "toegevoegd aan winkelwagen, dodano do koszyka, добавление в корзину, sepete ekle, カート追加, お気に入り",
    Meaning.WEAK: "浏览, 点击, Produkt angesehen, vue produit, visualização, bekeken, wyświetlenie, просмотр, görüntüleme, 閲覧",
    Meaning.SHOWN: "曝光, Suche, recherche, búsqueda",
    Meaning.NEGATIVE: "不喜欢, gefällt nicht, no me gusta, дизлайк",
    Meaning.RETURN: "退货, 退款, Retoure, Bestellung storniert, devolución, rimborso, zwrot, возврат, iade, 返品",
    Meaning.UNDO: "取消收藏, Aus dem Warenkorb entfernt, rimosso dal carrello, удаление из корзины, sepetten çıkarıldı",
}


@pytest.mark.parametrize(
    ("meaning", "name"),
    [
        (meaning, name)
        for table in (TRACKERS, LANGUAGES)
        for meaning, names in table.items()
        for name in names.split(", ")
    ],
)
def test_meaning_of_a_tracker_or_foreign_name(meaning: Meaning, name: str) -> None:
    assert meaning_of(name) is meaning


@pytest.mark.parametrize(
    ("name", "types", "expected"),
    [
        ("Product Removed", ["Product Viewed", "Product Added"], "Product Added"),
        ("Aus dem Warenkorb entfernt", ["Kauf", "In den Warenkorb"], "In den Warenkorb"),
        ("取消收藏", ["购买", "收藏"], "收藏"),
        ("remove_from_wishlist", ["add_to_cart"], ""),
        ("refund", ["view_item", "purchase"], "purchase"),
    ],
)
def test_partner_in_other_languages_and_trackers(name: str, types: list[str], expected: str) -> None:
    assert partner(name, meaning_of(name), types) == expected


def test_numeric_meanings_are_proposed_for_the_codes_of_known_data_sets() -> None:
    assert numeric_meanings({"1": 90, "3": 6, "4": 4}) == {
        "1": Meaning.WEAK, "3": Meaning.STRONG, "4": Meaning.PURCHASE,
    }  # fmt: skip
    assert numeric_meanings({"1": 5, "4": 90}) == {}
    assert numeric_meanings({"0": 90, "1": 6}) == {}


@pytest.mark.parametrize(
    ("status", "texts"),
    [
        ("valid", "paid, Completed, wc-processing, partially_refunded, versendet, payé, 已付款, zrealizowane"),
        ("undone", "refunded, Cancelled, voided, storniert, remboursé, 已取消, отменён, iptal"),
        ("pending", "pending, on-hold, Unpaid, nicht bezahlt, pending_payment, 待付款"),
        ("unknown", "2, closed, , blue"),
    ],
)
def test_order_status_by_whole_words(status: str, texts: str) -> None:
    assert {order_status(text) for text in texts.split(", ")} == {status}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("undislike", "dislike"), ("unlike", "like"), ("remove_dislike", "dislike"), ("undo_like", "like"),
        ("remove_from_cart", "addtocart"), ("Product Removed", "addtocart"), ("unhide", "hide"), ("unfollow", "follow"),
        ("unbook", ""), ("return", "purchase"), ("order_cancelled", "purchase"), ("unblock", ""), ("unsave", "saved"),
    ],
)  # fmt: skip
def test_partner_of_an_undo_is_the_named_type(name: str, expected: str) -> None:
    types = ["view", "dislike", "like", "addtocart", "hide", "follow", "purchase", "unlike", "undislike", "saved"]
    assert partner(name, meaning_of(name), types) == expected


def test_guess_events_of_numeric_codes_says_where_they_are_from() -> None:
    types = ["1"] * 90 + ["2"] * 2 + ["3"] * 4 + ["4"] * 4
    columns = {"event_type": "behavior_type", "value": ""}
    events, why = guess_events(pl.DataFrame({"event_type": types}), columns)
    assert events.weights == {"4": 5.0, "2": 3.0, "3": 3.0, "1": 1.0}
    assert events.history == ("1",)
    assert why.startswith("codes of Tianchi data sets")
