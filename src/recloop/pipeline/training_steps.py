"""Steps of a first run around its models: states, evaluation and release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.config import LEAVE_ONE_OUT
from recloop.data.prepare import PreparedData, PrepareResult, load
from recloop.errors import UserError
from recloop.evaluation.evaluate import evaluate
from recloop.evaluation.given_candidates import KEY as CANDIDATES_KEY
from recloop.evaluation.given_candidates import read_candidates
from recloop.evaluation.table import EvaluationTable
from recloop.features import state_store
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.files import replace_json
from recloop.pipeline import config_changes
from recloop.pipeline.model_fitting import THREADS, FittedBundle
from recloop.policy import PERSONAL
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.records import LABEL, SEQ, STAMP, USER_ID, guest_rows, hash_unit_intervals, max_int, now
from recloop.settings import dump
from recloop.storage import locks, releases

GOLDEN_CASES = 5


def init_log_and_states(project: Project, prepared: PrepareResult, data: PreparedData) -> None:
    """Start log.db after the import and write every user's state as of its last row."""
    with locks.writer_lock(project.root, "prepare"), project.open_log(write=True) as log:
        log.start_at(prepared.watermark)
        if prepared.identities:
            log.restore_identities(prepared.identities)
    project.open_archive().open_ids()  # the service finds them written
    key = FeatureSpec.from_config(project.config, data.dwell).state_key
    path = project.states_folder(prepared.watermark, key)
    state_store.write_frame(path, data.events, data.users, prepared.watermark, key)
    state_store.keep_only(project.store, [path.name])


def open_run(project: Project, started: datetime) -> Path:
    """Create the run's folder with the whole configuration in it."""
    run = project.runs / started.strftime("%Y%m%dT%H%M%S%fZ")
    run.mkdir(parents=True)
    (run / "config.toml").write_text(dump(project.config), "utf-8")
    return run


def check_prepared(project: Project, data: PreparedData) -> None:
    """Check that ``data/`` was prepared with the settings of its rows and split.

    Raises:
        UserError: a setting has changed since.
    """
    changes = config_changes.changed_since_prepare(project.config, data.manifest.config)
    if changes:
        first = changes[0]
        expected = f"{config_changes.shown(first.was)}, with which data/ was prepared"
        raise UserError(first.key, config_changes.shown(first.now), expected, "recloop prepare, then recloop train")


def evaluate_on_test(
    project: Project, candidates: Sequence[Bundle], data: PreparedData, progress: Progress
) -> EvaluationTable:
    """Evaluate these bundles on the test with the serving recommender."""
    prepared = data.manifest.protocol
    if project.config.split.protocol != prepared:
        expected = f"{prepared}, as data/ was split and the bundle was fitted"
        fix = (
            f"in a new folder with split.protocol={project.config.split.protocol}: recloop prepare, then recloop train"
        )
        raise UserError("split.protocol", project.config.split.protocol, expected, fix)
    given = project.config.evaluate.candidates
    if given and prepared != LEAVE_ONE_OUT:
        expected = f"split.protocol={LEAVE_ONE_OUT}, with one target per user, not {prepared}"
        raise UserError(CANDIDATES_KEY, given, expected, f'--set {CANDIDATES_KEY}=""')
    facts = {"split_hash": data.manifest.split_hash, "fingerprint": data.manifest.fingerprint}
    table = evaluate(
        candidates, data, Catalog.from_frames([data.items]), project.config, facts, THREADS,
        lambda done, total: progress.bar("evaluate", done, total), _stored_history(project, data),
        read_candidates(project.sources / given) if given else None,
    )  # fmt: skip
    progress.show("evaluate", table.render())
    progress.say("evaluate", table.sentence)
    return table


def _stored_history(project: Project, data: PreparedData) -> StateHistory | None:
    """Map the states that `init_log_and_states` wrote.

    None if later updates changed the rows, or if the labels differ.
    """
    if data.manifest.updates:
        return None
    key = FeatureSpec.from_config(project.config, data.dwell).state_key
    stored = state_store.current(project.states_folder(data.manifest.watermark, key), key)
    return None if stored is None else stored.history


def save_and_register(
    project: Project, learned: FittedBundle, table: EvaluationTable, data: PreparedData, run: Path, started: datetime
) -> Bundle:
    """Add golden lists, write the folder with its hash, and register the bundle."""
    bundle = replace(learned.bundle, metrics=table.bundle_metrics())
    bundle = with_golden(bundle, data.events.filter(pl.col(STAMP) < bundle.cut))
    project.bundles.mkdir(parents=True, exist_ok=True)
    control = project.open_control()
    registered_names = {row.bundle for row in control.releases()}
    bundle = bundles.write(bundle, project.bundles, started)
    while bundle.id in registered_names:  # same content in the same second: use a name one second later
        started += timedelta(seconds=1)
        bundle = bundles.write(bundle, project.bundles, started)
    network_metrics = None if learned.network is None else learned.network.metrics.to_json()
    replace_json(
        run / "metrics.json",
        {"bundle": bundle.id, "chosen": learned.chosen.to_json(), "network": network_metrics, **bundle.metrics},
    )
    table.with_bundle(bundle.id).save(project.reports)
    sha256 = bundles.manifest_hash(project.bundles / bundle.id)
    releases.register(control, bundle.id, sha256, by="recloop train", reason="trained", at=now())
    return bundle


def with_golden(bundle: Bundle, rows: pl.DataFrame) -> Bundle:
    """Add golden cases: states of four users over these rows, and an anonymous one."""
    active_users = rows.filter((pl.col(LABEL) > 0) & ~guest_rows())[USER_ID].unique()
    order = np.argsort(hash_unit_intervals("golden", active_users.to_list()), kind="stable")
    users = active_users[order[: GOLDEN_CASES - 1]].to_list()
    own_rows = rows.filter(pl.col(USER_ID).is_in(users))
    users = [*users, "unknown"]
    states = StateHistory(own_rows).states(users, [max_int(rows[SEQ])] * len(users))
    recommender = Recommender(bundle, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes))
    main = bundle.default_placement
    others = [name for name, one in bundle.policy.placements.items() if name != main and one.list in PERSONAL]
    golden = [case for name in (main, *others) for case in make_golden(recommender, states, bundle.cut, name, 10)]
    return replace(bundle, golden=golden)


def make_live(project: Project, bundle: Bundle, by: str, reason: str) -> None:
    """Promote a registered bundle to live."""
    control = project.open_control()
    releases.promote(control, bundle.id, to="live", by=by, reason=reason, at=now())


def evaluate_bundles(project: Project, names: Sequence[str], progress: Progress) -> EvaluationTable:
    """Evaluate these bundles (default: live) and write ``reports/evaluation.json``."""
    candidates = [project.load_bundle(name) for name in names or [""]]
    table = evaluate_on_test(project, candidates, load(project), progress)
    table.save(project.reports)
    return table
