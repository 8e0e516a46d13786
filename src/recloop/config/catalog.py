"""Table ``[catalog]``: attributes of items with a meaning of their own."""

from __future__ import annotations

from recloop.config.section import Section


class Catalog(Section):
    """Attributes of items with a meaning of their own.

    The defaults are the names of a Google Merchant feed.
    """

    price: str = "price"
    """Attribute that `properties=price` adds to a list."""
    availability: str = "availability"
    """Attribute that is false, 0 or a text such as `out_of_stock` for items that no list shows; empty: none."""
    published: str = "availability_date"
    """Attribute with the time from which lists show an item; empty: none."""
    expires: str = "expiration_date"
    """Attribute with the time from which lists no longer show an item; empty: none."""
    image: str = "image_link"
    """Attribute that `properties=image` adds to a list."""
    url: str = "link"
    """Attribute that `properties=url` adds to a list."""
    group: str = "item_group_id"
    """Attribute that variants of one product share; a list holds one of them; empty: none."""

    @property
    def aliases(self) -> dict[str, str]:
        """Attributes that `properties` may name by their keys."""
        return {"price": self.price, "image": self.image, "url": self.url}
