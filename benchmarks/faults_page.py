"""Write docs/faults.md from the results of `make faults`.

.venv/bin/python benchmarks/faults_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
RESULT: Final = ROOT / "benchmarks" / "results" / "faults.json"
PAGE: Final = ROOT / "docs" / "faults.md"
HIDDEN: Final = ("seconds", "commit", "share")
HEAD: Final = """\
# What happens when things break?

Each run breaks a real service or its files and then looks at what is left. `make faults` runs all at full size (hours),
`make faults SHARE=0.1` a tenth of it, and the test suite a small part of each. The results are in
[`faults.json`](../benchmarks/results/faults.json), each with its commit.
"""


class Run(NamedTuple):
    """A run of the table."""

    name: str
    file: str
    breaks: str
    must_hold: str


RUNS: Final = (
    Run("kills", "faults/test_kills.py", "SIGKILL at random instants, 8 senders that repeat with their event ids",
        "an acknowledged event is stored, once"),
    Run("power cut", "faults/test_power_cut.py",
        "power cut at a random system call: writes after the last sync dropped, torn at 512 bytes and reordered, new names lost",
        "the log opens, is whole and has each acknowledged row; with `synchronous = NORMAL` the same test finds losses"),
    Run("failing syncs", "faults/test_write_errors.py", "EIO at each fifth sync of a thread, then SIGKILL",
        "an acknowledged row is stored, a refused one is not; lists go on; no restart"),
    Run("read-only disk", "faults/test_read_only.py", "an ext4 file system turns read-only at an error, then is checked and mounted again",
        "an acknowledged row is stored; lists, status and metrics go on, posts are refused"),
    Run("database outage", "postgres/test_outages.py", "a PostgreSQL server crashes under 8 senders and is away for 30 s",
        "an acknowledged event is stored, once; lists go on, posts are 503"),
    Run("silent database", "postgres/test_outages.py",
        "all processes of a PostgreSQL server are stopped under 8 senders, later go on; two processes serve",
        "as above; a post that waits is refused within 8 s, later ones at once; no restart"),
    Run("hot swaps", "faults/test_hot_swaps.py", "the live bundle changes under 8 clients, each fifth time to a damaged one",
        "no request fails, each list is of one bundle, a damaged bundle is refused"),
    Run("damaged bundles", "faults/test_damaged_bundles.py",
        "flipped bits, cut files, zeros, insertions, NaN, pickle, links, JSON values of other kinds; the manifest agrees",
        "refused by name, or all golden lists are equal"),
    Run("hours of load", "faults/test_soak.py",
        "lists and events while updates, swaps, damaged bundles, reloads, SIGHUP, backups and hostile bytes come and go",
        "no error, no acknowledged event lost; memory, files and threads of the last third at most 5 % above the second"),
    Run("erasure", "faults/test_forget_many.py", "`recloop forget` of many users, then an update",
        "no byte of them in the stores at once, and in the project after the update; lists of others do not change"),
    Run("requests of the OpenAPI document", "faults/test_openapi_cases.py",
        "random requests by schemathesis, valid and not, alone and in sequences, with a key of each scope",
        "no 5xx, no answer outside the document, none without its scope"),
    Run("hostile bytes", "faults/test_raw_sockets.py",
        "two framings of a body, bad chunks, 20,000 headers, gzip bombs, deep JSON, pipelines, noise",
        "4xx or closed, memory flat, no hidden request, no traceback"),
)  # fmt: skip


def main() -> None:
    """Write the page."""
    kept = json.loads(RESULT.read_text("utf-8"))
    lines = [HEAD, f"{kept['machine']}. A share of 1 is the full size.\n"]
    lines += ["| run | what is broken | what must hold | share | result | commit |", "|---|---|---|---|---|---|"]
    lines += [line(run, kept["runs"].get(run.name)) for run in RUNS]
    PAGE.write_text("\n".join(lines) + "\n" + FOUND, "utf-8")


def line(run: Run, facts: dict[str, Any] | None) -> str:
    """Format one run."""
    name = f"[{run.name}](../tests/{run.file})"
    if facts is None:
        return f"| {name} | {run.breaks} | {run.must_hold} | | not run | |"
    result = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in facts.items() if key not in HIDDEN)
    return f"| {name} | {run.breaks} | {run.must_hold} | {facts['share']:g} | {result} | {facts['commit']} |"


FOUND: Final = """
## Faults that these runs found

- Rows of a refused post were visible after a restart, where a sync had failed and the service was killed before the next commit.
- An id with the character NUL stopped `/metrics` and status, and `forget` did not find it.
- A damaged spec, code table, graph or Parquet file of a bundle was refused with the wrong words, or as a bug of recloop.
- A malformed request with too large a head was refused twice, with a traceback in the log.
- The examples of `reports/evaluation.json` named users that had been erased.
- A power cut soon after the first start left an empty admin token, and the service did not start.
- A bundle whose time zone is the name of a folder or longer than a file name was refused as a bug of recloop.
- Status and metrics were 500 while `decisions.db` was on a disk that had turned read-only.
- Each update left an earlier bundle in memory and its file mapped; the hour of load ended with 8 % more memory and 13 % more open files.
- The page cache of the event log filled for half an hour, to 64 MiB, and saved no time; it holds 8 MiB now.

## Not run

- A file system that becomes read-only and is writable again without a restart: the kernel of this machine does not permit it.
"""


if __name__ == "__main__":
    main()
