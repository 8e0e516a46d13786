"""Table ``[release]``: gates, shadow and experiment of a new bundle."""

from __future__ import annotations

from typing import Literal

import pydantic

from recloop.config.section import Section


class Gates(Section):
    max_ndcg_loss: float = pydantic.Field(0.03, ge=0)
    """Largest relative loss of NDCG@10 that a candidate may have and still pass."""
    min_users: int = pydantic.Field(20, ge=1)
    """Fewest users in the gate's window; with fewer the gate waits for more rows."""
    min_queries: int = pydantic.Field(30, ge=1)
    """Fewest queries in the gate's window; with fewer the gate waits for more rows."""
    max_slice_loss: float = pydantic.Field(0.1, ge=0)
    """Largest relative loss of NDCG@10 in a slice."""
    max_unexplained: int = pydantic.Field(0, ge=0)
    """Largest number of unexplained differences between served and rebuilt lists."""
    max_latency_ratio: float = pydantic.Field(1.2, gt=0)
    """Largest ratio of the candidate's latency to that of the live bundle."""
    max_cold_coverage_loss: float = pydantic.Field(0.05, ge=0)
    """Largest loss of cold-start user coverage."""


class ExperimentPlan(Section):
    """The plan of the next experiment; the release row that starts it keeps it."""

    metric: Literal["hit_rate", "clicks_per_request", "positives_from_lists", "value_from_lists"] = "hit_rate"
    """Primary metric of the experiment."""
    users: int = pydantic.Field(4000, ge=1)
    """Users of both arms at the last interim analysis."""
    looks: int = pydantic.Field(4, ge=1, le=50)
    """Number of interim analyses."""
    margin: float = pydantic.Field(0.01, gt=0, lt=1)
    """Largest relative loss that counts as no harm."""
    alpha: float = pydantic.Field(0.05, gt=0, lt=0.5)
    """Error rate of the experiment."""


class Release(Section):
    shadow_share: float = pydantic.Field(0.01, ge=0, le=1)
    """Share of users for whom a shadow bundle scores each request too."""
    experiment_share: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of users that the next experiment assigns to the candidate."""
    plan: ExperimentPlan = ExperimentPlan()
    """Plan of the next experiment."""
    refresh: Literal["gate", "shadow", "manual"] = "gate"
    """Release of a retrained bundle with the live bundle's recipe after it passed its gate."""
    gates: Gates = Gates()
    """Thresholds of the gate."""
