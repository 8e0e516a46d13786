"""The plan of an experiment: fixed in the release row, refused where an arm gets too few users."""

from __future__ import annotations

import pytest

from recloop.config import ExperimentPlan, Release
from recloop.errors import UserError
from recloop.monitoring.experiment_plan import EVIDENCE, Plan
from recloop.storage.control import ReleaseRow


def row(evidence: dict[str, object]) -> ReleaseRow:
    return ReleaseRow(7, 70, "b", "", "shadow", "experiment", "t", "", evidence)


def test_plan_from_row_equals_the_written_plan() -> None:
    plan = Plan.from_config(Release(experiment_share=0.3, plan=ExperimentPlan(users=9_000)), "b", 70)
    assert (plan.share, plan.users, plan.looks, plan.margin, plan.salt, plan.since) == (0.3, 9_000, 4, 0.01, "b", 70)
    assert Plan.from_row(row({EVIDENCE: plan.to_evidence()})) == plan


def test_plan_differences_name_the_edited_keys() -> None:
    settings = Release()
    plan = Plan.from_config(settings, "b", 70)
    assert plan.differences(settings) == []
    edited = settings.model_copy(update={"experiment_share": 1.0, "plan": ExperimentPlan(margin=0.02)})
    assert plan.differences(edited) == [
        "release.experiment_share = 0.5 in this experiment, 1.0 in recloop.toml",
        "release.plan.margin = 0.01 in this experiment, 0.02 in recloop.toml",
    ]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_plan_with_a_share_of_0_or_1_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=rf"release\.experiment_share={share}: expected a share above 0 and below 1"):
        Plan.from_config(Release(experiment_share=share), "b", 0)


def test_plan_with_too_few_users_per_interim_analysis_is_refused() -> None:
    assert Plan.from_config(Release(plan=ExperimentPlan(users=800)), "b", 0).users == 800
    with pytest.raises(UserError, match=r"expected at least 800 for 4 looks at a share of 0\.5"):
        Plan.from_config(Release(plan=ExperimentPlan(users=799)), "b", 0)
    with pytest.raises(UserError, match=r"expected at least 8000 for 4 looks at a share of 0\.05"):
        Plan.from_config(Release(experiment_share=0.05), "b", 0)


@pytest.mark.parametrize("evidence", [{}, {EVIDENCE: {"share": 0.5}}, {EVIDENCE: "half"}])
def test_plan_from_row_without_a_readable_plan_is_refused(evidence: dict[str, object]) -> None:
    with pytest.raises(UserError, match="recloop reject b --reason"):
        Plan.from_row(row(evidence))
