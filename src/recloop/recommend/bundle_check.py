"""Check of a registered bundle in a child process with limits.

A graph of a bundle may loop without end or ask for all memory, and native code may crash. The child answers the golden
cases first, so that such a bundle is refused and the service goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from recloop.errors import BundleError
from recloop.project import Project
from recloop.recommend.loading import open_bundle
from recloop.storage.control import ReleaseRow

CHECK_SECONDS: Final = 60.0
"""Time of the check of a small bundle."""
BYTES_PER_SECOND: Final = 10_000_000
"""A larger bundle has a second more for each of these bytes."""
FREE_BYTES: Final = 8 * 2**30
"""Memory that the child may map in addition to eight times the bundle."""
NICE: Final = 5


Check = Callable[[Project, ReleaseRow], object]


def check_in_child(project: Project, row: ReleaseRow, check: Check = open_bundle) -> None:
    """Load a bundle and answer its golden cases in a child process.

    Args:
        check: Function of a module; raises an error for a bundle that must not be served.

    Raises:
        BundleError: a check failed, the child ended without an answer, or the time passed.
    """
    size = sum(file.stat().st_size for file in (project.bundles / row.bundle).glob("*"))
    seconds = CHECK_SECONDS + size / BYTES_PER_SECOND
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, project, row, check, size), name="recloop check", daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise BundleError("golden list", f"no answer in {seconds:.0f} s", "an answer in time", "recloop update")
        failure: tuple[str, str, str, str] | None = receiver.recv()
    except EOFError:
        child.join()
        cause = f"the check ended with exit code {child.exitcode}"
        raise BundleError("bundle", cause, "a bundle that loads", "recloop update") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if failure is not None:
        raise BundleError(*failure)


def _answer(sender: Connection, project: Project, row: ReleaseRow, check: Check, size: int) -> None:
    """Send None, or the arguments of the error; runs in the child."""
    os.nice(NICE)
    limit = _mapped_bytes() + FREE_BYTES + 8 * size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        check(project, row)
    except BundleError as error:
        sender.send((error.name, str(error.value), error.expected, error.fix))
    except Exception as error:  # noqa: BLE001 - the parent refuses the bundle for any error
        cause = f"{type(error).__name__}: {error}"[:300]
        sender.send(("bundle", row.bundle, f"a bundle that loads ({cause})", "recloop update"))
    else:
        sender.send(None)


def _mapped_bytes() -> int:
    """Return the bytes of address space that this process has mapped; 0 if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()
