"""The image and the composition: their commands run without root rights on a read-only file system."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from recloop.storage.admin_token import FILE_NAME as TOKEN_FILE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
USER = 10001
INSIDE = "/mnt"
"""Folder of the project in the namespace of the test; in the image it is /srv/shop."""


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments."""
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    pairs = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    return [(name, text.strip()) for name, _, text in pairs]


def arguments(name: str) -> str:
    (text,) = [text for kind, text in instructions() if kind == name]
    return text


def test_image_copies_files_that_exist_and_runs_without_root() -> None:
    for name, text in instructions():
        if name == "COPY":
            *sources, _ = text.split()
            assert all((ROOT / source).exists() for source in sources), text
            kept = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
            assert all(f"!{source}" in kept for source in sources), text
    assert arguments("USER") == str(USER)
    assert f"--uid {USER}" in (DEPLOY / "Dockerfile").read_text("utf-8")
    assert not re.search(
        r"^(ADD|MAINTAINER) |:latest|curl .*\|", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE
    )


def test_packages_of_the_image_are_in_debian() -> None:
    (line,) = [text for name, text in instructions() if name == "RUN" and "apt-get install" in text]
    names = re.findall(r"--no-install-recommends ([^&]+)", line)[0].split()
    if shutil.which("apt-cache") is None or not list(Path("/var/lib/apt/lists").glob("*Packages*")):
        pytest.skip("needs the package lists of apt-get update")
    for name in names:
        shown = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True, check=True).stdout
        assert "Candidate: (none)" not in shown
        assert "Candidate" in shown, name


def composition() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return tree


def test_composition_runs_update_beside_serve_without_rights() -> None:
    services = composition()["services"]
    assert set(services) == {"serve", "update"}
    for service in services.values():
        assert service["user"] == f"{USER}:{USER}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["volumes"] == ["shop:/srv/shop"]
    assert services["serve"]["ports"] == ["127.0.0.1:8088:8088"], "TLS and other machines are the task of a proxy"
    assert services["update"]["command"][:2] == ["update", "--every"]
    assert services["update"]["depends_on"]["serve"]["condition"] == "service_healthy"
    assert shlex.split(arguments("CMD").strip("[]").replace(",", "")) == services["serve"]["command"]


def confined(project: Path, words: Sequence[str]) -> list[str]:
    """Command with the rights of the image: its user, no capability, read-only root, a new /tmp."""
    script = (
        f"mount --bind {project} {INSIDE} && mount -o remount,ro,bind / && mount -t tmpfs tmpfs /tmp && cd {INSIDE} && exec "
        f"setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "
    )
    program = [sys.executable, "-m", "recloop", "-C", INSIDE]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script + shlex.join([*program, *words])]


ENVIRONMENT = {**os.environ, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def volume(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder that belongs to the user of the image."""
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("volume") / "shop")
    probe = subprocess.run(confined(folder, ["--version"]), capture_output=True, text=True, env=ENVIRONMENT)
    if probe.returncode:
        pytest.skip(f"a mount namespace or another user is not permitted here: {probe.stderr.strip()[-200:]}")
    subprocess.run(["chown", "-R", f"{USER}:{USER}", folder], check=True)
    return folder


def test_commands_run_as_in_the_image(volume: Path) -> None:
    """Add a key, serve, probe, update beside it and stop."""
    added = subprocess.run(
        confined(volume, ["keys", "add", "shop", "--scope", "read,ingest"]),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert added.returncode == 0, added.stderr
    command = composition()["services"]["serve"]["command"]
    with (volume.parent / "errors").open("w") as errors:
        process = subprocess.Popen(
            confined(volume, [*command, "--port", "0"]),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=ENVIRONMENT,
        )
    try:
        assert process.stdout is not None
        ready = re.match(r"ready http://[\d.]+:(\d+) ", process.stdout.readline())
        assert ready, (volume.parent / "errors").read_text("utf-8")
        status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
        assert re.search(rf"^Uid:\t{USER}\t{USER}", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        probe = re.search(r"CMD (\[.*\])$", arguments("HEALTHCHECK"))
        assert probe
        words = [word.replace(":8088", f":{ready[1]}") for word in yaml.safe_load(probe[1])]
        assert subprocess.run([sys.executable, *words[1:]]).returncode == 0
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{ready[1]}", headers={"Authorization": f"Bearer {added.stdout.strip()}"}
        )
        row = {"user_id": "u14", "item_id": "i01", "event_type": "purchase", "event_id": "in-a-container"}
        assert client.post("/v1/events", json=row).json()["accepted"] == 1
        assert client.get("/v1/recommend/u14").status_code == 200
        once = composition()["services"]["update"]["command"][:1]
        updated = subprocess.run(confined(volume, once), capture_output=True, text=True, env=ENVIRONMENT)
        assert updated.returncode == 0, updated.stderr
        client.close()
        process.send_signal(getattr(signal, arguments("STOPSIGNAL")))
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert (volume / "store" / TOKEN_FILE).stat().st_uid == USER


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_line_of_the_image_installs_recloop_from_the_copied_files(tmp_path: Path) -> None:
    """The line of pip, in a new environment, over the files that the image copies and no others."""
    build = tmp_path / "build"
    build.mkdir()
    for name, text in instructions():
        if name == "COPY":
            for source in text.split()[:-1]:
                target = build / source
                shutil.copytree(ROOT / source, target) if (ROOT / source).is_dir() else shutil.copy(
                    ROOT / source, target
                )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (line,) = [text for name, text in instructions() if name == "RUN" and text.startswith("pip install")]
    pip = line.partition(" && ")[0].replace("--no-cache-dir ", "").replace("${EXTRAS}", "console")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{tmp_path / 'venv' / 'bin'}:{environment['PATH']}"
    subprocess.run(["sh", "-euc", pip], check=True, cwd=build, env=environment, capture_output=True)
    entry = yaml.safe_load(arguments("ENTRYPOINT"))
    shown = subprocess.run([entry[0], "--version"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert shown.stdout.startswith("recloop ")
