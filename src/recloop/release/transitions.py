"""Operator moves (promote, rollback, reject) and the requirements of each step.

A bundle registered by `update` has passed its gate. A bundle registered by `train` has not: with a live bundle, it
cannot move before its gate ran. `recloop promote` runs the gate (`recloop.pipeline.promotion`); a server does not.

Step shadow is earned by requests that the bundle scored after live's response, if live scored them again with the same
list. Step experiment is earned by users with a closed outcome in both arms and by evidence of no harm: a loss above the
plan's margin is ruled out (`recloop.monitoring.experiment_verdict`). Without ``to``, a bundle becomes live only if both
steps are earned. An operator who names the step and gives a reason may override; the row records the missing steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recloop.bundle import Bundle
from recloop.errors import BundleError, Locked, Refused, UserError
from recloop.files import JsonTree
from recloop.monitoring import experiment
from recloop.monitoring.experiment_plan import EVIDENCE, Plan
from recloop.monitoring.experiment_verdict import Verdict
from recloop.monitoring.shadow_requirement import shadow_requirement
from recloop.project import Project
from recloop.recommend.bundle_check import check_in_child
from recloop.recommend.loading import check_servable, open_bundle, verify_hash
from recloop.records import now
from recloop.release.assignment import CANDIDATE, LIVE
from recloop.storage import ControlStore, audit, locks, releases
from recloop.storage.control import ReleaseRow

NOT_DEPLOYED = ("registered", "checked")
"""States in which the gate is checked; later states were reached by passing or overriding it."""
MIN_SHADOW_REQUESTS = 100
"""Requests that a bundle must score in shadow before an experiment."""
MIN_USERS_PER_ARM = 200
"""Users per arm with a closed outcome that live requires (docs/definitions/experiments.md)."""
CHECK_TIMEOUT_SECONDS = 60.0
"""Seconds to wait for a running server to check a bundle."""


@dataclass(frozen=True)
class StepEvidence:
    """Measured evidence of the steps shadow and experiment.

    Attributes:
        verdict: Verdict of the experiment; None if it was not asked for or has no result.
        problem: Reason why the experiment has no result.
    """

    shadow_requests: int
    replica_mismatches: int
    verdict: Verdict | None = None
    problem: str = ""


MeasureSteps = Callable[[Project, str, bool], StepEvidence]


def measure_steps(project: Project, bundle: str, with_experiment: bool) -> StepEvidence:
    """Measure the evidence of a bundle's steps from decisions and events."""
    with project.open_decisions() as store:
        counts = store.shadow_requests(bundle), store.replica_mismatches(bundle)
    if not with_experiment:
        return StepEvidence(*counts)
    try:
        return StepEvidence(*counts, verdict=experiment.analyze(project, bundle))
    except UserError as error:  # never in an experiment, or its row has no plan
        return StepEvidence(*counts, problem=str(error))


def validate(
    project: Project,
    control: ControlStore,
    bundle: str,
    to: str = "",
    by: str = "",
    with_golden: bool = True,
    loaded_live: Bundle | None = None,
) -> releases.ReleaseState:
    """Check that a move is possible, and the bundle if needed; return the new state.

    Args:
        with_golden: False if the caller has just compared the golden lists of these files.
        loaded_live: The live bundle, if the caller has loaded it.

    Raises:
        UserError: unknown bundle or state, or an experiment plan with too few users in an arm.
        Refused: the bundle failed its check, or the move is not allowed.
    """
    target = _target(bundle, to)
    _share(project, target)
    machine = releases.read_state(control)
    if machine.state(bundle) == "registered":
        _check(project, control, machine.since(bundle), by or audit.command("promote"), with_golden, loaded_live)
        machine = releases.read_state(control)
    releases.allowed(machine, bundle, target)
    return machine


def needs_gate(control: ControlStore, bundle: str) -> bool:
    """Return True if an undeployed bundle has no gate result and another is live."""
    machine = releases.read_state(control)
    return bool(machine.lives) and machine.state(bundle) in NOT_DEPLOYED and _gates(control, bundle) is None


def promote(
    project: Project,
    bundle: str,
    to: str = "",
    reason: str = "",
    by: str = "",
    at: int = 0,
    gates: Sequence[Mapping[str, Any]] | None = None,
    measure: MeasureSteps = measure_steps,
) -> JsonTree:
    """Promote a registered bundle to ``to``, by default to live.

    The default requires that the steps shadow and experiment are earned.

    Args:
        by: Origin of the move; empty for this command line.
        at: Time, int64 microseconds; 0 for the current time.
        gates: Gates that were run for this move, stored in the row's evidence; None if they ran before or must run.
        measure: Measures the steps; a service measures them in a child process.

    Raises:
        UserError: unknown bundle or state, or an experiment plan with too few users in an arm.
        BundleError: the bundle's files changed since the check.
        Refused: the check or gate failed, the gate has not run, a step is not earned, the move is not allowed, or
            another process moved a release meanwhile.
    """
    control = project.open_control()
    by = by or audit.command("promote")
    target = _target(bundle, to)
    at = at or now()
    machine = validate(project, control, bundle, target, by)
    if gates is None and needs_gate(control, bundle):
        explanation = f"`recloop train` made {bundle}; run its gate: recloop promote {bundle} --to {target}"
        raise Refused("gate", "not run", "passed", explanation)
    verify_hash(project, machine.since(bundle))
    missing, earned = _unmet_requirements(project, machine, bundle, target, measure)
    if target == "experiment":
        earned[EVIDENCE] = Plan.from_config(project.config.release, bundle, at).to_evidence()
    if gates is not None:
        earned["gates"] = list(gates)
    if machine.state(bundle) in NOT_DEPLOYED:
        judged = gates if gates is not None else _gates(control, bundle) or []
        missing = [*_failed(judged), *missing]
    if missing and not (to and reason):
        first_missing = missing[0]
        explanation = f"{first_missing.reason}; to override: recloop promote {bundle} --to {target} --reason TEXT"
        raise Refused(first_missing.gate, first_missing.number, first_missing.threshold, explanation)
    if missing:
        earned["waived_requirements"] = [
            f"{requirement.gate}={requirement.number}, threshold {requirement.threshold}" for requirement in missing
        ]
    return _result(releases.promote(control, bundle, to=target, by=by, reason=reason, at=at, evidence=earned))


def _target(bundle: str, to: str) -> releases.Target:
    for target in releases.TARGETS:
        if target == (to or "live"):
            return target
    raise UserError("--to", to, f"one of {', '.join(releases.TARGETS)}", f"recloop promote {bundle} --to shadow")


def _gates(control: ControlStore, bundle: str) -> list[JsonTree] | None:
    """Gates of a bundle's last evaluation; None if they never ran."""
    rows = (row for row in reversed(control.releases()) if row.bundle == bundle)
    return next((row.evidence["gates"] for row in rows if "gates" in row.evidence), None)


def _failed(gates: Sequence[Mapping[str, Any]]) -> list[Refused]:
    return [
        Refused(f"gate {gate['name']}", gate["value"], gate["threshold"], gate.get("note") or "the gate did not pass")
        for gate in gates
        if not gate["ok"]
    ]


def rollback(project: Project, reason: str = "", by: str = "", at: int = 0) -> JsonTree:
    """Restore the previous live bundle after verifying its files.

    Raises:
        Refused: no bundle was live before, or another process moved a release meanwhile.
        BundleError: the bundle may not be served; nothing was changed.
    """
    control = project.open_control()
    previous = releases.lives(control)[1:2]
    if previous:
        verify_hash(project, previous[0])
    return _result(releases.rollback(control, by=by or audit.command("rollback"), reason=reason, at=at or now()))


def reject(project: Project, bundle: str, reason: str, by: str = "", at: int = 0) -> JsonTree:
    """Exclude a bundle permanently.

    Raises:
        UserError: unknown bundle or empty reason.
        Refused: the bundle is live or already refused, or another process moved a release meanwhile.
    """
    if not reason.strip():
        raise UserError("--reason", reason, "a reason for this rejection", f"recloop reject {bundle} --reason TEXT")
    control = project.open_control()
    return _result(releases.reject(control, bundle, by=by or audit.command("reject"), reason=reason, at=at or now()))


def _result(row: ReleaseRow) -> JsonTree:
    return {
        "bundle": row.bundle, "from": row.from_, "to": row.to, "generation": row.generation, "evidence": row.evidence,
    }  # fmt: skip


def _share(project: Project, target: str) -> None:
    """Check that the target's share of users is not empty."""
    settings = project.config.release
    if target == "experiment":
        Plan.from_config(settings, "", 0)
    if target == "shadow" and settings.shadow_share == 0:
        raise UserError("release.shadow_share", 0.0, "a share above 0", "edit release.shadow_share in recloop.toml")


def _check(
    project: Project, control: ControlStore, row: ReleaseRow, by: str, with_golden: bool, loaded_live: Bundle | None
) -> None:
    """Have a registered bundle checked by the running server, or check it here.

    Raises:
        Refused: the bundle may not be served and was excluded permanently, or the server did not check it in time.
    """
    deadline = time.monotonic() + CHECK_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            with locks.writer_lock(project.root, "promote"):
                _check_here(project, control, row, by, with_golden, loaded_live)
                return
        except Locked:
            time.sleep(0.1)
        state, latest = releases.read_state(control).states[row.bundle]
        if state == "refused":
            raise Refused("check", "failed", "passed", latest.reason)
        if state != "registered":
            return
    raise Refused(
        "state", "registered", "checked", f"the server did not check it within {CHECK_TIMEOUT_SECONDS:.0f} s; try again"
    )


def _check_here(
    project: Project, control: ControlStore, row: ReleaseRow, by: str, with_golden: bool, loaded_live: Bundle | None
) -> None:
    live_row = releases.live(control)
    is_loaded = live_row is not None and loaded_live is not None and loaded_live.id == live_row.bundle
    live = loaded_live if is_loaded else project.load_bundle() if live_row else None
    try:
        if with_golden:
            check_in_child(project, row)
        evidence = check_servable(project, open_bundle(project, row, with_golden=False), live)
    except BundleError as error:
        releases.reject(control, row.bundle, by=by, reason=str(error), at=now())
        raise Refused("check", "failed", "passed", str(error)) from None
    releases.checked(control, row.bundle, by=by, reason="loaded", at=now(), evidence=evidence)


def _unmet_requirements(
    project: Project, machine: releases.ReleaseState, bundle: str, target: str, measure: MeasureSteps
) -> tuple[list[Refused], JsonTree]:
    """Find the missing steps for ``target`` and the numbers of the checked ones."""
    state = machine.state(bundle)
    if target == "shadow" and machine.lives:
        return [], {
            "golden": "equal",
            "shadow_requirement": shadow_requirement(project, bundle, MIN_SHADOW_REQUESTS).to_json(),
        }
    if target == "shadow" or state == "retired" or not machine.lives:
        return [], {"golden": "equal"}
    evidence = measure(project, bundle, target == "live")
    shadow_requests, mismatches = evidence.shadow_requests, evidence.replica_mismatches
    numbers: JsonTree = {"golden": "equal", "shadow_requests": shadow_requests, "replica_mismatches": mismatches}
    missing = []
    if state == releases.ROLLED_BACK:
        missing.append(
            Refused("state", state, "a bundle that was not rolled back", f"{bundle} was live and was rolled back")
        )
    if shadow_requests < MIN_SHADOW_REQUESTS:
        need = shadow_requirement(project, bundle, MIN_SHADOW_REQUESTS)
        missing.append(
            Refused("shadow requests", shadow_requests, MIN_SHADOW_REQUESTS, f"the shadow step is not earned: {need}")
        )
    if mismatches:
        missing.append(
            Refused("replicas that differ", mismatches, 0, "live's lists are not reproducible: recloop verify")
        )
    if target == "live":
        missing += _experiment(evidence, numbers)
    return missing, numbers


def _experiment(evidence: StepEvidence, numbers: JsonTree) -> list[Refused]:
    """List the missing requirements of the experiment: users, evidence of no harm."""
    verdict = evidence.verdict
    if verdict is None:
        users: dict[str, int] = dict.fromkeys((LIVE, CANDIDATE), 0)
        numbers.update(users=users, verdict="none")
        reason = f"the experiment step is not earned: {evidence.problem}"
        return [Refused(f"users in the arm {LIVE}", 0, MIN_USERS_PER_ARM, reason)]
    users = {LIVE: verdict.users.live, CANDIDATE: verdict.users.candidate}
    numbers.update(_evidence(verdict), users=users)
    smaller_arm = min(users, key=lambda arm: users[arm])
    if users[smaller_arm] < MIN_USERS_PER_ARM:
        reason = f"the experiment step is not earned: {verdict.why}"
        return [Refused(f"users in the arm {smaller_arm}", users[smaller_arm], MIN_USERS_PER_ARM, reason)]
    if not verdict.no_harm:
        threshold = f"a loss above {verdict.plan.margin:.2g} of {verdict.plan.metric} ruled out"
        return [Refused("experiment", verdict.verdict, threshold, verdict.why)]
    return []


def _evidence(verdict: Verdict) -> JsonTree:
    """Format the verdict for the evidence of a move to live."""
    numbers: JsonTree = {
        "verdict": verdict.verdict, "decided_by": verdict.decided_by, "why": verdict.why, "no_harm": verdict.no_harm,
    }  # fmt: skip
    primary = verdict.metrics.get(verdict.plan.metric)
    if primary is not None:
        numbers[verdict.plan.metric] = {
            "live": primary.live, "candidate": primary.candidate, "low": primary.sequence_low, "high": primary.sequence_high,
        }  # fmt: skip
    if verdict.differs:
        numbers["differs"] = verdict.differs
    return numbers
