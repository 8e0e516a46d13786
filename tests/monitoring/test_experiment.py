"""Experiments: verdicts on known tables, and a simulated truth that the interval covers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from recloop import bundle as bundles
from recloop import loop
from recloop.errors import UserError
from recloop.monitoring import experiment
from recloop.monitoring.attribution import user_outcomes
from recloop.monitoring.experiment_plan import Plan
from recloop.monitoring.experiment_verdict import Verdict
from recloop.project import Project, open_project
from recloop.records import DAY, SECOND, Decision, Event, hash_unit_interval
from recloop.simulation.shop import SimulatedShop
from recloop.storage import releases
from recloop.storage.control import ReleaseRow

T = 20_000 * DAY
HOUR = 3_600 * SECOND
ITEMS = [f"i{n}" for n in range(40)]
PLAN = Plan(share=0.5, metric="hit_rate", users=1_200, looks=1, margin=0.01, alpha=0.05, salt="b", since=T)


class Truth:
    """A shop with a known purchase probability per customer and arm."""

    def __init__(self, seed: int, users: int, better: float) -> None:
        self.draw = np.random.default_rng(seed)
        self.users = [f"u{seed}-{n}" for n in range(users)]
        self.arm = np.array([hash_unit_interval("arm:b", user) < 0.5 for user in self.users])
        self.chance = self.draw.beta(2, 6, users)
        self.better = better
        self.requests = 1 + self.draw.poisson(1.0, users)

    def rate(self, treated: bool) -> np.ndarray:
        return np.clip(self.chance + (self.better if treated else 0.0), 0, 1)

    @property
    def difference(self) -> float:
        """True difference of hits per request between the two arms."""
        n = self.requests
        return float((n * self.rate(True)).sum() / n.sum() - (n * self.rate(False)).sum() / n.sum())

    def play(self) -> tuple[list[Decision], pl.DataFrame]:
        """Decisions and events before the experiment and of its first day."""
        decisions, rows = [], []
        for number, user in enumerate(self.users):
            for day, requests in ((-5, 4), (0, int(self.requests[number]))):
                treated = bool(self.arm[number]) and day == 0
                chance = float(self.rate(treated)[number])
                for one in range(requests):
                    at = T + day * DAY + one * HOUR
                    name = f"{user}/{day}/{one}"
                    decisions.append(answer(name, user, at, ITEMS[:5], "candidate" if treated else "live"))
                    if self.draw.random() < chance:
                        rows.append((user, ITEMS[0], at + 60 * SECOND, "purchase", 2.0, name, 1))
        return decisions, frame(rows)


def answer(request_id: str, user: str, at: int, items: list[str], variant: str, assigned: str = "") -> Decision:
    return Decision(
        request_id=request_id, role="answer", user_id=user, served_at=at, as_of_seq=1, bundle="b", generation=1, variant=variant,
        placement="home", n=5, query={}, items=items, scores=[0.0] * len(items), sources=["popular"] * len(items), latency_us=50,
        assigned=assigned or variant,
    )  # fmt: skip


def frame(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "event_type": pl.String,
              "value": pl.Float64, "request_id": pl.String, "label": pl.Int8}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def of_truth(truth: Truth, **plan: Any) -> Verdict:
    decisions, events = truth.play()
    return experiment.evaluate(user_outcomes(decisions, events, T, T + 3 * DAY), replace(PLAN, **plan))


@pytest.mark.slow
def test_interval_covers_the_simulated_truth() -> None:
    """Over 40 shops of 600 customers the 95 % interval has its nominal coverage."""
    covered = always = 0
    for seed in range(40):
        truth = Truth(seed, 600, 0.06)
        one = of_truth(truth).metrics["hit_rate"]
        covered += one.low <= truth.difference <= one.high
        always += one.sequence_low <= truth.difference <= one.sequence_high
    assert 35 <= covered <= 40
    assert always == 40


def test_evaluate_gives_better_worse_or_inconclusive() -> None:
    better = of_truth(Truth(1, 1_500, 0.08))
    assert (better.verdict, better.decided_by, better.no_harm) == ("better", "look", True)
    assert better.metrics["hit_rate"].reduction > 0.02  # the covariate reduces the variance
    worse = of_truth(Truth(2, 1_500, -0.08))
    assert (worse.verdict, worse.no_harm) == ("worse", False)
    same = of_truth(Truth(3, 1_500, 0.0))
    assert (same.verdict, same.decided_by, same.no_harm) == ("inconclusive", "none", False)
    assert "1 of 1 planned looks done, none crossed its bound; a relative loss of 0." in same.why
    assert same.loss > 0.01
    assert same.needed > 1_200
    assert same.sample_ratio.alarm is False
    assert "dislikes" not in same.metrics  # the log has no dislikes
    assert same.metrics["value_from_lists"].p_holm >= same.metrics["value_from_lists"].p


def test_evaluate_interim_analyses_use_the_first_users() -> None:
    truth = Truth(1, 1_500, 0.08)
    decisions, events = truth.play()
    users = user_outcomes(decisions, events, T, T + 3 * DAY)
    plan = replace(PLAN, users=1_600, looks=4)
    planned = experiment.evaluate(users, plan)
    assert [look.users for look in planned.looks] == [400, 800, 1_200]
    assert [look.bound for look in planned.looks] == pytest.approx([4.3326, 2.9631, 2.3590], abs=2e-4)
    earlier = experiment.evaluate(users.head(900), plan)
    assert earlier.looks == planned.looks[:2]  # earlier interim analyses do not change
    assert experiment.evaluate(users.head(300), plan).verdict == "running"
    assert (planned.verdict, planned.decided_by) == ("better", "look")


def test_evaluate_with_lost_users_is_invalid() -> None:
    decisions, events = Truth(4, 2_000, 0.08).play()
    lost = {
        one.user_id for one in decisions if one.variant == "candidate" and hash_unit_interval("lost", one.user_id) < 0.3
    }
    users = user_outcomes([one for one in decisions if one.user_id not in lost], events, T, T + 3 * DAY)
    found = experiment.evaluate(users, PLAN)
    assert (found.verdict, found.no_harm) == ("invalid", False)
    assert found.sample_ratio.e > 1_000


def test_evaluate_with_a_violated_guardrail_is_worse_despite_a_better_hit_rate() -> None:
    decisions, events = Truth(5, 1_500, 0.08).play()
    treated = sorted({one.user_id for one in decisions if one.variant == "candidate"})
    dislikes = [(user, ITEMS[3], T + 2 * HOUR, "dislike", None, None, -1) for user in treated[::2]]
    users = user_outcomes(decisions, pl.concat([events, frame(dislikes)]), T, T + 3 * DAY)
    found = experiment.evaluate(users, PLAN)
    assert found.looks[0].delta > 0
    assert found.looks[0].crossed
    assert (found.verdict, found.decided_by, found.no_harm) == ("worse", "guardrail", False)
    assert "guardrail dislikes" in found.why


def test_evaluate_with_latency_within_the_slack_is_not_worse() -> None:
    users = user_outcomes(*Truth(6, 600, 0.0).play(), T, T + 3 * DAY)
    slower = users.with_columns(
        pl.when(pl.col("arm") == "candidate").then(1.1).otherwise(1.0).mul(pl.col("latency_us")).alias("latency_us")
    )
    assert experiment.evaluate(slower, replace(PLAN, users=500)).verdict == "inconclusive"
    crawling = users.with_columns(
        pl.when(pl.col("arm") == "candidate").then(1.5).otherwise(1.0).mul(pl.col("latency_us")).alias("latency_us")
    )
    assert "latency_us_per_request" in experiment.evaluate(crawling, PLAN).why


def test_evaluate_with_an_empty_arm_is_running() -> None:
    users = user_outcomes([answer("r", "u", T, ["i0"], "live")], frame([]), T, T + 3 * DAY)
    found = experiment.evaluate(users, PLAN)
    assert (found.verdict, found.users.candidate, found.metrics, found.no_harm) == ("running", 0, {}, False)
    assert "no look is done yet" in found.why


def less_active(seed: int, fails: float) -> tuple[list[Decision], pl.DataFrame]:
    """Equal lists, but the candidate fails for requests of less active users."""
    draw = np.random.default_rng(seed)
    decisions, rows = [], []
    for number in range(4_000):
        user, active = f"u{number}", number % 5 == 0
        drawn = "candidate" if hash_unit_interval("arm:b", user) < 0.5 else "live"
        for one in range(4):
            at = T + number * SECOND + one * HOUR
            failed = drawn == "candidate" and one > 0 and not active and draw.random() < fails
            decisions.append(answer(f"{user}/{one}", user, at, ITEMS[:5], "live" if failed else drawn, drawn))
            if draw.random() < (0.8 if active else 0.2):
                rows.append((user, ITEMS[0], at + 60 * SECOND, "purchase", 2.0, f"{user}/{one}", 1))
    return decisions, frame(rows)


def test_user_outcomes_keep_users_for_whom_the_candidate_failed() -> None:
    decisions, events = less_active(3, 0.2)
    users = user_outcomes(decisions, events, T, T + 3 * DAY)
    assert len(users) == 4_000  # every assigned user stays in the assigned arm
    assert set(users["arm"].to_list()) == {"live", "candidate"}
    for row in users.iter_rows(named=True):
        assert row["arm"] == ("candidate" if hash_unit_interval("arm:b", row["user_id"]) < 0.5 else "live")
    found = experiment.evaluate(users, PLAN)
    rate = found.metrics["hit_rate"]
    assert rate.low < 0 < rate.high  # the lists are equally good
    assert (found.verdict, found.decided_by) == ("worse", "guardrail")
    assert "guardrail unanswered: 0 in live, 0.12" in found.why
    assert found.metrics["unanswered"].candidate == pytest.approx(0.12, abs=0.01)


def test_evaluate_with_failures_within_the_slack_is_inconclusive() -> None:
    users = user_outcomes(*less_active(4, 0.005), T, T + 3 * DAY)
    found = experiment.evaluate(users, PLAN)
    assert found.metrics["unanswered"].candidate > 0
    assert found.verdict == "inconclusive"


def test_evaluate_with_failures_near_the_slack_is_not_better() -> None:
    decisions, events = Truth(1, 1_500, 0.2).play()
    failed = {
        one.request_id
        for one in decisions
        if one.assigned == "candidate" and hash_unit_interval("f", one.request_id) < 0.012
    }
    answered = [msgspec.structs.replace(one, variant="live") if one.request_id in failed else one for one in decisions]
    found = experiment.evaluate(user_outcomes(answered, events, T, T + 3 * DAY), PLAN)
    assert found.looks[0].crossed
    assert (found.verdict, found.decided_by, found.no_harm) == ("inconclusive", "none", False)
    assert "but guardrail unanswered may be above its slack" in found.why


def test_evaluate_between_interim_analyses_decides_by_the_sequence() -> None:
    users = user_outcomes(*Truth(8, 1_500, 0.2).play(), T, T + 3 * DAY)
    found = experiment.evaluate(users, replace(PLAN, users=100_000, looks=4))
    assert (found.looks, found.verdict, found.decided_by, found.no_harm) == ([], "better", "sequence", True)


def row(generation: int, bundle: str, to: str) -> ReleaseRow:
    evidence = {"experiment": PLAN.to_evidence()} if to == "experiment" else {}
    return ReleaseRow(generation, generation * 10, bundle, "", "", to, "t", "", evidence)


def test_period_ends_when_live_moves() -> None:
    rows = [row(1, "a", "live"), row(2, "b", "experiment"), row(3, "c", "registered"), row(4, "b", "live")]
    assert experiment.period(rows, "") == ("b", rows[1], PLAN, 40)
    assert experiment.period(rows[:3], "b") == ("b", rows[1], PLAN, None)
    assert experiment.period([*rows[:2], row(3, "a", "live")], "b").until == 30
    for bundle in ("", "c"):
        with pytest.raises(UserError, match="was in an experiment"):
            experiment.period(rows[:1], bundle)


def test_period_continues_over_a_refresh_of_live_or_candidate() -> None:
    refreshed = row(4, "a2", "live")._replace(evidence={"refresh_of": "a"})
    again = row(5, "b2", "experiment")._replace(evidence={"refresh_of": "b", "experiment": PLAN.to_evidence()})
    rows = [row(1, "a", "live"), row(2, "b", "experiment"), refreshed, again]
    assert experiment.period(rows[:3], "") == ("b", rows[1], PLAN, None)
    for bundle in ("", "b", "b2"):
        assert experiment.period(rows, bundle) == ("b2", again, PLAN, None)
    assert experiment.period([*rows, row(6, "b2", "live")], "").until == 60
    assert experiment.period([*rows, row(6, "c", "live")], "").until == 60


@pytest.fixture(scope="module")
def experiment_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = SimulatedShop(seed=0, users=40, items=40).write(tmp_path_factory.mktemp("experiment") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write('[model]\nname = "covisitation"\n')
    loop.first_run(open_project(folder))
    return folder


def test_analyze_from_the_stores_equals_evaluate(experiment_folder: Path, tmp_path: Path) -> None:
    """Stored decisions and rows give the verdict of the frames."""
    shutil.copytree(experiment_folder, tmp_path / "shop")
    project: Project = open_project(tmp_path / "shop")
    control = project.open_control()
    live = releases.live(control)
    assert live is not None
    control.move(live.bundle, bundles.manifest_hash(project.bundles / live.bundle), "live", "experiment", by="t",
                 reason="", evidence={"experiment": replace(PLAN, users=360).to_evidence()},
                 expected_generation=live.generation, at=T)  # fmt: skip
    truth = Truth(7, 400, 0.2)
    decisions, rows = truth.play()
    store = project.open_decisions(write=True)
    for one in decisions:
        store.put(one)
    assert store.flush()
    store.close()
    log = project.open_log(write=True)
    log.append_events(
        [Event(**{**event, "received_at": event["timestamp"]}) for event in rows.drop("label").iter_rows(named=True)]
    )
    log.close()
    assert experiment.analyze(project).users.waiting == 400  # at the newest request the 24 hours of all users are open
    found = experiment.analyze(project, now=T + 3 * DAY)
    assert (found.bundle, found.since, found.until) == (live.bundle, T, None)
    expected = experiment.evaluate(user_outcomes(decisions, rows, T, T + 3 * DAY), replace(PLAN, users=360))
    assert found.metrics["hit_rate"] == expected.metrics["hit_rate"]
    assert (found.verdict, found.differs) == (
        "better",
        [
            "release.plan.users = 360 in this experiment, 4000 in recloop.toml",
            "release.plan.looks = 1 in this experiment, 4 in recloop.toml",
        ],
    )
