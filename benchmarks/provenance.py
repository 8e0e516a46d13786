"""What a result file says of its run: command, commit and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, str]:
    """Return command, commit and machine of this process."""
    name = Path(sys.argv[0]).name
    return {
        "command": " ".join([f"python benchmarks/{name}", *sys.argv[1:]]),
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def revision() -> str:
    """Return the whole hash of the commit, with ``-dirty`` if the package differs from it."""
    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "src") else "")


def git(*words: str) -> str:
    """Return the output of git for this checkout."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
