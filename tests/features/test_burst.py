"""Rule burst: equal to its definition on random rows, linear for one user."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.config import Burst
from recloop.features import burst as burst_module
from recloop.features.burst import ActWindow, burst_mask
from recloop.records import SECOND

BURST = Burst(events=3, seconds=1.0)
ROW = st.tuples(
    st.sampled_from("uv"), st.integers(0, 5 * SECOND // 2), st.sampled_from([None, None, "g", "h"]), st.booleans()
)
COARSE = st.tuples(
    st.just("u"), st.sampled_from([0, 1, SECOND // 2, SECOND, SECOND + 1]), st.sampled_from([None, "g"]), st.just(False)
)


def frame(rows: list[tuple[str, int, str | None, bool]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "timestamp": pl.Int64, "group_id": pl.String, "strong": pl.Boolean}
    return pl.DataFrame(rows, schema, orient="row")


def plain(rows: list[tuple[str, int, str | None, bool]], burst: Burst) -> list[bool]:
    """The definition, row by row."""
    width = round(burst.seconds * SECOND)
    mask = []
    for n, (user, stamp, _, strong) in enumerate(rows):
        acts = {
            other_stamp if group is None else group
            for other, other_stamp, group, other_strong in rows[: n + 1]
            if other == user and not other_strong and stamp - width < other_stamp <= stamp
        }
        mask.append(not strong and len(acts) >= burst.events)
    return mask


@given(st.lists(st.one_of(ROW, COARSE), max_size=25))
def test_burst_mask_equals_the_definition(rows: list[tuple[str, int, str | None, bool]]) -> None:
    assert burst_mask(frame(rows), BURST).tolist() == plain(rows, BURST)
    windows = {user: ActWindow(BURST) for user in "uv"}
    arrived = [not strong and windows[user].add(stamp, group) for user, stamp, group, strong in rows]
    assert arrived == plain(rows, BURST)


@pytest.mark.parametrize("order", ["ascending", "descending", "one stamp", "one second", "baskets"])
def test_burst_of_one_user_reads_few_acts_per_row(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crawler's rows: each row looks at few earlier acts, whatever their number."""
    n = 3_000
    stamps = {
        "ascending": np.arange(n) * 1_000, "descending": np.arange(n)[::-1] * 1_000, "one stamp": np.zeros(n, int),
        "one second": np.random.default_rng(0).permutation(n), "baskets": np.zeros(n, int),
    }[order]  # fmt: skip
    groups = [f"g{row}" for row in range(n)] if order == "baskets" else [None] * n
    looks = 0

    class Counted(set[int | str]):
        def add(self, act: int | str) -> None:
            nonlocal looks
            looks += 1
            super().add(act)

    monkeypatch.setattr(burst_module, "set", Counted, raising=False)
    rows = pl.DataFrame({"user_id": ["u"] * n, "timestamp": stamps, "group_id": pl.Series(groups, dtype=pl.String)})
    mask = burst_mask(rows, Burst())
    assert looks <= 11 * n + 2_000  # ten acts and the row itself
    assert mask.sum() == {"one stamp": 0, "descending": 0}.get(order, mask.sum())


def test_act_window_forgets_early_buckets() -> None:
    window = ActWindow(BURST)
    for stamp in range(0, 10 * SECOND, SECOND // 2):
        window.add(stamp, None)
    assert len(window) == 20
    assert window.forget_before(5 * SECOND + 1) == 5 * SECOND
    assert len(window) == 10
    assert [window.add(6 * SECOND + n, None) for n in range(3)] == [False, True, True]
