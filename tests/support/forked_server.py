"""A service that starts without imports: its process is forked from one that has imported it.

A start by the command line takes 2 s of CPU for imports, too much for a thousand starts. The child runs the same command.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import servers

PARENT = """
import os, sys
sys.modules["nicegui"] = None
import recloop.serve.app
from recloop import jit
from recloop.cli import main
jit.compile_all()
for _ in sys.stdin:
    child = os.fork()
    if not child:
        main()
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class ForkedServer:
    """One service at a time on a project folder and a port.

    Attributes:
        url: Address of the service, which is the same after each start.
    """

    def __init__(self, root: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._errors = (root / "stderr-forked").open("w")
        words = servers.command(root, "--port", str(port), program=("-c", PARENT))
        self._parent = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._child = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if self._child:
            self.end(signal.SIGKILL)
        self._parent.kill()
        self._parent.communicate()
        self._errors.close()

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        assert self._parent.stdin is not None
        self._parent.stdin.write("start\n")
        self._parent.stdin.flush()
        lines = sorted([self._line(), self._line()])
        child, ready = re.fullmatch(r"child (\d+)", lines[0]), lines[1]
        assert child, lines
        assert ready.startswith(f"ready {self.url}"), (lines, Path(self._errors.name).read_text())
        self._child = int(child[1])

    def end(self, how: signal.Signals) -> None:
        """Send a signal to the service and wait for its end."""
        os.kill(self._child, how)
        self._child = 0
        assert self._line() == "ended"

    def _line(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline().rstrip("\n")
