"""Event type classes, detected from the whole words of a type's name.

Shops name events freely (``addToCart``, ``Product Removed``, ``order_refunded``). A name is split into words, and
only whole words match: a ``conversation`` is not a conversion, and a viewed cart is a page view.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Meaning(StrEnum):
    """Class of an event type.

    PURCHASE, STRONG: bought, or clearly wanted. WEAK: viewed. SHOWN: shown, searched, failed. NEGATIVE: rejected.
    RETURN: returns a purchase. UNDO: undoes an earlier event. OTHER: unknown words.
    """

    PURCHASE = "purchase"
    STRONG = "strong"
    WEAK = "weak"
    SHOWN = "shown"
    NEGATIVE = "negative"
    RETURN = "return"
    UNDO = "undo"
    OTHER = "other"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


PURCHASES: Final = _set(
    """
    purchase purchased purchases buy buys bought order orders ordered transaction transactions checkout paid
    payment pay sale sales sold conversion conversions converted subscribe subscribed subscription rent rented
    rental rentals book booked booking reserve reserved reservation
    """
)
WANTS: Final = _set(
    """
    like likes liked favorite favorites favorited favourite favourites favourited fav favs wish wishes wishlist
    wished save saves saved upvote upvotes upvoted follow follows followed share shares shared cart carts basket
    baskets download downloads downloaded complete completes completed completion rating ratings rate rates
    rated review reviews reviewed bookmark bookmarks bookmarked recommend recommended
    """
)
LOOKS: Final = _set(
    """
    click clicks clicked view views viewed viewing detail details visit visits visited open opens opened read
    reads page pageview pageviews pv play plays played listen listens listened watch watches watched stream
    streams streamed browse browsed tap tapped
    """
)
DISLIKES: Final = _set(
    """
    dislike dislikes disliked hide hides hid hidden downvote downvotes downvoted block blocks blocked mute muted
    uninterested thumbsdown
    """
)
SEEN: Final = _set(
    """
    impression impressions show shows shown exposure exposures expose exposed search searches searched skip
    skips skipped
    """
)
FAILS: Final = _set(
    """
    fail fails failed failure error errors abandon abandons abandoned abandonment decline declined reject
    rejected expired pending
    """
)
RETURNS: Final = _set(
    """
    return returns returned refund refunds refunded cancel cancels canceled cancelled cancellation cancelation
    chargeback chargebacks
    """
)
REMOVES: Final = _set(
    """
    remove removes removed delete deletes deleted undo undoes un
    """
)
BEGINS: Final = _set(
    """
    begin begins began start starts started initiate initiated initiates step
    """
)
GOODS: Final = _set(
    """
    product products item items partial partially full fully request requested complete completed the an a of
    """
)
"""Words that do not change the meaning of a return: ``Order Refunded``, ``return_requested``."""
FILLERS: Final = _set(
    """
    to from in of the a an my product products item items event add adds added put
    """
)
JOINED: Final = {
    "addtocart": "add to cart", "add2cart": "add to cart", "addcart": "add to cart", "cartadd": "add to cart",
    "addtobasket": "add to basket", "removefromcart": "remove from cart", "removecart": "remove cart",
    "cartremove": "remove cart", "addtowishlist": "add to wishlist", "pageview": "page view", "productview": "product view",
    "itemview": "item view", "viewitem": "view item", "thumbup": "upvote", "thumbsup": "upvote", "thumbdown": "downvote",
    "thumbsdown": "downvote", "initiatecheckout": "initiate checkout", "viewcontent": "view content",
}  # fmt: skip
STEM: Final = re.compile(r"(?:ations?|ings?|ed|es|s|d|e)$")


def words_of(name: str) -> list[str]:
    """Lower-case words of a name, split at signs, digits and capitals (``addToCart``)."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    spaced = re.sub(r"\bthumbs?[\W_]*(up|down)\b", r"thumbs\1", spaced)
    words = re.findall(r"[^\W\d_]+2?[^\W\d_]*", spaced)
    return [word for joined in words for word in JOINED.get(joined, joined).split()]


def meaning_of(name: str) -> Meaning:
    """Class of an event type by its name."""
    words = words_of(name)
    have = set(words)
    if _undone(words):
        return Meaning.UNDO
    if have & FAILS:
        return Meaning.SHOWN
    if have & LOOKS:
        return Meaning.SHOWN if have & (SEEN | {"list", "lists"}) else Meaning.WEAK
    if have & RETURNS:
        beside = have - RETURNS - GOODS - PURCHASES
        return Meaning.RETURN if not beside else Meaning.OTHER
    if have & DISLIKES or ("not" in have and have & {"interested", "relevant", "interest"}):
        return Meaning.NEGATIVE
    if words and words[0] in {"report", "reports", "reported"}:
        return Meaning.NEGATIVE
    if have & SEEN:
        return Meaning.SHOWN
    if have & PURCHASES:
        return Meaning.STRONG if have & (BEGINS | WANTS - {"complete", "completed", "completion"}) else Meaning.PURCHASE
    return Meaning.STRONG if have & WANTS else Meaning.OTHER


def _undone(words: list[str]) -> bool:
    """True if the name is an undo: ``undislike``, ``undo_like``, ``remove_from_cart``."""
    if any(_plain_of(word) for word in words):
        return True
    rest = [word for word in words if word not in FILLERS]
    return bool(set(words) & REMOVES) and not set(rest) & (LOOKS | FAILS)


def _plain_of(word: str) -> str:
    """Word without ``un`` if that is a known word (``unsubscribe``), else ""."""
    rest = word[2:] if word.startswith("un") else ""
    return rest if rest in WANTS | PURCHASES | DISLIKES and word not in DISLIKES else ""


def partner(name: str, meaning: Meaning, types: Iterable[str]) -> str:
    """Event type that a return or an undo reverses, or "".

    ``types`` are ordered by frequency. A return reverses a purchase. An undo reverses the type that its other
    words name. Without other words (``Product Removed``) it reverses the cart.
    """
    if meaning is Meaning.RETURN:
        bought = [kind for kind in types if meaning_of(kind) is Meaning.PURCHASE]
        core = _core(word for word in words_of(name) if word not in RETURNS | GOODS)
        return next((kind for kind in bought if core & _core(words_of(kind))), bought[0] if bought else "")
    core = _core(_plain_of(word) or word for word in words_of(name) if word not in REMOVES)
    core = core or _core(["cart", "basket"])
    done = (Meaning.PURCHASE, Meaning.STRONG, Meaning.NEGATIVE)
    return next((kind for kind in types if meaning_of(kind) in done and core & _core(words_of(kind))), "")


def _core(words: Iterable[str]) -> set[str]:
    """Stems of the words that name the action."""
    return {STEM.sub("", word) for word in words if word not in FILLERS}
