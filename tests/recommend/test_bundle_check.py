"""The check of a registered bundle in a child process: endless, crashing and greedy ones are refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from recloop.errors import BundleError
from recloop.project import Project
from recloop.recommend import bundle_check
from recloop.recommend.bundle_check import check_in_child
from recloop.storage import releases
from recloop.storage.control import ReleaseRow


def endless(project: Project, row: ReleaseRow) -> None:
    time.sleep(3_600)


def crash(project: Project, row: ReleaseRow) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def greedy(project: Project, row: ReleaseRow) -> None:
    np.ones(2**40, dtype=np.uint8)


def of_another_kind(project: Project, row: ReleaseRow) -> None:
    raise KeyError("events")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (endless, "golden list=no answer in 0 s"),
        (crash, "the check ended with exit code -11"),
        (greedy, "MemoryError"),
        (of_another_kind, "KeyError: 'events'"),
    ],
)
def test_bundle_whose_check_fails_in_any_way_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch, check: Callable[[Project, ReleaseRow], None], message: str
) -> None:
    monkeypatch.setattr(bundle_check, "CHECK_SECONDS", 0.2 if check is endless else 30.0)
    monkeypatch.setattr(bundle_check, "FREE_BYTES", 2**32)
    row = releases.live(project.open_control())
    with pytest.raises(BundleError, match=message):
        check_in_child(project, row, check)


def test_sound_bundle_passes_its_check(project: Project) -> None:
    check_in_child(project, releases.live(project.open_control()))
