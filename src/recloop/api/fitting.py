"""Fit on data frames, and load a saved bundle."""

from __future__ import annotations

import functools
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from recloop import __version__
from recloop import bundle as bundles
from recloop.api.fit_input import HOLDOUTS, FitInput, Holdout, checked_columns, choose_columns, read_input
from recloop.api.fit_report import FitReport
from recloop.api.fitted_recommender import FittedData, FittedRecommender, labelled
from recloop.api.ids import IdType
from recloop.api.messages import python_errors
from recloop.api.text_progress import TextProgress
from recloop.bundle import Bundle
from recloop.config import LEAVE_ONE_OUT, Config
from recloop.data import rejected_rows
from recloop.data.clean import CleanResult, clean
from recloop.data.frames import as_polars
from recloop.data.read import OPTIONAL_COLUMNS
from recloop.data.split import SplitFrames, holdout_rows, n_users, split
from recloop.errors import UserError
from recloop.features.labels import EventLabeler
from recloop.features.log_end import end_of
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.init.log_input import GuessedSetting
from recloop.init.template import MIN_REPEAT_SHARE
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.models.base import TrainData, is_closed_form
from recloop.pipeline.model_fitting import COUNTS_BUNDLE, THREADS, train_window, with_network
from recloop.pipeline.step_reports import report_features
from recloop.progress import ConsoleProgress, NullProgress, Progress
from recloop.recommend.golden import check_golden
from recloop.records import EVENT_SCHEMA, ITEM_ID, LABEL, SEQ, STAMP, USER_ID, guest_rows, max_int
from recloop.settings import build
from recloop.storage.event_rows import object_text
from recloop.training import baselines, ranker
from recloop.training.closed_form import further_models
from recloop.training.dataset import ItemUserTables, make_tables, train_data, validation_data
from recloop.training.fit import fit_network

ID_TYPES = "id_types"
"""Key of manifest.json with the types of the caller's ids."""


@python_errors("fit")
def fit(
    events: Any,
    items: Any = None,
    users: Any = None,
    model: str = "covisitation",
    config: Mapping[str, Any] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    holdout: Holdout | None = None,
    progress: bool | None = None,
) -> FittedRecommender:
    """Fit a recommender on a log in memory.

    Columns, event meanings and the features of a network are guessed as by `recloop init`; ``rec.report`` lists them
    with reasons. A warning reports dropped rows.

    Args:
        events: A frame with one row per event.
        items, users: Frames with ids and attributes. Attributes filter lists and become features of a network.
        model: ``popular``, ``bought_before``, ``covisitation``; a built-in network or ``package.module:Class``
            (``recloop[train]``); or ``auto``: the baselines with fusion weights chosen on validation, and a ranker where it
            is better there.
        config: Tables of recloop.toml as a mapping; given settings are not guessed.
        columns: The frame's columns by our names: ``{"user_id": "customer", "timestamp": "bought_at"}``.
        holdout: None: learn all rows. ``temporal`` keeps the last tenth for `evaluate`, ``leave-one-out`` the last
            positive of each user. ``config["split"]["protocol"]`` does the same.
        progress: Print steps to stderr; None: on a terminal or in a notebook.

    Raises:
        UserError: a frame, a column, a value or a setting is invalid.
    """
    settings = config or {}
    if holdout is None and isinstance(settings.get("split"), Mapping):
        holdout = settings["split"].get("protocol")
    if holdout is not None and holdout not in HOLDOUTS:
        raise UserError("holdout", holdout, f"None, {' or '.join(HOLDOUTS)}", 'holdout="temporal"')
    reports = _progress(progress)
    source = read_input(events, items, users, model, settings, columns or {})
    fitted = learn(source, reports, holdout)
    assert fitted.report is not None
    if fitted.report.warning:
        warnings.warn(fitted.report.warning, UserWarning, stacklevel=3)
    return fitted


def learn(source: FitInput, progress: Progress, holdout: Holdout | None) -> FittedRecommender:
    """Clean, split and learn a log.

    Raises:
        UserError: a rule removes too many rows, or the log cannot be split.
    """
    settings = source.config(holdout)
    versions = [part for part in (source.items, source.users) if part is not None]
    cleaned = clean(source.events.frame, settings, sum(map(len, versions)), source.items)
    if cleaned.excessive:
        raise cleaned.excessive[0]
    settings, guesses = _guess_filter_seen(source, settings, cleaned)
    valid_rows = cleaned.valid_rows
    parts = split_whole(valid_rows, settings) if holdout is None else split(valid_rows, settings.split)
    report = _report(source, cleaned, parts, guesses)
    progress.say("collect", report.rows_line)
    rows = FittedData(valid_rows, source.items, source.users, parts, cleaned.dwell)
    bundle = _bundle(settings, rows, source.model, progress)
    id_types = {USER_ID: str(source.user_ids.dtype), ITEM_ID: str(source.item_ids.dtype)}
    bundle = replace(bundle, manifest=replace(bundle.manifest, other_keys={ID_TYPES: id_types}))
    return FittedRecommender(
        bundle, rows, settings, source.native, source.user_ids, source.item_ids, holdout, report, progress,
        functools.partial(learn, source, progress),
    )  # fmt: skip


def split_whole(valid_rows: pl.DataFrame, config: Config) -> SplitFrames:
    """Split a log that is learned whole: empty test, cut after the last row.

    The last moments of some users are validation, as under a temporal split.

    Raises:
        UserError: no row is valid or positive.
    """
    valid_rows = valid_rows.sort(SEQ)
    if not len(valid_rows):
        raise UserError("data.events", "0 valid rows", "rows that pass the rules of [clean]", "recloop doctor")
    if not (valid_rows[LABEL] > 0).any():
        fix = "recloop doctor --signals, then name a type under events.positive"
        raise UserError(
            "events", "no row is positive: see [events]", f"a target among the {len(valid_rows):,} rows", fix
        )
    held_moments = holdout_rows(valid_rows, config.split.validation_users, n_users(valid_rows) // 2)
    keys = [USER_ID, STAMP]
    valid = valid_rows.join(held_moments, on=keys, how="semi", maintain_order="left")
    train = valid_rows.join(held_moments, on=keys, how="anti", maintain_order="left")
    return SplitFrames(train, valid, valid_rows.clear(), end_of(valid_rows, STAMP) + 1)


@python_errors("fit")
def load(path: str | Path, events: Any = None, columns: Mapping[str, str] | None = None) -> FittedRecommender:
    """Load a saved bundle and check its hashes and golden lists; torch is not needed.

    Args:
        events: The log behind the users' states; without it all users are new.
        columns: The frame's columns by our names, as in `fit`.
    """
    bundle = bundles.load(Path(path))
    check_golden(bundle)
    spec = bundle.spec
    tree: dict[str, Any] = {"events": spec.to_json()["events"], "clean": spec.clean.model_dump(mode="json")}
    names = {name: name for name in OPTIONAL_COLUMNS}  # of frames that `observe` gets later
    if events is not None:
        names = checked_columns(columns or {})
        guesses = choose_columns(as_polars(events), names, {})
        names |= {field: guess.name for field, guess in guesses.items()}
    settings = build({**tree, "data": {"timezone": spec.timezone, "columns": names}}, (), {})
    catalogue = bundle.items
    items = pl.DataFrame(
        {ITEM_ID: catalogue.ids.ids, "attributes": [object_text(row) for row in catalogue.attributes]}
    ).with_columns(
        pl.lit(0, pl.Int64).alias(SEQ), pl.lit(value=False).alias("hidden"), pl.lit(value=False).alias("deleted")
    )
    empty = pl.DataFrame(schema={**EVENT_SCHEMA})
    rows = FittedData(labelled(EventLabeler.from_spec(spec), empty, empty), items, None, None)
    native = "polars" if events is None else nw.get_native_namespace(events).__name__
    stored = bundle.manifest.other_keys.get(ID_TYPES, {})
    user_ids, item_ids = (IdType(_dtype(stored.get(name, "String"))) for name in (USER_ID, ITEM_ID))
    loaded = FittedRecommender(bundle, rows, settings, native, user_ids, item_ids)
    if events is not None:
        loaded.observe(events)
    return loaded


def _dtype(name: str) -> pl.DataType:
    integers = {
        str(kind): kind for kind in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
    }
    return integers.get(name, pl.String)()


def _progress(shown: bool | None) -> Progress:
    """Reports to stderr if wanted; by default on a terminal or in a notebook."""
    in_notebook = "ipykernel" in sys.modules
    if shown is None:
        shown = sys.stderr.isatty() or in_notebook
    if not shown:
        return NullProgress()
    return TextProgress() if in_notebook else ConsoleProgress()


def _guess_filter_seen(
    source: FitInput, settings: Config, cleaned: CleanResult
) -> tuple[Config, tuple[GuessedSetting, ...]]:
    """Leave seen items out of the lists of a log with few repeats, unless given."""
    if settings.split.protocol == LEAVE_ONE_OUT or "filter_seen" in source.tree.get("split", {}):
        return settings, source.guesses
    positive = cleaned.valid_rows.filter((pl.col(LABEL) > 0) & ~guest_rows())
    n_pairs = int(positive.select(pl.struct(USER_ID, ITEM_ID).n_unique()).item()) if len(positive) else 0
    repeats = 1 - n_pairs / max(1, len(positive))
    filter_seen = bool(len(positive)) and repeats < MIN_REPEAT_SHARE
    guess = GuessedSetting("split.filter_seen", filter_seen, f"{repeats * 100:.1f} % of positive rows are repeats")
    split_settings = settings.split.model_copy(update={"filter_seen": filter_seen})
    return settings.model_copy(update={"split": split_settings}), (*source.guesses, guess)


def _report(
    source: FitInput, cleaned: CleanResult, parts: SplitFrames, guesses: tuple[GuessedSetting, ...]
) -> FitReport:
    raw = source.events
    valid_rows = cleaned.valid_rows
    guests = valid_rows.filter(guest_rows())
    return FitReport(
        read=raw.read,
        kept=len(valid_rows),
        removed=cleaned.removed,
        left_out=raw.left_out,
        rejected=len(raw.rejects),
        reasons=rejected_rows.reasons(raw.rejects),
        users=n_users(valid_rows),
        items=valid_rows[ITEM_ID].n_unique(),
        learned=len(parts.train) + len(parts.valid),
        held_out=len(parts.test),
        guest_baskets=guests[USER_ID].n_unique(),
        guest_rows=len(guests),
        guesses=guesses,
        unused_names=source.unused_names,
    )


def _bundle(config: Config, rows: FittedData, model: str, progress: Progress) -> Bundle:
    """Learn the rows before the cut: choose on validation, then fit on all of them."""
    parts = rows.parts
    assert parts is not None
    before = pl.concat([parts.train, parts.valid]).sort(SEQ)
    tables = make_tables(FeatureSpec.from_config(config, rows.dwell), before, parts.cut, rows.items, rows.users)
    temporal = config.split.protocol != LEAVE_ONE_OUT
    arrays = validation_data(tables, parts.train, parts.valid, None, temporal)
    report_features(progress, tables, arrays)
    learned = TrainingRows(parts.cut, until_seq=max_int(before[SEQ]), held_seq=0, protocol=config.split.protocol)
    bundle = _with_counts(config, tables, arrays, model, learned)
    has_network = _is_network(model)
    if has_network:
        quiet = isinstance(progress, NullProgress)
        with tempfile.TemporaryDirectory() as run:
            seconds = config.train.time_budget_seconds
            network = fit_network(model, _options(config, model), arrays, config, Path(run), seconds, quiet)
        bundle = with_network(bundle, network)
    progress.say("learn", f"{model} on {len(before):,} rows")
    past = StateHistory(before, rows.users)
    bundle, _ = baselines.choose_half_life_and_weights(bundle, config, arrays, tables, past, THREADS, {model})
    if model == "auto":
        choice = ranker.choose_ranker(bundle, config, arrays, tables, past, THREADS)
        progress.say("learn", choice.sentence)
        bundle = choice.bundle
    if arrays.history is not None:
        whole, start = train_data(tables, before, None), arrays.cut
        bundle = baselines.refit_baselines(bundle, whole, tables, config)
        bundle = ranker.refit_statistics(bundle, whole, tables)
        if has_network:
            with tempfile.TemporaryDirectory() as run:
                bundle = with_network(bundle, train_window(config, network, whole, start, bundle, Path(run)))
    return bundle if model == "auto" else _alone(bundle, model)


def _is_network(model: str) -> bool:
    """Return True for a model that torch trains."""
    return model != "auto" and not is_closed_form(model)


def _options(config: Config, model: str) -> Mapping[str, Any]:
    """Return the configured options of a model; none for another one."""
    return config.model.options if model == config.model.name else {}


def _with_counts(config: Config, tables: ItemUserTables, arrays: TrainData, model: str, rows: TrainingRows) -> Bundle:
    """Fit the counting models and return them as a bundle without a network."""
    named = {} if model == "auto" or _is_network(model) else {model: _options(config, model)}
    custom = further_models(config, arrays.n_items, named) if model == "auto" else named
    made, scorers = baselines.fit_counts(arrays, tables, custom)
    manifest = Manifest(
        recloop=__version__,
        model=ModelSpec(COUNTS_BUNDLE, {}),
        data=rows,
        train=Training(seed=config.train.seed, epochs=0, stopped="epochs"),
    )
    return baselines.draft_bundle(config, tables, arrays, made, scorers, manifest)


def _alone(bundle: Bundle, model: str) -> Bundle:
    """Serve one model in every placement."""
    source = next(source for source, scorer in bundle.scorers.items() if scorer.model == model)
    placements = {
        name: replace(placement, weights={source: 1.0}) for name, placement in bundle.policy.placements.items()
    }
    return replace(bundle, policy=replace(bundle.policy, placements=placements))
