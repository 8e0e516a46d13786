"""Release of a refresh, a gated child with live's recipe.

The setting `release.refresh` decides how:

    gate      it becomes live at once                                  (the default)
    shadow    it moves to shadow; an operator promotes it
    manual    it stays registered

It also stays registered if the gate had nothing to compare, while a bundle is in an experiment (both arms stay
unchanged), and after a rollback until an operator promotes a bundle.
"""

from __future__ import annotations

from recloop.errors import RecloopError
from recloop.pipeline.recipe import is_refresh
from recloop.pipeline.update_run import UpdateRun
from recloop.recommend import loading
from recloop.records import now
from recloop.release import transitions
from recloop.release.gate_result import NEW_ROWS, gates_to_json
from recloop.storage import ControlStore, releases

RELEASE_ORIGIN = "recloop update"


def release_refresh(run: UpdateRun, bundle: str) -> str:
    """Promote a registered child if it is a refresh; return its state.

    Repeating the call after a kill promotes only once.
    """
    control = run.project.open_control()
    mode = run.config.release.refresh
    manifest = run.project.load_manifest(bundle)
    if not is_refresh(manifest, run.live.manifest):
        run.progress.say(
            "release", f"{bundle} has another recipe than {run.live.id}; next steps: shadow, then experiment"
        )
    elif mode != "manual":
        reason = _reason_to_stay(run, control)
        if reason:
            run.progress.say("release", f"{bundle} stays registered: {reason}")
        else:
            _move(run, control, bundle, "live" if mode == "gate" else "shadow")
    return releases.read_state(control).state(bundle)


def _reason_to_stay(run: UpdateRun, control: ControlStore) -> str:
    """Return the reason to keep a refresh registered; empty if there is none."""
    machine = releases.read_state(control)
    experiments = machine.rows_in("experiment")
    if not machine.lives or machine.lives[-1] != run.live.id:
        return "another bundle became live meanwhile"
    if experiments:
        return f"{experiments[0].bundle} is in an experiment, and its arms must not change"
    if releases.ROLLED_BACK in machine.since(run.live.id).evidence:
        return "live was restored by a rollback; promote a bundle to continue"
    new_rows = next(gate for gate in run.gates if gate.name == NEW_ROWS)
    return "its gate had nothing to compare" if new_rows.value is None else ""


def _move(run: UpdateRun, control: ControlStore, bundle: str, target: releases.Target) -> None:
    try:
        before = releases.read_state(control).state(bundle)
        # The gate `golden` has compared the lists of these files.
        machine = transitions.validate(
            run.project, control, bundle, target, RELEASE_ORIGIN, with_golden=False, loaded_live=run.live
        )
        if before != "registered":  # otherwise the check has just read every file
            loading.verify_hash(run.project, machine.since(bundle))
        releases.promote(
            control, bundle, to=target, by=RELEASE_ORIGIN, reason=f"refresh of {run.live.id}: same recipe, gate passed",
            at=now(), evidence={"gates": gates_to_json(run.gates), "refresh_of": run.live.id},
        )  # fmt: skip
    except RecloopError as error:
        run.progress.say("release", f"{bundle} was not moved to {target}: {error}")
