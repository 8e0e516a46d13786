"""Which bundle answers a request, and which score it again: one hash of the user's id, the same in every process.

The arm is chosen first, by the salt ``arm:SALT`` and the share of the experiment's plan, which its release row fixes (the salt
is the candidate's id); of the users whom live answers, the salt ``shadow:BUNDLE`` picks
those in the shadow. So a user in the shadow is answered by live, always, and the shadow takes nobody out of an
experiment. An assignment never flips: neither a restart, an edit of recloop.toml nor another bundle's move changes it.
"""

from __future__ import annotations

from typing import NamedTuple

from recloop.records import hash_unit_interval

LIVE = "live"
CANDIDATE = "candidate"


class Arm(NamedTuple):
    """The bundle that answers, the generation that made it so, and the name of its variant in every decision.

    ``share`` and ``salt`` are those of the plan of a candidate in the experiment; no user is drawn into another arm by hash.
    """

    bundle: str
    generation: int
    variant: str
    share: float = 0.0
    salt: str = ""


def in_experiment(salt: str, user_id: str, share: float) -> bool:
    """Whether an experiment's hash draws this user for the candidate."""
    return hash_unit_interval(f"arm:{salt}", user_id) < share


def in_shadow(bundle: str, user_id: str, share: float) -> bool:
    """Whether a bundle in the shadow scores the requests of this user, who is answered by live."""
    return hash_unit_interval(f"shadow:{bundle}", user_id) < share


def assign(user_id: str, live: Arm, candidate: Arm | None) -> Arm:
    """The arm of a user: the candidate's for its share of the users, else live."""
    if candidate is not None and in_experiment(candidate.salt, user_id, candidate.share):
        return candidate
    return live


def shadowing(user_id: str, answered: Arm, candidate: str, share: float) -> bool:
    """Whether a request that this arm answered is scored again by the bundles in the shadow.

    Of several bundles there the candidate's salt decides for all: they are compared on the very same requests.
    """
    return answered.variant == LIVE and in_shadow(candidate, user_id, share)
