"""Tables of models and training: baselines, model, ranker and train."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from recloop.config.durations import seconds
from recloop.config.section import Section
from recloop.files import JsonTree


class Model(pydantic.BaseModel):
    """Built-in model name or ``package.module:Class``.

    Other keys are options of the model's own Config, which checks them.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="allow")
    name: str = "sasrec"
    """Built-in model or `package.module:Class`; other keys of the table are the model's own options."""

    @property
    def options(self) -> JsonTree:
        return dict(self.model_extra or {})


class Baselines(Section):
    half_life: Literal["auto", "none"] | Annotated[float, pydantic.Field(gt=0)] = "auto"
    """Half-life of counts in days; `auto` chooses it on validation, `none` weighs every moment equally."""
    extra: Literal["auto"] | tuple[str, ...] = "auto"
    """Further models without torch, such as `["ease", "item_knn"]`; `auto` keeps one only if lists use it."""


class Ranker(Section):
    """Second stage: trees or a network over the features of what the sources recall."""

    model: Literal["auto", "gbdt", "mlp", "off"] = "auto"
    """Trees, network or no ranker of the recalled items; `auto` keeps what is better on validation."""
    trees: int = pydantic.Field(100, ge=1, le=2000)
    """Number of trees; the time of a request grows with it."""
    leaves: int = pydantic.Field(31, ge=2, le=1000)
    """Largest number of leaves of a tree, which has at most six levels."""
    moments: int = pydantic.Field(12_000, ge=1)
    """Largest number of moments that teach the trees; the time of training grows with it."""
    threads: int = pydantic.Field(2, ge=1)
    """Threads that fit the trees."""


class Train(Section):
    loss: Literal["auto", "ce", "ss_refined", "ss", "ss_logq", "gbce", "bce", "bpr"] = "auto"
    """Training loss; `auto` chooses by model and catalog size."""
    negatives: int = pydantic.Field(256, ge=1)
    """Negative items drawn per step, shared by the targets of the step."""
    windows: Literal["all", "last"] = "all"
    """Training sequences of a user: every window of the history, or the last one alone."""
    lr: float = pydantic.Field(1e-3, gt=0)
    """Learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate of a full run: constant, or decayed over `time_budget` or `epochs`."""
    ema: float = pydantic.Field(0.99, ge=0, lt=1)
    """Share of the averaged weights that a step keeps; 0 uses the newest weights."""
    epochs: int = pydantic.Field(100, ge=1)
    """Largest number of epochs."""
    patience: int = pydantic.Field(3, ge=1)
    """Epochs without improvement on validation after which training stops."""
    refit: bool = False
    """Train the model once more on all rows, with the number of epochs found."""
    time_budget: str = "10m"
    """Largest training time of the network, from its first batch."""
    seed: int = pydantic.Field(0, ge=0)
    """Seed of every random choice in training."""

    @pydantic.field_validator("time_budget")
    @classmethod
    def _readable(cls, budget: str) -> str:
        seconds("train.time_budget", budget)
        return budget

    @property
    def time_budget_seconds(self) -> float:
        return seconds("train.time_budget", self.time_budget)
