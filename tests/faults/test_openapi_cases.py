"""Random requests of the OpenAPI document, valid and not, alone and in sequences, with a key of each scope.

No answer is a 5xx, has a status, header or body that the document does not name, or goes to a key without the scope.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fault_runs import Facts, size
from servers import Server

from recloop.project import Project

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,ignored_auth"
)
SCOPES = ("read", "ingest", "admin", "read,ingest,admin")
GENERATED = re.compile(r"Test cases:\s+([\d,]+) generated")


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_random_requests_get_only_documented_answers(
    serving: Callable[..., Server], project: Project, cli: Callable[..., tuple[int, str, str]], facts: Facts
) -> None:
    keys = {}
    for scope in SCOPES:
        code, stdout, stderr = cli("-C", project.root, "keys", "add", scope.replace(",", "-"), "--scope", scope)
        assert code == 0, stderr
        keys[scope] = stdout.split()[-1]
    server = serving(project.root)
    cases = 0
    for seed, (scope, key) in enumerate(keys.items()):
        answer = httpx.get(f"{server.url}/v1/recommend/u14", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == (403 if scope == "ingest" else 200)
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json",
            "-H", f"Authorization: Bearer {key}", "--checks", CHECKS, "--seed", str(seed),
            "--max-examples", str(size(4, 1_060)), "--request-timeout", "30", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
        generated = GENERATED.search(done.stdout)
        assert generated, done.stdout[-3_000:] + done.stderr[-3_000:]
        cases += int(generated[1].replace(",", ""))
        assert done.returncode == 0, f"{scope}\n{done.stdout[-6_000:]}"
    facts["requests of the OpenAPI document"] = {"cases": cases, "scopes": len(SCOPES), "failures": 0}
    assert "Traceback" not in server.errors.read_text()
