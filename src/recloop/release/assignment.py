"""Assignment of users to experiment arms and shadow scoring, by a hash of the id.

The arm is drawn first, with the salt ``arm:SALT`` and the share of the experiment's plan. The release row fixes the
plan; the salt is the candidate's id. Among users of live, the salt ``shadow:BUNDLE`` draws those for shadow scoring.
Thus live always answers a user in shadow, and shadow scoring does not remove users from an experiment. An assignment
is stable: restarts, edits of recloop.toml and moves of other bundles do not change it.
"""

from __future__ import annotations

from typing import NamedTuple

from recloop.records import hash_unit_interval

LIVE = "live"
CANDIDATE = "candidate"


class Arm(NamedTuple):
    """Bundle that answers, its generation, and its variant in decisions.

    ``share`` and ``salt`` are those of the experiment plan. Other arms have none.
    """

    bundle: str
    generation: int
    variant: str
    share: float = 0.0
    salt: str = ""


def in_experiment(salt: str, user_id: str, share: float) -> bool:
    """Return True if the experiment's hash assigns this user to the candidate."""
    return hash_unit_interval(f"arm:{salt}", user_id) < share


def in_shadow(bundle: str, user_id: str, share: float) -> bool:
    """Return True if a shadow bundle scores the requests of this user of live."""
    return hash_unit_interval(f"shadow:{bundle}", user_id) < share


def assign(user_id: str, live: Arm, candidate: Arm | None) -> Arm:
    """Return the arm of a user: the candidate for its share of users, else live."""
    if candidate is not None and in_experiment(candidate.salt, user_id, candidate.share):
        return candidate
    return live


def shadowing(user_id: str, answered: Arm, candidate: str, share: float) -> bool:
    """Return True if shadow bundles score a request that this arm answered.

    The candidate's salt decides for all shadow bundles, so they are compared on the same requests.
    """
    return answered.variant == LIVE and in_shadow(candidate, user_id, share)
