"""Posts of single events, and what the service says of them."""

from __future__ import annotations

import httpx

UNKNOWN, STORED, NOT_STORED = "log_uncertain", "accepted", "log_unavailable"


def post(client: httpx.Client, number: int) -> str:
    """Post one view and return ``accepted`` or the code of the error."""
    row = {"user_id": f"visitor {number}", "item_id": "i14", "event_type": "view", "event_id": f"e{number}"}
    answer = client.post("/v1/events", json=row)
    if answer.status_code == 200:
        assert answer.json()["accepted"] == 1
        return STORED
    assert answer.status_code == 503, answer.text
    return str(answer.json()["error"]["code"])
