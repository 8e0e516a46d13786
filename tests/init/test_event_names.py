"""Meanings of event type names by their whole words."""

from __future__ import annotations

import pytest

from recloop.init.event_names import Meaning, meaning_of, partner

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
