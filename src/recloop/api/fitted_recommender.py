"""Recommender in memory: lists, scores, similar items, evaluation and saving."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import polars as pl

from recloop import bundle as bundles
from recloop.api.fit_input import HOLDOUTS, Holdout
from recloop.api.fit_report import FitReport
from recloop.api.ids import IdType, checked_moment, checked_n, listed
from recloop.api.messages import python_errors
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data.frames import as_polars, data_of, frame_as_table
from recloop.data.read import parse_events
from recloop.data.split import SplitFrames
from recloop.errors import UserError
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.table import EvaluationTable
from recloop.features.clock_rule import received_by
from recloop.features.dwell import DwellPercentiles
from recloop.features.labels import EventLabeler
from recloop.features.log_end import end_of
from recloop.features.moments import moment_stamps, number_moments
from recloop.features.state import StateBatch
from recloop.features.state_history import StateHistory
from recloop.pipeline.model_fitting import THREADS
from recloop.progress import NullProgress, Progress
from recloop.recommend import similar_items as similar
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import NO_IDS, NO_ITEMS, CandidateMask
from recloop.recommend.fusion import fuse
from recloop.recommend.golden import make_golden
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.recommend.table_mask import TableMask
from recloop.records import EVENT_SCHEMA, ITEM_ID, SEQ, TIMESTAMP, USER_ID, Query, guest_rows, max_int, now
from recloop.settings import build

P = ParamSpec("P")
T = TypeVar("T")
SCORED_USERS = 64
"""Users per batch of `FittedRecommender.score`, which bounds its memory."""


@dataclass(frozen=True)
class FittedData:
    """Data of a `FittedRecommender`: labelled events, catalog, users and split.

    ``items`` and ``users`` hold versions. ``dwell`` holds the dwell percentiles.
    """

    events: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    parts: SplitFrames | None
    dwell: DwellPercentiles | None = None

    @property
    def test(self) -> pl.DataFrame:
        assert self.parts is not None
        return self.parts.test


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a method raise a TypeError for the old name of an argument."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(method)
        def checked(*arguments: P.args, **passed: P.kwargs) -> T:
            if old in passed:
                value = passed[old]
                message = f"{old}={value}; expected {new}, the new name of {old}; fix: {new}={value!r}"
                raise TypeError(f"{method.__name__}: {message}")
            return method(*arguments, **passed)

        return checked

    return decorate


class FittedRecommender:
    """Bundle with a log in memory; ``observe`` updates states but not weights.

    ``report`` holds the rows and guessed settings of the fit; None for a loaded bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        rows: FittedData,
        config: Config,
        native: str,
        user_ids: IdType,
        item_ids: IdType,
        holdout: Holdout | None = None,
        report: FitReport | None = None,
        progress: Progress | None = None,
        refit: Callable[[Holdout], FittedRecommender] | None = None,
    ) -> None:
        """Hold a bundle and the log behind its users' states.

        Args:
            native: Name of the library of the frames to return.
            user_ids, item_ids: Types of the ids to return.
            refit: Fits the same log again with a holdout; None for a loaded bundle.
        """
        self.bundle = bundle
        self.report = report
        self._rows, self._config, self._native = rows, config, native
        self._user_ids, self._item_ids = user_ids, item_ids
        self._holdout, self._refit = holdout, refit
        self._progress = progress or NullProgress()
        self._signal = EventLabeler.from_spec(bundle.spec)
        self._recommender = Recommender(bundle, Catalog.from_frames([rows.items]), THREADS)
        self._timeline = StateHistory(rows.events, rows.users)

    @renamed_argument("k", "n")
    @python_errors("fit")
    def recommend(
        self,
        users: Any,
        n: int = 10,
        filter_viewed: bool | None = None,
        items_to_recommend: Any = None,
        now: int | None = None,
        on_unknown: Literal["popular", "error"] = "popular",
    ) -> Any:
        """Recommend lists as a frame: user_id, item_id, score, rank, source.

        Args:
            users: Ids, or one id for one list.
            filter_viewed: Leave out items that a user had before; None: the setting ``split.filter_seen``.
            items_to_recommend: The only items that lists may contain.
            now: int64 microseconds UTC; None: just after the newest valid event (wrong clocks are ignored).
            on_unknown: ``popular`` lists popular items for a user without events; ``error`` refuses.

        Raises:
            UserError: ``n`` outside 1 to 1000, an unknown item to recommend, or an unknown user with ``error``.
        """
        n = checked_n(n)
        ids = self._user_ids.texts(users, "users")
        self._check_users(ids, on_unknown)
        recommender = self._recommender
        if filter_viewed is not None:
            policy = replace(self.bundle.policy, filter_seen=bool(filter_viewed))
            recommender = Recommender(replace(self.bundle, policy=policy), recommender.catalog, THREADS)
        allowed_ids = None
        if items_to_recommend is not None:
            allowed_ids = self._item_ids.texts(items_to_recommend, "items_to_recommend")
            self._check_items(allowed_ids, "items_to_recommend")
        answers = self._lists(recommender, ids, n, self._moment(now), allowed_ids) if ids else []
        rows = [
            (user, slot.item_id, slot.score, rank, slot.source)
            for user, answer in zip(ids, answers, strict=True)
            for rank, slot in enumerate(answer.slots, 1)
        ]
        schema = {USER_ID: pl.String, ITEM_ID: pl.String, "score": pl.Float64, "rank": pl.Int64, "source": pl.String}
        return self._given(pl.DataFrame(rows, schema=schema, orient="row"))

    def _lists(
        self, recommender: Recommender, users: list[str], n: int, moment: int, allowed_ids: list[str] | None
    ) -> list[RankedList]:
        """Rank n items for each user; with ``allowed_ids`` only these."""
        placement_name = self.bundle.default_placement
        table = self.bundle.items.ids
        fallback: tuple[str, ...] | None = None
        if allowed_ids is not None and any(not table.index(item) for item in allowed_ids):
            # items without events are listed from the catalog, which then holds the allowed items alone
            assert self._rows.items is not None
            allowed_versions = self._rows.items.filter(pl.col(ITEM_ID).is_in(allowed_ids))
            recommender = Recommender(recommender.bundle, Catalog.from_frames([allowed_versions]), THREADS)
        elif allowed_ids is not None:
            fallback = ("segment", "popular")
        placement = recommender.placement(placement_name)
        queries = [Query(user_id=user, now=moment, n=n, placement=placement_name) for user in users]
        encoded = recommender.encode(self._states(users), [moment] * len(users))
        allowed = recommender.candidate_mask(encoded, queries, placement)
        if allowed_ids is not None:
            shown = np.zeros_like(allowed.mask)
            shown[table.lookup(allowed_ids)] = True
            shown[0] = False  # padding: the index of an item outside the table
            allowed = replace(allowed, table=TableMask.of(allowed.mask & shown))
        fused = recommender.fuse_sources(encoded, allowed, queries, placement, n)
        return recommender.slots.assemble(encoded, allowed, fused, queries, placement, fallback)

    @python_errors("fit")
    def score(self, users: Any, items: Any, now: int | None = None) -> Any:
        """Score every item for every user: user_id, item_id, score, as ordered.

        Scores are comparable within one user. They are the weighted reciprocal ranks of `recommend` over all items: an
        item that no source ranks has 0, and an item without events before the fit has null. Seen items are scored too.

        Args:
            users, items: Ids, or one id.
            now: As in `recommend`.

        Raises:
            UserError: an item is unknown.
        """
        user_ids = self._user_ids.texts(users, "users")
        item_ids = self._item_ids.texts(items, "items")
        self._check_items(item_ids, "items")
        columns = self.bundle.items.ids.lookup(item_ids, len(item_ids))
        placement = self._recommender.placement(self.bundle.default_placement)
        n_items = len(self.bundle.items)
        moment = self._moment(now)
        parts = [np.zeros((0, len(columns)), dtype=np.float32)]
        for start in range(0, len(user_ids), SCORED_USERS):
            batch = user_ids[start : start + SCORED_USERS]
            encoded = self._recommender.encode(self._states(batch), [moment] * len(batch))
            everything = CandidateMask(
                TableMask.of(np.arange(n_items + 1) > 0), [NO_ITEMS] * len(batch), [NO_IDS] * len(batch), ""
            )
            recalled = self._recommender.recall(encoded, everything, placement.weights, n_items)
            fused = fuse(recalled, placement.weights, n_items, placement.fusion_constant)
            scores = np.zeros((len(batch), n_items + 1), dtype=np.float32)
            rows, ranks = np.nonzero(fused.items)
            scores[rows, fused.items[rows, ranks]] = fused.scores[rows, ranks]
            parts.append(scores[:, columns])
        table = pl.DataFrame(
            {
                USER_ID: pl.Series(
                    np.repeat(np.array(user_ids, dtype=object), len(item_ids)).tolist(), dtype=pl.String
                ),
                ITEM_ID: pl.Series(item_ids * len(user_ids), dtype=pl.String),
                "score": np.concatenate(parts).ravel().astype(np.float64),
                "known": np.tile(columns > 0, len(user_ids)),
            }
        )
        return self._given(table.with_columns(pl.when("known").then("score")).drop("known"))

    @renamed_argument("k", "n")
    @python_errors("fit")
    def similar_items(self, items: Any, n: int = 10) -> Any:
        """List similar items of each item: item_id, similar_id, score, rank, source.

        The lists equal those of ``GET /v1/items/{id}/similar``.

        Args:
            items: Ids, or one id for one list.

        Raises:
            UserError: an item is unknown, or ``n`` is outside 1 to 1000.
        """
        n = checked_n(n)
        ids = self._item_ids.texts(items, "items")
        self._check_items(ids, "items")
        queries = [
            Query(user_id="", now=self.bundle.cut, n=n, placement=similar.LIST_KIND, item_id=item) for item in ids
        ]
        states = StateBatch.empty([""] * len(ids))
        answers = self._recommender.recommend(states, queries, False) if ids else []
        rows = [
            (query.item_id, slot.item_id, slot.score, rank, slot.source)
            for query, answer in zip(queries, answers, strict=True)
            for rank, slot in enumerate(answer.slots, 1)
        ]
        schema = {
            ITEM_ID: pl.String,
            "similar_id": pl.String,
            "score": pl.Float64,
            "rank": pl.Int64,
            "source": pl.String,
        }
        return self._given(pl.DataFrame(rows, schema=schema, orient="row"))

    @python_errors("fit")
    def observe(self, more: Any) -> None:
        """Add events to the users' states; weights do not change.

        Causal rules run as on arrival. Stamps are compared with this machine's clock, or with the end of all rows if
        that is later.

        Args:
            more: A frame with the columns of the fit.
        """
        frame = as_polars(more, "more")
        fresh = parse_events([frame_as_table(frame, "more")], data_of(self._config.data, frame)).frame
        old = self._rows.events
        last = max_int(old[SEQ])
        fresh = fresh.select(pl.int_range(last + 1, last + 1 + pl.len(), dtype=pl.Int64).alias(SEQ), pl.all())
        end = end_of(pl.concat([old.select(TIMESTAMP, USER_ID), fresh.select(TIMESTAMP, USER_ID)]))
        fresh = received_by(fresh, max(end, now()))
        believed = fresh.filter(self._signal.causal_rule(fresh, old.select(*EVENT_SCHEMA)).is_null())
        self._rows = replace(self._rows, events=labelled(self._signal, old.select(*EVENT_SCHEMA), believed))
        self._timeline = StateHistory(self._rows.events, self._rows.users)

    @renamed_argument("protocol", "split")
    @python_errors("fit")
    def evaluate(self, k: int | Sequence[int] | None = None, split: Holdout | None = None) -> EvaluationTable:
        """Evaluate on the held-out part of the log; notebooks render the table.

        Args:
            k: Cut-offs of the metrics; None: ``evaluate.k``.
            split: ``temporal`` or ``leave-one-out``; None: the holdout of the fit. With another value the log is fitted
                again on the part before the test, which takes as long as the fit; this recommender is unchanged.

        Raises:
            UserError: all rows were learned and ``split`` is None, the bundle was loaded, or the test is empty.
        """
        cutoffs = None if k is None else [checked_n(value, "k") for value in (k if isinstance(k, Iterable) else [k])]
        if split is not None and split not in HOLDOUTS:
            raise UserError("split", split, " or ".join(HOLDOUTS), 'split="temporal"')
        if self._refit is None:
            raise UserError(
                "evaluate",
                "a loaded bundle",
                "the log it was fitted on",
                'recloop.fit(events).evaluate(split="temporal")',
            )
        if split is None and self._holdout is None:
            fix = 'recloop.fit(..., holdout="temporal").evaluate(), or rec.evaluate(split="temporal"), which fits again'
            raise UserError("holdout", None, "a held-out part; all rows were learned", fix)
        if split is not None and split != self._holdout:
            return self._refit(split).evaluate(k=k)
        tree = self._config.model_dump(mode="json", by_alias=True)
        if cutoffs is not None:
            tree["evaluate"]["k"] = cutoffs
        config = build(tree, (), {})
        table = evaluate(
            [self.bundle], self._rows, Catalog.from_frames([self._rows.items]), config, {}, THREADS,
            lambda done, total: self._progress.bar("evaluate", done, total),
        )  # fmt: skip
        return replace(table, native=self._native)

    @python_errors("fit")
    def save(self, path: str | Path) -> Path:
        """Save the bundle as a folder.

        Raises:
            UserError: the path exists.
        """
        target = Path(path)
        if target.exists():
            raise UserError("path", target, "a path that does not exist yet", "another path")
        own = Recommender(self.bundle, Catalog.from_table(self.bundle.items.ids.ids, self.bundle.items.attributes))
        golden = make_golden(own, StateBatch.empty(["unknown"]), self.bundle.cut, self.bundle.default_placement, 10)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:
            written = bundles.write(replace(self.bundle, golden=golden), Path(beside), datetime.now(UTC))
            shutil.move(Path(beside) / written.id, target)
        return target

    def __repr__(self) -> str:
        return f"<FittedRecommender: {self._summary}>"

    @property
    def _summary(self) -> str:
        models = ", ".join(sorted(scorer.model for scorer in self.bundle.scorers.values()))
        learned = "all rows" if self._holdout is None else f"all rows before the {self._holdout} test"
        source = "loaded bundle" if self._refit is None else learned
        return f"{models}; {len(self.bundle.items):,} items; {source}"

    def _repr_html_(self) -> str:
        """Render for a notebook: models, items, and the report of the fit."""
        report = "" if self.report is None else self.report._repr_html_()
        return f"<p><b>FittedRecommender</b>: {escape(self._summary)}</p>{report}"

    def _moment(self, now: int | None) -> int:
        return max_int(self._rows.events[TIMESTAMP]) + 1 if now is None else checked_moment(now)

    def _states(self, users: list[str]) -> StateBatch:
        return self._timeline.states(users, [max_int(self._rows.events[SEQ])] * len(users))

    def _check_users(self, ids: list[str], on_unknown: str) -> None:
        if on_unknown not in {"popular", "error"}:
            raise UserError("on_unknown", on_unknown, "popular or error", 'on_unknown="popular"')
        if on_unknown == "popular":
            return
        known = set(self._rows.events.filter(~guest_rows())[USER_ID].unique())
        unknown = [user for user in ids if user not in known]
        if unknown:
            raise UserError("users", listed(unknown), "users with events", 'on_unknown="popular", for popular items')

    def _check_items(self, ids: list[str], argument: str) -> None:
        unknown = [
            item for item in ids if not self.bundle.items.ids.index(item) and item not in self._recommender.catalog
        ]
        if unknown:
            expected = "items of the catalog, or with a positive event before the cut"
            raise UserError(argument, listed(unknown), expected, f"{argument} without them")

    def _given(self, frame: pl.DataFrame) -> Any:
        """Convert ids and frame to the kinds that the caller passed."""
        frame = frame.with_columns(
            self._user_ids.column(frame[name]) if name == USER_ID else self._item_ids.column(frame[name])
            for name in (USER_ID, ITEM_ID, "similar_id")
            if name in frame.columns
        )
        return native_frame(frame, self._native)


def native_frame(frame: pl.DataFrame, native: str) -> Any:
    """Convert a Polars frame to the library of this name."""
    if native == "pandas":
        return frame.to_pandas()
    return frame.to_arrow() if native == "pyarrow" else frame


def labelled(signal: EventLabeler, old: pl.DataFrame, fresh: pl.DataFrame) -> pl.DataFrame:
    """Label old and fresh events and number their moments."""
    whole = pl.concat([old.select(*EVENT_SCHEMA), fresh.select(*EVENT_SCHEMA)])
    return number_moments(moment_stamps(signal.label(whole)))
