"""``python -m recloop``: the command line."""

from __future__ import annotations

from recloop.cli import main

main()
