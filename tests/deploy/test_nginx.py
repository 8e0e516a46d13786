"""The nginx site with Debian's nginx: TLS, the address of a client, closed routes, bodies and restarts."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import servers

ROOT = Path(__file__).parents[2]
SITE = ROOT / "deploy" / "nginx.conf"
MAIN = Path("/etc/nginx/nginx.conf")
HOST = "recloop.shop.example"
RATE = 20

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None or not MAIN.exists(), reason="needs Debian's package nginx, which .ci/run installs"
)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certificate(folder: Path) -> None:
    """Make a certificate for the host, signed by itself."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}"]
    files = ["-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"]
    subprocess.run([*command, "-addext", f"subjectAltName=DNS:{HOST}", *files], check=True, capture_output=True)


def site_text(service_port: int, plain: int, tls: int, folder: Path) -> str:
    """The site with ports and paths of this test; every replaced text must occur."""
    text = re.sub(r"^ *listen \[::\].*\n", "", SITE.read_text("utf-8"), flags=re.MULTILINE)
    replaced = {
        "127.0.0.1:8088": f"127.0.0.1:{service_port}", "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{tls} ssl", "/etc/ssl/recloop": str(folder),
    }  # fmt: skip
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def shop(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("behind") / "shop")
    settings = (f'hosts=["{HOST}"]', 'trusted_proxies=["127.0.0.1"]', f"limits.client_rate={RATE}")
    sets = [word for text in settings for word in ("--set", f"serve.{text}")]
    server = servers.start(folder, *sets)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def site(shop: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., httpx.Client]]:
    """Clients of the site, by their address; nginx runs with Debian's own configuration."""
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    certificate(folder)
    plain, tls = free_port(), free_port()
    (folder / "site.conf").write_text(site_text(int(shop.url.rpartition(":")[2]), plain, tls, folder), "utf-8")
    main = MAIN.read_text("utf-8")
    for old, new in (
        ("include /etc/nginx/sites-enabled/*;", f"include {folder}/site.conf;"),
        ("/run/nginx.pid", f"{folder}/pid"),
        ("/var/log/nginx", str(folder)),
    ):
        assert old in main
        main = main.replace(old, new)
    (folder / "nginx.conf").write_text(main, "utf-8")
    command = ["nginx", "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    context = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
    clients: list[httpx.Client] = []

    def client(address: str = "127.0.0.1", secure: bool = True) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=address, verify=context)
        url = f"https://127.0.0.1:{tls}" if secure else f"http://127.0.0.1:{plain}"
        clients.append(httpx.Client(base_url=url, headers={"Host": HOST}, transport=transport, timeout=30))
        return clients[-1]

    try:
        for _ in range(200):
            with closing(socket.socket()) as probe:
                if not probe.connect_ex(("127.0.0.1", tls)):
                    break
            time.sleep(0.02)
        yield client
    finally:
        for one in clients:
            one.close()
        process.terminate()
        process.wait(20)


def ask(client: httpx.Client, method: str, path: str, **more: object) -> httpx.Response:
    """Ask for the name of the certificate, at the address of this machine."""
    return client.request(method, path, extensions={"sni_hostname": HOST}, **more)  # type: ignore[arg-type]


def test_lists_and_events_pass_and_other_routes_stay_inside(site: Callable[..., httpx.Client]) -> None:
    client = site("127.0.0.2")
    listed = ask(client, "GET", "/v1/recommend/u14?n=3")
    assert (listed.status_code, len(listed.json()["items"])) == (200, 3)
    assert ask(client, "GET", "/v1/health/ready").json() == {"status": "ready"}
    row = {"user_id": "n/1", "item_id": "i01", "event_type": "purchase", "event_id": "behind-nginx"}
    assert ask(client, "POST", "/v1/events", json=row).json()["accepted"] == 1
    assert ask(client, "GET", "/v1/recommend/n%2F1").status_code == 200
    assert ask(client, "GET", "/v1/items/i01/similar").status_code == 200
    for path in (
        "/",
        "/metrics",
        "/v1/status",
        "/v1/users/u14",
        "/openapi.json",
        "/v1/admin/promote",
        "/v1/admin/forget",
    ):
        for method in ("GET", "POST"):
            reply = ask(client, method, path)
            assert (reply.status_code, "nginx" in reply.text) == (404, True), (method, path)


def test_plain_http_is_redirected(site: Callable[..., httpx.Client]) -> None:
    reply = site("127.0.0.3", secure=False).get("/v1/recommend/u14")
    assert (reply.status_code, reply.headers["location"]) == (301, f"https://{HOST}/v1/recommend/u14")


def test_rate_is_that_of_the_client_and_not_of_the_proxy(site: Callable[..., httpx.Client]) -> None:
    greedy, other = site("127.0.0.4"), site("127.0.0.5")
    spoofed = {"X-Forwarded-For": "203.0.113.9"}
    statuses = [ask(greedy, "GET", "/v1/recommend/u14?n=1").status_code for _ in range(3 * RATE)]
    assert 429 in statuses
    reply = ask(greedy, "GET", "/v1/recommend/u14?n=1", headers=spoofed)
    statuses = [ask(greedy, "GET", "/v1/recommend/u14?n=1", headers=spoofed).status_code for _ in range(3 * RATE)]
    assert 429 in {reply.status_code, *statuses}, "a header that the client made up does not name it"
    assert ask(other, "GET", "/v1/recommend/u14?n=1").status_code == 200


def test_large_packed_bodies_pass_and_larger_ones_are_413(site: Callable[..., httpx.Client]) -> None:
    client = site("127.0.0.6")
    rows = [
        {"user_id": f"p{n % 50}", "item_id": "i01", "event_type": "purchase", "event_id": f"packed-{n}"}
        for n in range(10_000)
    ]
    body = gzip.compress(b"\n".join(json.dumps(row).encode() for row in rows))
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    assert ask(client, "POST", "/v1/events", content=body, headers=headers).json()["accepted"] == 10_000
    assert ask(client, "POST", "/v1/events", content=b"x" * (6 * 2**20)).status_code == 413
