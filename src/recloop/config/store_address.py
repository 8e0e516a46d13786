"""Addresses of stores, shown without their passwords."""

from __future__ import annotations

import re
from typing import Final

POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")
POSTGRES_FORM: Final = "postgresql://USER@HOST:PORT/DATABASE"
POSTGRES_STORES: Final = ("stores.log", "stores.control")
"""Stores that a PostgreSQL database can keep."""
USER_PASSWORD: Final = re.compile(r"^(\w+://[^:@/?#]*):.*@")
"""Password before the last @, whatever characters it has."""
QUERY_PASSWORD: Final = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)


def is_postgres(address: str) -> bool:
    """Return True for the address of a PostgreSQL database."""
    return address.startswith(POSTGRES_SCHEMES)


def without_password(address: str) -> str:
    """Return an address for messages, pages and files: without its passwords."""
    if "://" not in address or address.startswith("sqlite:"):
        return address
    return QUERY_PASSWORD.sub(r"\1***", USER_PASSWORD.sub(r"\1@", address))
