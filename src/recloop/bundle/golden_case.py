"""Golden cases of a bundle: users' states, with the list of the bundle for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from recloop.errors import BundleError
from recloop.features.state import StoredState
from recloop.files import JsonTree


@dataclass(frozen=True)
class GoldenCase:
    """One case of golden.json: a user's state and the bundle's list for it."""

    state: StoredState
    now: int
    placement: str
    n: Annotated[int, msgspec.Meta(ge=1)]
    ids: list[str]
    scores: list[float]

    @classmethod
    def read_all(cls, path: Path) -> list[GoldenCase]:
        """Read the cases of a golden.json; earlier bundles have ``k`` for ``n``.

        Raises:
            BundleError: the file does not contain golden cases.
        """
        try:
            cases = msgspec.json.decode(path.read_bytes(), type=list[JsonTree])
            return msgspec.convert([case | {"n": case.get("n", case.get("k"))} for case in cases], list[GoldenCase])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise BundleError(
                "golden.json", path, f"a list of golden cases ({error})", "recloop update --full"
            ) from None
