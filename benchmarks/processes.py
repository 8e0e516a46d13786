"""CPU time and memory of running processes, from ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(pid: int) -> float:
    """CPU seconds so far of a process and its children."""
    threads = Path(f"/proc/{pid}/task").iterdir()  # any thread can start a child
    children = [int(child) for thread in threads for child in (thread / "children").read_text("utf-8").split()]
    return cpu_seconds(pid) + sum(map(tree_cpu_seconds, children))


def resident_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    return round(int(text.partition("VmRSS:")[2].split()[0]) / 1024, 1)
