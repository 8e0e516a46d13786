"""Times such as ``90s``, ``10m``, ``1h`` and ``2d``."""

from __future__ import annotations

import re

from recloop.errors import UserError


def seconds(key: str, text: str) -> float:
    """``90s``, ``10m``, ``1h``, ``2d`` in seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if not found or float(found[1]) == 0:
        fix = f"{key} 10m" if key.startswith("--") else f'--set {key}="10m"'
        raise UserError(key, text, "a time such as 90s, 10m or 1h", fix)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
