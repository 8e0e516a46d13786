"""A client generated from the OpenAPI document calls every route and parses every answer."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from servers import Server

PACKAGE = "recloop_generated_client"


@pytest.fixture(scope="module")
def generated(openapi_document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the generated package."""
    folder: Path = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(json.dumps(openapi_document))
    (folder / "config.yml").write_text("post_hooks: []\n")
    words = ["generate", "--path", "openapi.json", "--config", "config.yml", "--meta", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", *words, "--output-path", PACKAGE],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("WARNING") == said.count("Unsupported content type application/x-ndjson") == 4, said
    sys.path.insert(0, str(folder))
    yield PACKAGE
    sys.path.remove(str(folder))


def test_generated_client_parses_the_answer_of_every_route(
    generated: str, openapi_document: dict[str, Any], server: Server
) -> None:
    package = importlib.import_module(generated)
    models = importlib.import_module(f"{generated}.models")
    client = package.AuthenticatedClient(base_url=server.url, token=server.token)
    event = models.EventIn("u14", "i01", "purchase", event_id="generated-1")
    move = models.ReleaseRequest(bundle="none", reason="a test")
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], int, type]] = {
        "recommend": (("u14",), {"n": 3, "properties": "category"}, 200, models.RecommendResponse),
        "recommend_by_query": ((), {"user_id": "a/b"}, 200, models.RecommendResponse),
        "similar": (("i01",), {"n": 3}, 200, models.RecommendResponse),
        "post_events": ((), {"body": [event, event]}, 200, models.EventsResponse),
        "delete_event": (("generated-1",), {}, 200, models.RetractionResponse),
        "post_items": ((), {"body": models.ItemIn("generated")}, 200, models.ItemsResponse),
        "patch_items": ((), {"body": models.ItemPatch("i01", hidden=False)}, 200, models.ItemsResponse),
        "patch_item": (("i01",), {"body": models.ItemChange(hidden=False)}, 200, models.ItemsResponse),
        "delete_item": (("generated",), {}, 200, models.ItemsResponse),
        "post_users": ((), {"body": models.UserIn("generated")}, 200, models.UsersResponse),
        "identify": ((), {"body": models.IdentifyRequest("phone", "generated")}, 200, models.IdentifyResponse),
        "get_item": (("i01",), {}, 200, models.ItemResponse),
        "get_user": (("u14",), {}, 200, models.UserResponse),
        "delete_user": (("generated",), {}, 200, models.ForgetResponse),
        "forget": ((), {"body": models.ForgetRequest(["generated"])}, 200, models.ForgetResponse),
        "health_live": ((), {}, 200, models.HealthResponse),
        "health_ready": ((), {}, 200, models.HealthResponse),
        "status": ((), {}, 200, models.StatusResponse),
        "metrics": ((), {}, 200, str),
        "promote": ((), {"body": move}, 404, models.ErrorResponse),
        "rollback": ((), {"body": models.ReleaseRequest(reason="a test")}, 409, models.ErrorResponse),
        "reject": ((), {"body": models.RejectRequest("none", "a test")}, 404, models.ErrorResponse),
        "replay": ((), {"body": models.ReplayRequest([1])}, 200, models.EventsResponse),
        "reload": ((), {"body": models.ReloadRequest()}, 200, models.ReloadResponse),
    }
    operations = {one["operationId"] for path in openapi_document["paths"].values() for one in path.values()}
    assert operations == set(calls)
    with client:
        for name, (words, options, status, shape) in calls.items():
            module = importlib.import_module(f"{generated}.api.default.{name}")
            answer = module.sync_detailed(*words, client=client, **options)
            assert answer.status_code == HTTPStatus(status), (name, answer.content)
            assert isinstance(answer.parsed, shape), name
            if shape is models.RecommendResponse:
                assert all(isinstance(slot, models.SlotResponse) for slot in answer.parsed.items)
                assert answer.parsed.placement == ("similar" if name == "similar" else "home")
                assert all(slot.score is not None and slot.source for slot in answer.parsed.items)
        recommended = importlib.import_module(f"{generated}.api.default.recommend").sync(
            "u14", client=client, properties="category"
        )
        assert recommended.items[0].additional_properties["category"]


def test_generated_client_with_a_wrong_token_gets_401(generated: str, server: Server) -> None:
    package, models = importlib.import_module(generated), importlib.import_module(f"{generated}.models")
    client = package.AuthenticatedClient(base_url=server.url, token="wrong")
    rollback = importlib.import_module(f"{generated}.api.default.rollback")
    with client:
        answer = rollback.sync_detailed(client=client, body=models.ReleaseRequest(reason="a test"))
    assert (answer.status_code, answer.parsed.error.code) == (401, "unauthorized")
