"""Step 6 of an update: publication of its files.

If the gates passed, it moves states, bundle, release row and data into the project, the watermark last. Otherwise it
changes nothing.
"""

from __future__ import annotations

import msgspec

from recloop import bundle as bundles
from recloop.data.append import publish_data, remove_superseded
from recloop.errors import Locked
from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.files import move
from recloop.pipeline.refresh import release_refresh
from recloop.pipeline.update_run import UpdateRun
from recloop.recommend.user_states import write_states
from recloop.records import now
from recloop.release.gate_result import gates_to_json
from recloop.storage import ControlStore, Retraction, inbox, locks, releases
from recloop.storage.data_manifest import WindowLoss


def publish_update(run: UpdateRun) -> tuple[str, str] | None:
    """Step 6. Publish a passed update, the watermark last, and release a refresh.

    An update that did not pass changes nothing.

    Returns:
        Id and state of the new bundle; None if none was registered.
    """
    verdict = run.verdict
    if verdict != "registered":
        run.journal.close(verdict)
        return None
    name = str(run.journal.facts("finish")["bundle"])
    if not run.journal.is_done("publish"):
        _write_states(run)
        run.journal.record("publish")
    folder = run.folder / "bundles" / name
    target = run.project.bundles / name
    move(folder, target)
    control = run.project.open_control()
    if name not in {row.bundle for row in control.releases()}:
        sha256 = bundles.manifest_hash(target)
        releases.register(
            control, name, sha256, by="recloop update", reason="passed its gate", at=now(),
            evidence={"gates": gates_to_json(run.gates)},
        )  # fmt: skip
    windows = msgspec.convert(run.journal.facts("check")["windows"], tuple[WindowLoss, ...])
    publish_data(run.folder / "data", run.project.data, windows)
    run.project.open_archive().open_ids()  # the service finds them written
    _submit_retractions(run, control)
    _apply_without_server(run, control)
    state = release_refresh(run, name)
    run.journal.close(verdict)
    return name, state


def _write_states(run: UpdateRun) -> None:
    """Write user states at the new watermark for each set of event labels in use.

    The manifest names the watermark afterwards.
    """
    archive = run.project.open_archive()
    with run.project.open_log() as log:
        for spec in {spec.state_key: spec for spec in (run.live.spec, run.spec)}.values():
            key = spec.state_key
            path = run.project.states_folder(run.until, key)
            if not path.exists():
                earlier = state_store.current(run.project.states_folder(run.watermark, key), key)
                write_states(path, run.until, archive, log, EventLabeler.from_spec(spec), key, earlier)


def _submit_retractions(run: UpdateRun, control: ControlStore) -> None:
    """Send retractions of retrospective rules to the log's writer; idempotent."""
    retracted = run.journal.facts("collect")["taken_back"]
    if retracted:
        control.submit([Retraction(seq, rule) for seq, rule in retracted], by="recloop update", at=now())
        run.progress.say("collect", f"retracted {len(retracted):,} rows that serving had counted")


def _apply_without_server(run: UpdateRun, control: ControlStore) -> None:
    """Apply pending retractions and delete older states if no server runs."""
    try:
        with locks.writer_lock(run.project.root, "update"):
            with run.project.open_log(write=True) as log:
                inbox.apply_inbox(control, log)
            state_store.forget(run.project.store, run.until)
            remove_superseded(run.project.data)
    except Locked:
        return
