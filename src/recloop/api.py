"""Python API: fit on a data frame, recommend, save a bundle, open a project.

rec = recloop.fit(events)                       # pandas, Polars or Arrow; results are of the same kind
rec.recommend(["u1", "u2"], n=10)
shop = recloop.open("shop"); shop.update(); shop.evaluate()
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import narwhals as nw
import numpy as np
import polars as pl

from recloop import __version__, loop, progress
from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.data import rejected_rows
from recloop.data.clean import clean
from recloop.data.frames import as_polars, config_for, frame_as_table, named, objects
from recloop.data.read import parse_events
from recloop.data.split import LEAVE_ONE_OUT, SplitFrames, split
from recloop.errors import UserError
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.table import EvaluationTable
from recloop.features.clock_rule import received_by
from recloop.features.dwell import DwellPercentiles
from recloop.features.labels import EventLabeler
from recloop.features.log_end import end_of
from recloop.features.moments import moment_stamps, number_moments
from recloop.features.spec import FeatureSpec
from recloop.features.state import StateBatch, StateHistory, UserState
from recloop.files import JsonTree
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.models.base import is_closed_form
from recloop.pipeline import training_steps
from recloop.pipeline.training_steps import COUNTS_BUNDLE, THREADS, train_window, with_network
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.recommend import similar_items as similar
from recloop.recommend.catalog import Catalog
from recloop.recommend.fusion import fuse
from recloop.recommend.recommender import Recommender, check_golden, make_golden
from recloop.records import EVENT_SCHEMA, ITEM_ID, SEQ, TIMESTAMP, USER_ID, Query, max_int, now
from recloop.serve import offline
from recloop.settings import build
from recloop.storage.event_log import object_text
from recloop.training import baselines
from recloop.training.dataset import make_tables, train_data, validation_data
from recloop.training.fit import fit_network

P = ParamSpec("P")
T = TypeVar("T")


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


def fit(
    events: Any, items: Any = None, users: Any = None, model: str = "covisitation",
    config: Mapping[str, Any] | None = None,
) -> FittedRecommender:  # fmt: skip
    """Fit a recommender on a log in memory.

    Args:
        events: A frame with user_id, item_id, timestamp, and optionally event_type, value, quantity, group_id,
            event_id; other names by ``config["data"]["columns"]``.
        items, users: Frames with item_id / user_id and attributes.
        model: ``popular``, ``bought_before``, ``covisitation``; a built-in network or ``package.module:Class``
            (``recloop[train]``); or ``auto``: the baselines with fusion weights chosen on validation.
        config: Tables of recloop.toml as a mapping.

    Raises:
        UserError: a column, a value or a setting is invalid.
    """
    frame = as_polars(events)
    settings = config_for(frame, config or {})
    catalogue = objects(items, ITEM_ID, 0)
    people = objects(users, USER_ID, 0 if catalogue is None else len(catalogue))
    first = sum(len(part) for part in (catalogue, people) if part is not None)
    raw = parse_events([frame_as_table(frame, "events")], settings.data)
    too_many = rejected_rows.excess(raw.rejects, raw.read, settings.clean.max_rejected)
    if too_many is not None:
        raise too_many
    cleaned = clean(raw.frame, settings, first, catalogue)
    if cleaned.excessive:
        raise cleaned.excessive[0]
    rows = FittedData(cleaned.valid_rows, catalogue, people, split(cleaned.valid_rows, settings.split), cleaned.dwell)
    return FittedRecommender(_learned(settings, rows, model), rows, settings, nw.get_native_namespace(events).__name__)


def load(path: str | Path, events: Any = None) -> FittedRecommender:
    """Load a saved bundle and check its hashes and golden lists; torch is not needed.

    Args:
        events: The log behind the users' states; without it all users are new.
    """
    bundle = bundles.load(Path(path))
    check_golden(bundle)
    spec = bundle.spec
    empty = pl.DataFrame(schema={**EVENT_SCHEMA})
    settings = build({"events": spec.to_json()["events"], "clean": spec.clean.model_dump(mode="json"),
                      "data": {"timezone": spec.timezone}}, (), {})  # fmt: skip
    catalogue = bundle.items
    items = pl.DataFrame(
        {ITEM_ID: catalogue.ids.ids, "attributes": [object_text(row) for row in catalogue.attributes]}
    ).with_columns(
        pl.lit(0, pl.Int64).alias(SEQ), pl.lit(value=False).alias("hidden"), pl.lit(value=False).alias("deleted")
    )
    labelled = _labelled(EventLabeler.from_spec(spec), empty, empty)
    native = "polars" if events is None else nw.get_native_namespace(events).__name__
    made = FittedRecommender(bundle, FittedData(labelled, items, None, None), settings, native)
    if events is not None:
        made.observe(events)
    return made


def _refuse_k(method: Callable[P, T]) -> Callable[P, T]:
    """Make a method raise a TypeError that names ``n`` if ``k`` is passed."""

    @functools.wraps(method)
    def checked(*arguments: P.args, **named: P.kwargs) -> T:
        if "k" in named:
            raise TypeError(f"{method.__name__}: k={named['k']}; expected n, the new name of k; fix: n={named['k']}")
        return method(*arguments, **named)

    return checked


class FittedRecommender:
    """Bundle with a log in memory; ``observe`` updates states but not weights."""

    def __init__(self, bundle: Bundle, rows: FittedData, config: Config, native: str) -> None:
        self.bundle = bundle
        self._rows, self._config, self._native = rows, config, native
        self._signal = EventLabeler.from_spec(bundle.spec)
        self._recommender = Recommender(bundle, Catalog.from_frames([rows.items]), THREADS)
        self._timeline = StateHistory(rows.events, rows.users)

    @_refuse_k
    def recommend(
        self, users: Sequence[str], n: int = 10, filter_viewed: bool | None = None,
        items_to_recommend: Sequence[str] | None = None, now: int | None = None,
    ) -> Any:  # fmt: skip
        """Recommend lists as a frame: user_id, item_id, score, rank, source.

        Args:
            filter_viewed: Leave out items that a user had before; None: the project's ``split.filter_seen``.
            items_to_recommend: The only items that lists may contain.
            now: int64 microseconds UTC; None: just after the newest valid event (wrong clocks are ignored).

        Raises:
            UserError: ``n`` outside 1 to 1000.
        """
        _check_n(n)
        users = [str(user) for user in users]
        events = self._rows.events
        newest = max_int(events[SEQ])
        moment = max_int(events[TIMESTAMP]) + 1 if now is None else now
        recommender = self._recommender
        if filter_viewed is not None:
            recommender = self._with_seen(filter_viewed)
        name = self.bundle.default_placement
        placement = recommender.placement(name)
        queries = [Query(user_id=user, now=moment, n=n, placement=name) for user in users]
        encoded = recommender.encode(self._timeline.states(users, [newest] * len(users)), [moment] * len(users))
        allowed = recommender.candidate_mask(encoded, queries, placement)
        fallback = None
        if items_to_recommend is not None:
            shown = np.zeros_like(allowed.mask)
            shown[self.bundle.items.ids.lookup(map(str, items_to_recommend))] = True
            allowed = replace(allowed, mask=allowed.mask & shown)
            fallback = ("segment", "popular")
        recalled = recommender.recall(encoded, allowed, placement.weights)
        fused = fuse(recalled, placement.weights, n, placement.fusion_constant)
        answers = recommender.assemble(encoded, allowed, fused, queries, placement, fallback)
        rows = [
            (query.user_id, slot.item_id, slot.score, rank, slot.source)
            for query, answer in zip(queries, answers, strict=True)
            for rank, slot in enumerate(answer.slots, 1)
        ]
        schema = {USER_ID: pl.String, ITEM_ID: pl.String, "score": pl.Float64, "rank": pl.Int64, "source": pl.String}
        return self._given(pl.DataFrame(rows, schema=schema, orient="row"))

    @_refuse_k
    def similar_items(self, items: Sequence[str], n: int = 10) -> Any:
        """List similar items of each item: item_id, similar_id, score, rank, source.

        The lists equal those of ``GET /v1/items/{id}/similar``.

        Raises:
            UserError: an item is neither in the bundle's table nor in the catalog, or ``n`` is outside 1 to 1000.
        """
        _check_n(n)
        ids = [str(item) for item in items]
        for item in ids:
            if not self.bundle.items.ids.index(item) and item not in self._recommender.catalog:
                expected = "an item of the catalog, or one with a positive event before the cut"
                raise UserError("item_id", item, expected, "rec.recommend(...)")
        queries = [
            Query(user_id="", now=self.bundle.cut, n=n, placement=similar.LIST_KIND, item_id=item) for item in ids
        ]
        states = StateBatch.from_states([""] * len(ids), [UserState()] * len(ids))
        rows = [
            (query.item_id, slot.item_id, slot.score, rank, slot.source)
            for query, answer in zip(queries, self._recommender.recommend(states, queries, False), strict=True)
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

    def observe(self, more: Any) -> None:
        """Add events to the users' states; weights do not change.

        Causal rules run as on arrival. Stamps are compared with this machine's clock, or with the end of all rows if
        that is later.
        """
        frame = as_polars(more)
        fresh = parse_events(
            [frame_as_table(frame, "events")], config_for(frame, {"data": named(self._config.data, frame)}).data
        ).frame
        old = self._rows.events
        last = max_int(old[SEQ])
        fresh = fresh.select(pl.int_range(last + 1, last + 1 + pl.len(), dtype=pl.Int64).alias(SEQ), pl.all())
        end = end_of(pl.concat([old.select(TIMESTAMP, USER_ID), fresh.select(TIMESTAMP, USER_ID)]))
        fresh = received_by(fresh, max(end, now()))
        believed = fresh.filter(self._signal.causal_rule(fresh, old.select(*EVENT_SCHEMA)).is_null())
        self._rows = replace(self._rows, events=_labelled(self._signal, old.select(*EVENT_SCHEMA), believed))
        self._timeline = StateHistory(self._rows.events, self._rows.users)

    def evaluate(self, protocol: str = "temporal") -> EvaluationTable:
        """Evaluate on the held-out part of the log; notebooks render the table.

        Args:
            protocol: The value of ``config["split"]["protocol"]`` that split the log.

        Raises:
            UserError: the bundle was loaded and has no held-out part, or the log was split by another protocol.
        """
        if self._rows.parts is None:
            raise UserError("evaluate", "a loaded bundle", "the log it was fitted on", "recloop.fit(events).evaluate()")
        if protocol != self._config.split.protocol:
            expected = f"{self._config.split.protocol}, the protocol of the fit"
            raise UserError("split.protocol", protocol, expected, 'recloop.fit(events, config={"split": {...}})')
        config = build({**self._config.model_dump(mode="json", by_alias=True)}, [f"split.protocol={protocol}"], {})
        return evaluate([self.bundle], self._rows, Catalog.from_frames([self._rows.items]), config, {}, THREADS)

    def save(self, path: str | Path) -> Path:
        """Save the bundle as a folder.

        Raises:
            UserError: the path exists.
        """
        target = Path(path)
        if target.exists():
            raise UserError("path", target, "a path that does not exist yet", "another path")
        own = Recommender(self.bundle, Catalog.from_table(self.bundle.items.ids.ids, self.bundle.items.attributes))
        golden = make_golden(own, ["unknown"], [UserState()], self.bundle.cut, self.bundle.default_placement, 10)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as beside:
            written = bundles.write(replace(self.bundle, golden=golden), Path(beside), datetime.now(UTC))
            shutil.move(Path(beside) / written.id, target)
        return target

    def _with_seen(self, filter_seen: bool) -> Recommender:
        policy = replace(self.bundle.policy, filter_seen=filter_seen)
        return Recommender(replace(self.bundle, policy=policy), self._recommender.catalog, THREADS)

    def _given(self, frame: pl.DataFrame) -> Any:
        """Convert to the kind of frame that the caller passed."""
        if self._native == "pandas":
            return frame.to_pandas()
        return frame.to_arrow() if self._native == "pyarrow" else frame


def _check_n(n: int) -> None:
    if not 1 <= n <= 1000:
        raise UserError("n", n, "a whole number from 1 to 1000", "rec.recommend(users, n=10)")


def _learned(config: Config, rows: FittedData, model: str) -> Bundle:
    parts = rows.parts
    assert parts is not None
    before = pl.concat([parts.train, parts.valid]).sort(SEQ)
    tables = make_tables(FeatureSpec.from_config(config, rows.dwell), before, parts.cut, rows.items, rows.users)
    temporal = config.split.protocol != LEAVE_ONE_OUT
    arrays = validation_data(tables, parts.train, parts.valid, None, temporal)
    network_wanted = model != "auto" and not is_closed_form(model)
    options = config.model.options if model == config.model.name else {}
    made, scorers = baselines.fit_counts(arrays, tables, "" if model == "auto" or network_wanted else model, options)
    manifest = Manifest(
        recloop=__version__,
        model=ModelSpec(COUNTS_BUNDLE, {}),
        data=TrainingRows(
            cut=parts.cut,
            until_seq=max_int(before[SEQ]),
            held_seq=0,
            protocol=config.split.protocol,
        ),
        train=Training(seed=config.train.seed, epochs=0, stopped="epochs"),
    )
    bundle = baselines.draft_bundle(config, tables, arrays, made, scorers, manifest)
    if network_wanted:
        with tempfile.TemporaryDirectory() as run:
            network = fit_network(model, options, arrays, config, Path(run), config.train.time_budget_seconds)
        bundle = with_network(bundle, network)
    bundle, _ = baselines.choose_half_life_and_weights(
        bundle, config, arrays, tables, StateHistory(before, rows.users), THREADS
    )
    if arrays.history is not None:
        whole, start = train_data(tables, before, None), arrays.cut
        bundle = baselines.refit_baselines(bundle, whole, tables, options)
        if network_wanted:
            with tempfile.TemporaryDirectory() as run:
                bundle = with_network(bundle, train_window(config, network, whole, start, bundle, Path(run)))
    if model == "auto":
        return bundle
    source = next(source for source, scorer in bundle.scorers.items() if scorer.model == model)
    alone = {source: 1.0}
    placements = {name: replace(placement, weights=alone) for name, placement in bundle.policy.placements.items()}
    return replace(bundle, policy=replace(bundle.policy, placements=placements))


def _labelled(signal: EventLabeler, old: pl.DataFrame, fresh: pl.DataFrame) -> pl.DataFrame:
    whole = pl.concat([old.select(*EVENT_SCHEMA), fresh.select(*EVENT_SCHEMA)])
    return number_moments(moment_stamps(signal.label(whole)))


def open_folder(folder: str | Path = ".", **settings: Any) -> ProjectFolder:
    """Open a project folder.

    ``settings`` such as ``serve__port=9000`` override recloop.toml.
    """
    sets = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    return ProjectFolder(open_project(folder, sets))


class ProjectFolder:
    """Project folder in Python, with the commands of the command line."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def update(self) -> str:
        """Run one update and return the id of the bundle that it released.

        The first run makes its bundle live; a later one registers it. If no candidate passed the gates, the id is live's.
        """
        live = self.project.live_bundle_id()
        if live is None:
            return loop.first_run(self.project).bundle.id
        return loop.update(self.project).bundle or live

    def evaluate(self, *bundle_ids: str) -> EvaluationTable:
        """Evaluate these bundles, or the live one without an id."""
        return training_steps.evaluate_bundles(self.project, list(bundle_ids), progress.NullProgress())

    @_refuse_k
    def recommend(self, user_id: str, n: int | None = None, placement: str = "home") -> JsonTree:
        """Recommend as the service does, without a running server.

        ``n`` None: the length of the placement.
        """
        return offline.recommend(self.project, user_id, n, placement)

    def status(self) -> JsonTree:
        """Return the live, shadow and experiment bundles."""
        return loading.status(self.project)
