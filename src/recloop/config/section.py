"""Base class of the tables of recloop.toml."""

from __future__ import annotations

import pydantic

FILE = "recloop.toml"


class Section(pydantic.BaseModel):
    """A table of the file: frozen, and unknown keys are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
