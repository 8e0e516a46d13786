"""The systemd units: loadable, hardened, and commands that work."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recloop.project import Project

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.socket"), *DEPLOY.glob("*.timer")])
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
PROGRAM = "/srv/recloop/bin/recloop"
MAX_EXPOSURE = 2.0
"""Largest exposure of `systemd-analyze security`, from 0 to 10; a unit without hardening has 9.6."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze of systemd")


def lines_of(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text("utf-8"), re.MULTILINE)


@needs_systemd
def test_systemd_loads_the_units_without_a_warning(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text("utf-8").replace(PROGRAM, sys.executable)
        (tmp_path / unit.name).write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(tmp_path / unit.name for unit in UNITS)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "recloop" in line] == []
    assert done.returncode == 0, done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_service_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MAX_EXPOSURE, done.stdout
    assert lines_of(unit, "User") == ["recloop"]


@needs_systemd
@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("*.timer")), ids=lambda unit: unit.stem)
def test_timer_has_a_next_time_and_a_service(unit: Path) -> None:
    (calendar,) = lines_of(unit, "OnCalendar")
    done = subprocess.run(["systemd-analyze", "calendar", calendar], capture_output=True, text=True)
    assert "Next elapse" in done.stdout
    assert unit.with_suffix(".service").exists()


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_commands_of_the_units_are_those_of_the_command_line(
    unit: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    lines = [line for key in ("ExecStart", "ExecStartPost") for line in lines_of(unit, key) if PROGRAM in line]
    assert lines
    for line in lines:
        words = re.sub(r".*exec ", "", line).replace("'", "").split()
        assert words[1:3] == ["-C", "/srv/shop"]
        code, _, error = cli(words[3], "--help")
        assert code == 0, error
        known = cli(words[3], "--help")[1]
        assert all(word in known for word in words[4:] if word.startswith("--")), line


def test_backup_command_writes_a_folder_named_by_its_time(project: Project, tmp_path: Path) -> None:
    """Run the line as systemd does, with its percent signs and dollars."""
    (line,) = lines_of(DEPLOY / "recloop-backup.service", "ExecStart")
    written = line.replace("%%", "%").replace("$$", "$").replace("/var/backups/recloop", str(tmp_path))
    written = written.replace("/srv/shop", str(project.root)).replace(PROGRAM, f"{sys.executable} -m recloop")
    subprocess.run(shlex.split(written), check=True, capture_output=True)
    (backup,) = [folder for folder in tmp_path.iterdir() if (folder / "backup.json").exists()]
    assert re.fullmatch(r"\d{8}T\d{6}Z", backup.name)
    (clean,) = lines_of(DEPLOY / "recloop-backup.service", "ExecStartPost")
    ages = {hours: tmp_path / f"{hours} hours" for hours in (88 * 24 + 12, 89 * 24 + 1)}
    for hours, folder in ages.items():  # the next run, a day later, would find the second one older than 90 days
        folder.mkdir()
        subprocess.run(["touch", "-d", f"{hours} hours ago", folder], check=True)
    subprocess.run(shlex.split(clean.replace("/var/backups/recloop", str(tmp_path))), check=True)
    assert backup.exists()
    assert [folder.exists() for folder in ages.values()] == [True, False]
