"""Entry point of ``python -m recloop``."""

from __future__ import annotations

from recloop.cli import main

main()
