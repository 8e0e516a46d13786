"""Shadow report: a candidate's lists compared with live's on the same requests.

    report = shadow_report(project, bundle)      # reads the answers, shadow lists and replicas
    shadow_plot.plot(report, "shadow.svg")       # each measure with its 95 % CI and the noise floor

Two replicas check the comparison. Live again, with the same bundle, must agree exactly. The same update with another
seed gives the noise floor, the agreement of equally good bundles. Agreement is evidence, not a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recloop.errors import UserError
from recloop.evaluation import agreement, bootstrap
from recloop.evaluation.agreement import MEASURES
from recloop.features.value_text import as_text
from recloop.monitoring.health import Exposures, HealthReference, compute, reference
from recloop.monitoring.verify import DecisionReplayer
from recloop.project import Project
from recloop.records import COLD_POSITIVES, Decision

MAX_REQUESTS: Final = 2_000
"""Most shadowed requests that a report reads; the newest ones."""
MAX_DISAGREEMENTS: Final = 5
NOISE_FLOOR: Final = "seed"
"""Name of the reseeded replica in a report."""

Name = Callable[[str], str]


def shadow_report(
    project: Project, bundle: str = "", since: int | None = None, until: int | None = None, name: Name = str
) -> dict[str, Any]:
    """Compare a candidate with live over the requests that both scored.

    Args:
        bundle: The candidate; empty for the one that was shadowed last.
        since, until: ``since`` <= served_at < ``until``, int64 microseconds.
        name: Returns the display name of an item_id.

    Returns:
        ``live``, ``candidate``, ``requests``, ``users``, ``from``, ``to``; ``agreement`` and ``noise`` {measure: {value,
        low, high}} (``noise`` is None without a reseeded replica), ``segments`` {by: {segment: {requests, measure: ...}}}, ``replica``
        {requests, different, first}, ``shown`` {live, candidate: health}, ``latency`` {live, candidate (median
        microseconds), ratio}, ``disagree`` (the five requests of least agreement).

    Raises:
        UserError: this bundle was never shadowed in that time.
        BundleError: the files of a bundle differ from the registered ones.
    """
    shadowed = _shadowed_requests(project, bundle, since, until)
    others = [*shadowed.candidate, *shadowed.other_seed]
    with project.open_log() as log:
        replayer = DecisionReplayer(project, log, shadowed.live)
        numbers, segments, live = _numbers(project, replayer, shadowed.answers, others)
        newest = max(row.as_of_seq for row in shadowed.candidate)
        against = reference(live, log.items(until=newest)["item_id"])
    requests = len(shadowed.candidate)
    table = numbers[:requests]
    noise = numbers[requests:]
    users = [row.user_id for row in shadowed.live]
    return {
        "live": live.id,
        "candidate": shadowed.candidate[-1].bundle,
        "requests": requests,
        "users": len(set(users)),
        "from": min(row.served_at for row in shadowed.live),
        "to": max(row.served_at for row in shadowed.live),
        "agreement": estimates(table, users),
        "noise": estimates(noise, [row.user_id for row in shadowed.other_seed]) if shadowed.other_seed else None,
        "segments": by_segment(table, users, segments[:requests]),
        "replica": self_check([(shadowed.answers[row.request_id], row) for row in shadowed.replicas]),
        "shown": {"live": _health(shadowed.live, against), "candidate": _health(shadowed.candidate, against)},
        "latency": latency(shadowed.live, shadowed.candidate),
        "disagree": _disagreements(shadowed, table, name),
    }


@dataclass(frozen=True)
class _ShadowedRequests:
    """Decisions of a report; ``live`` and ``candidate`` are parallel, by request.

    Attributes:
        answers: Responses by request_id.
        replicas: Live's requests scored again by the same bundle.
        other_seed: Live's requests scored again by the same update with another seed.
    """

    answers: Mapping[str, Decision]
    live: list[Decision]
    candidate: list[Decision]
    replicas: list[Decision]
    other_seed: list[Decision]


def _shadowed_requests(project: Project, bundle: str, since: int | None, until: int | None) -> _ShadowedRequests:
    """Read the newest requests that a candidate scored in shadow.

    Raises:
        UserError: this bundle was never shadowed in that time.
    """
    with project.open_decisions() as store:
        candidate = store.shadowed(bundle, MAX_REQUESTS, since, until)
        request_ids = [row.request_id for row in candidate]
        answers = {row.request_id: row for row in store.answered(request_ids)}
        replicas = list(store.answered(request_ids, "replica"))
    if not candidate:
        raise UserError("bundle", bundle or "none", "a bundle that was shadowed", "recloop promote BUNDLE --to shadow")
    return _ShadowedRequests(
        answers,
        live=[answers[row.request_id] for row in candidate],
        candidate=candidate,
        replicas=[row for row in replicas if row.bundle == answers[row.request_id].bundle],
        other_seed=[row for row in replicas if row.bundle != answers[row.request_id].bundle],
    )


def _disagreements(shadowed: _ShadowedRequests, table: NDArray[np.float64], name: Name) -> list[dict[str, Any]]:
    """Format both lists of the requests that disagree most, with their measures.

    Args:
        table: (Q, measures) agreement.
    """
    return [
        {
            "request_id": shadowed.live[q].request_id,
            "user_id": shadowed.live[q].user_id,
            "served_at": shadowed.live[q].served_at,
            **{measure: bootstrap.plain(table[q, column]) for column, measure in enumerate(MEASURES)},
            "live": [name(item) for item in shadowed.live[q].items[: agreement.LIST_LENGTH]],
            "candidate": [name(item) for item in shadowed.candidate[q].items[: agreement.LIST_LENGTH]],
        }
        for q in largest_disagreements(table)
    ]


def _numbers(
    project: Project, replayer: DecisionReplayer, answers: Mapping[str, Decision], others: Sequence[Decision]
) -> tuple[NDArray[np.float64], list[dict[str, str]], Any]:
    """Measure the agreement of each row with live's response.

    Returns:
        (Q, measures) agreement, the segments of each request, and the newest live bundle.
    """
    numbers = np.full((len(others), len(MEASURES)), np.nan)
    segments: list[dict[str, str]] = [{} for _ in others]
    live = None
    field = project.config.serve.segment
    for place in sorted(range(len(others)), key=lambda place: answers[others[place].request_id].as_of_seq):
        other = others[place]
        answer = answers[other.request_id]
        serving, states = replayer.context_for(answer)
        own = agreement.ranking_of(serving, states, answer)
        opinion = agreement.ranking_of(*replayer.context_for(answer, other.bundle), answer)
        found = agreement.agreement(answer, other, opinion, own)
        numbers[place] = [found[name] for name in MEASURES]
        segments[place] = {
            "history": "cold" if answer.positives < COLD_POSITIVES else "known",
            "placement": answer.placement,
        }
        if field:
            value = (states.attributes[0] or {}).get(field)
            segments[place][field] = "unknown" if value is None else as_text(value)
        live = serving.bundle
    return numbers, segments, live


def estimates(numbers: NDArray[np.float64], users: Sequence[str], seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Estimate {measure: {value, low, high}}: mean of user means, 95 % CI over users."""
    ids, codes = np.unique(np.array(users, dtype=object), return_inverse=True)
    means = bootstrap.user_means(numbers, codes, len(ids))
    value = bootstrap.mean_over_users(means)
    samples = bootstrap.resample(means, seed)
    return {
        name: bootstrap.estimate(float(value[column]), samples[:, column]).to_json()
        for column, name in enumerate(MEASURES)
    }


def by_segment(
    numbers: NDArray[np.float64], users: Sequence[str], segments: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute {by: {segment: {requests, measure: {value, low, high}}}}."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for dimension in dict.fromkeys(key for segment in segments for key in segment):
        for value in sorted({segment[dimension] for segment in segments}):
            in_segment = [q for q, segment in enumerate(segments) if segment[dimension] == value]
            out.setdefault(dimension, {})[value] = {
                "requests": len(in_segment),
                **estimates(numbers[in_segment], [users[q] for q in in_segment]),
            }
    return out


def self_check(pairs: Sequence[tuple[Decision, Decision]]) -> dict[str, Any]:
    """Count replicas of live that differ from its response.

    Items, scores and sources must be equal bit by bit. ``first`` is the request id of the first that differs.
    """
    different = [
        response.request_id
        for response, replica in pairs
        if (response.items, response.scores, response.sources) != (replica.items, replica.scores, replica.sources)
    ]
    return {"requests": len(pairs), "different": len(different), "first": different[0] if different else None}


def largest_disagreements(numbers: NDArray[np.float64]) -> list[int]:
    """Find the five requests that disagree most, by overlap@10, RBO and request order."""
    order = np.lexsort((numbers[:, MEASURES.index("rbo")], numbers[:, MEASURES.index("overlap@10")]))
    return [int(q) for q in order[:MAX_DISAGREEMENTS]]


def latency(live_rows: Sequence[Decision], candidate_rows: Sequence[Decision]) -> dict[str, float | None]:
    """Compute the median microseconds of both, and the median ratio per request."""
    live = np.array([max(1, row.latency_us) for row in live_rows], dtype=np.float64)
    candidate = np.array([row.latency_us for row in candidate_rows], dtype=np.float64)
    return {
        "live": bootstrap.plain(float(np.median(live))),
        "candidate": bootstrap.plain(float(np.median(candidate))),
        "ratio": bootstrap.plain(float(np.median(candidate / live))),
    }


def _health(rows: Sequence[Decision], against: HealthReference) -> dict[str, Any]:
    answered = [msgspec.structs.replace(row, role="answer") for row in rows]
    return compute(Exposures.from_decisions(answered, against), against)
