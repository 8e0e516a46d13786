"""Event type classes, detected from the whole words of a type's name.

Shops name events freely (``addToCart``, ``Product Removed``, ``order_refunded``). A name is split into words, and
only whole words match: a ``conversation`` is not a conversion, and a viewed cart is a page view. Words of other languages
are replaced by English ones first (`recloop.init.event_words`), and names of trackers have their own meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from recloop.init.event_words import TRACKER_MEANINGS, english_words


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


PURCHASE_WORDS: Final = _set(
    """
    purchase purchased purchases buy buys bought order orders ordered transaction transactions checkout paid
    payment pay sale sales sold conversion conversions converted subscribe subscribed subscription rent rented
    rental rentals book booked booking reserve reserved reservation
    """
)
WANTED_WORDS: Final = _set(
    """
    like likes liked favorite favorites favorited favourite favourites favourited fav favs wish wishes wishlist
    wished save saves saved upvote upvotes upvoted follow follows followed share shares shared cart carts basket
    baskets download downloads downloaded complete completes completed completion rating ratings rate rates
    rated review reviews reviewed bookmark bookmarks bookmarked recommend recommended
    """
)
VIEW_WORDS: Final = _set(
    """
    click clicks clicked view views viewed viewing detail details visit visits visited open opens opened read
    reads page pageview pageviews pv play plays played listen listens listened watch watches watched stream
    streams streamed browse browsed tap tapped
    """
)
DISLIKE_WORDS: Final = _set(
    """
    dislike dislikes disliked hide hides hid hidden downvote downvotes downvoted block blocks blocked mute muted
    uninterested thumbsdown
    """
)
SHOWN_WORDS: Final = _set(
    """
    impression impressions show shows shown exposure exposures expose exposed search searches searched skip
    skips skipped
    """
)
FAILURE_WORDS: Final = _set(
    """
    fail fails failed failure error errors abandon abandons abandoned abandonment decline declined reject
    rejected expired pending
    """
)
RETURN_WORDS: Final = _set(
    """
    return returns returned refund refunds refunded cancel cancels canceled cancelled cancellation cancelation
    chargeback chargebacks
    """
)
REMOVAL_WORDS: Final = _set(
    """
    remove removes removed delete deletes deleted undo undoes un
    """
)
NEGATIONS: Final = _set("not no don didn doesn")
NEGATED_WORDS: Final = _set("interested relevant interest like likes liked")
BEGIN_WORDS: Final = _set(
    """
    begin begins began start starts started initiate initiated initiates step
    """
)
NEUTRAL_WORDS: Final = _set(
    """
    product products item items goods partial partially full fully request requested complete completed the an a of
    """
)
"""Words that do not change the meaning of a return: ``Order Refunded``, ``return_requested``."""
FILLER_WORDS: Final = _set(
    """
    to from in of the a an my product products item items event add adds added put
    """
)
JOINED_WORDS: Final = {
    "addtocart": "add to cart", "add2cart": "add to cart", "addcart": "add to cart", "cartadd": "add to cart",
    "addtobasket": "add to basket", "removefromcart": "remove from cart", "removecart": "remove cart",
    "cartremove": "remove cart", "addtowishlist": "add to wishlist", "pageview": "page view", "productview": "product view",
    "itemview": "item view", "viewitem": "view item", "thumbup": "upvote", "thumbsup": "upvote", "thumbdown": "downvote",
    "thumbsdown": "downvote", "initiatecheckout": "initiate checkout", "viewcontent": "view content",
}  # fmt: skip
CART_NAMES: Final = {
    f"{thing} {verb}": words
    for thing in ("product", "item")
    for verb, words in (("added", ["add", "to", "cart"]), ("removed", ["remove", "from", "cart"]))
}
"""Segment's names of the cart: ``Product Added``, ``Product Removed``."""
SUFFIX_PATTERN: Final = re.compile(r"(?:ations?|ings?|ed|es|s|d|e)$")


def words_of(name: str) -> list[str]:
    """Lower-case words of a name, split at signs, digits and capitals (``addToCart``)."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    spaced = re.sub(r"\bthumbs?[\W_]*(up|down)\b", r"thumbs\1", spaced)
    words = re.findall(r"[^\W\d_]+2?[^\W\d_]*", spaced)
    parts = [part for joined in words for part in JOINED_WORDS.get(joined, joined).split()]
    translated = [word for part in parts for word in english_words(part)]
    return CART_NAMES.get(" ".join(translated), translated)


def meaning_of(name: str) -> Meaning:
    """Class of an event type by its name."""
    words = words_of(name)
    word_set = set(words)
    if tracker := TRACKER_MEANINGS.get(" ".join(words)):
        return Meaning(tracker)
    if _undone(words):
        return Meaning.UNDO
    if word_set & FAILURE_WORDS:
        return Meaning.SHOWN
    if word_set & VIEW_WORDS:
        return Meaning.SHOWN if word_set & (SHOWN_WORDS | {"list", "lists"}) else Meaning.WEAK
    if word_set & RETURN_WORDS:
        other_words = word_set - RETURN_WORDS - NEUTRAL_WORDS - PURCHASE_WORDS
        if other_words & (WANTED_WORDS | DISLIKE_WORDS):
            return Meaning.UNDO  # cancel_like
        return Meaning.RETURN if not other_words else Meaning.OTHER
    if word_set & DISLIKE_WORDS or (word_set & NEGATIONS and word_set & NEGATED_WORDS):
        return Meaning.NEGATIVE
    if words and words[0] in {"report", "reports", "reported"}:
        return Meaning.NEGATIVE
    if word_set & SHOWN_WORDS:
        return Meaning.SHOWN
    if word_set & PURCHASE_WORDS:
        not_bought_yet = BEGIN_WORDS | WANTED_WORDS - {"complete", "completed", "completion"}
        return Meaning.STRONG if word_set & not_bought_yet else Meaning.PURCHASE
    return Meaning.STRONG if word_set & WANTED_WORDS else Meaning.OTHER


def _undone(words: list[str]) -> bool:
    """True if the name is an undo: ``undislike``, ``undo_like``, ``remove_from_cart``."""
    if any(_plain_of(word) for word in words):
        return True
    action_words = [word for word in words if word not in FILLER_WORDS]
    return bool(set(words) & REMOVAL_WORDS) and not set(action_words) & (VIEW_WORDS | FAILURE_WORDS)


def _plain_of(word: str) -> str:
    """Word without ``un`` if that is a known word (``unsubscribe``), else ""."""
    plain_word = word[2:] if word.startswith("un") else ""
    known_words = WANTED_WORDS | PURCHASE_WORDS | DISLIKE_WORDS
    return plain_word if plain_word in known_words and word not in DISLIKE_WORDS else ""


def partner(name: str, meaning: Meaning, types: Iterable[str]) -> str:
    """Event type that a return or an undo reverses, or "".

    ``types`` are ordered by frequency. A return reverses a purchase. An undo reverses the type that its other
    words name. Without other words (``Product Removed``) it reverses the cart.
    """
    if meaning is Meaning.RETURN:
        purchases = [event_type for event_type in types if meaning_of(event_type) is Meaning.PURCHASE]
        stems = _core(word for word in words_of(name) if word not in RETURN_WORDS | NEUTRAL_WORDS)
        most_frequent = purchases[0] if purchases else ""
        return next((event_type for event_type in purchases if stems & _core(words_of(event_type))), most_frequent)
    stems = _core(_plain_of(word) or word for word in words_of(name) if word not in REMOVAL_WORDS)
    stems = stems or _core(["cart", "basket"])
    undoable = (Meaning.PURCHASE, Meaning.STRONG, Meaning.NEGATIVE)
    candidates = (event_type for event_type in types if meaning_of(event_type) in undoable)
    return next((event_type for event_type in candidates if stems & _core(words_of(event_type))), "")


def _core(words: Iterable[str]) -> set[str]:
    """Stems of the words that name the action."""
    return {SUFFIX_PATTERN.sub("", word) for word in words if word not in FILLER_WORDS}


def numeric_meanings(counts: Mapping[str, int]) -> dict[str, Meaning]:
    """Propose meanings of the event types 1 to 4; empty for other types.

    Data sets of Tianchi and Tmall number view, favorite, cart and purchase in this order. The proposal is unsure, because
    numbers have no meaning of their own; it is made only if 1 is the most frequent type.
    """
    codes = dict(zip("1234", (Meaning.WEAK, Meaning.STRONG, Meaning.STRONG, Meaning.PURCHASE), strict=True))
    if len(counts) < 3 or not {"1", "4"} <= set(counts) <= set(codes) or counts["1"] < max(counts.values()):
        return {}
    return {name: codes[name] for name in counts}
