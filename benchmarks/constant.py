"""Service of one constant list on the protocol of `recloop serve`, the lower bound of a request.

    python benchmarks/constant.py --port 8098

Each request passes sockets, parser and the checks of lists that need no project; the body is encoded once a request.
"""

from __future__ import annotations

import argparse
from typing import Final

import msgspec

from recloop.serve.list_endpoint import ListApplication, ListEndpoint
from recloop.serve.middleware import Reply, json_reply
from recloop.serve.schemas import RecommendResponse, SlotResponse
from recloop.serve.server import listen, serve

SLOTS: Final = [
    SlotResponse(f"i{rank:07d}", 1 / (60 + rank), "model", "fits what you chose lately") for rank in range(10)
]
RESPONSE: Final = RecommendResponse("0" * 32, "sasrec-20260101T000000Z-00000000", "live", "home", [], SLOTS)


class ConstantLists(ListEndpoint):
    """Endpoint that answers every request with the same list."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def reply(self, *_: object) -> Reply:
        return json_reply(self._encode(RESPONSE))


def main() -> None:
    """Serve until stopped."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--port", type=int, required=True)
    app = ListApplication()
    app.state.draining = False
    app.lists = ConstantLists()
    serve(app, listen("127.0.0.1", words.parse_args().port), "")


if __name__ == "__main__":
    main()
