"""Into place: after a pass snapshot, bundle, release row and data are renamed in, the watermark last; else nothing moves."""

from __future__ import annotations

import shutil

import polars as pl

from recloop import bundle as bundles
from recloop import release, standing
from recloop.backends import locks, open_control, open_log, snapshots
from recloop.backends.archive import Archive
from recloop.collect.append import publish
from recloop.errors import Locked
from recloop.features.signal import Signal
from recloop.later.run import Run
from recloop.recommend.states import fold_all, fold_on
from recloop.records import EVENT_SCHEMA, RULE


def settle(run: Run) -> str | None:
    """6. After a pass everything is renamed into place, the watermark last; else nothing moves. The new bundle's id."""
    verdict = run.verdict
    if verdict != "registered":
        run.journal.close(verdict)
        return None
    name = str(run.journal.facts("finish")["bundle"])
    if not run.journal.has("publish"):
        _snapshots(run)
        run.journal.done("publish")
    made, target = run.folder / "bundles" / name, run.project.bundles / name
    if made.exists():
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    control = open_control(run.config.stores.control, run.project.root)
    if name not in {row.bundle for row in control.releases()}:
        sha256 = bundles.manifest_hash(target)
        release.register(
            control, name, sha256, by="recloop update", reason="passed its gate", at=standing.now(),
            evidence={"gates": run.gates},
        )  # fmt: skip
    publish(run.folder / "data", run.project.data, {"windows": run.journal.facts("check")["windows"]})
    _forget_snapshots(run)
    run.journal.close(verdict)
    return name


def _snapshots(run: Run) -> None:
    """Every user's state as of the new watermark, for each meaning of events in use, before the manifest names it."""
    log = open_log(run.config.stores.log, run.project.root)
    try:
        fresh = log.events(after=run.watermark, until=run.until).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
        users = log.users(run.watermark, run.until)
    finally:
        log.close()
    for spec in {spec.state_key: spec for spec in (run.live.spec, run.spec)}.values():
        path = run.project.store / snapshots.name(run.until, spec.state_key)
        before = run.project.store / snapshots.name(run.watermark, spec.state_key)
        signal = Signal.of(spec)
        if path.exists():
            continue
        if before.exists():
            stored = snapshots.Snapshot(before)
            try:
                snapshots.write(path, fold_on(stored, signal.label(fresh), users), run.until, spec.state_key)
            finally:
                stored.close()
        else:
            rows = pl.concat([Archive(run.project.data).events(), fresh])
            snapshots.write(path, fold_all(signal.label(rows), run.data.users), run.until, spec.state_key)


def _forget_snapshots(run: Run) -> None:
    """The files of earlier watermarks, where no server reads one."""
    try:
        with locks.writer_lock(run.project.root, "update"):
            for old in run.project.store.glob("snapshots-*.db"):
                if not old.name.startswith(f"snapshots-{run.until}-"):
                    old.unlink()
    except Locked:
        return
