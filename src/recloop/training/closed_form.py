"""Closed-form models beside the three baselines: choice, options and sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from recloop.bundle import array_name
from recloop.config import Config
from recloop.errors import UserError
from recloop.models import ease
from recloop.models.base import SOURCE_OF, ClosedFormModel, TrainData, is_closed_form
from recloop.models.covisitation import RECENT_WEIGHTS
from recloop.policy import AGAIN, AGAIN_SOURCE, ScorerSpec, custom_scorers
from recloop.records import FUSED_SOURCES, SOURCES

AUTO_EASE_ITEMS: Final = 6_000
"""Largest catalog for which ``baselines.extra = "auto"`` tries EASE; its time grows with the cube."""
OWN_KINDS: Final = ("neighbours", "vectors", "due")
"""Kinds of a closed-form model that adds a source of its own name."""

Options = Mapping[str, Any]


def further_models(config: Config, n_items: int, named: Mapping[str, Options]) -> dict[str, Options]:
    """Return the options of the models to fit beside the baselines, by name.

    Args:
        n_items: Size of the catalog.
        named: The model of ``[model]`` with its options; empty for a network.
    """
    extra = config.baselines.extra
    names = ("ease" if n_items <= AUTO_EASE_ITEMS else "item_knn",) if extra == "auto" else extra
    again: dict[str, Options] = (
        {AGAIN_SOURCE: {}} if any(one.list == AGAIN for one in config.placement.values()) else {}
    )
    return {**{name: {} for name in names if name not in SOURCE_OF}, **again, **named}


def fit_model(name: str, model: Any, data: TrainData) -> dict[str, np.ndarray]:
    """Fit a closed-form model and return its arrays by their names in a bundle.

    Raises:
        UserError: a number is not finite.
    """
    with np.errstate(all="ignore"):  # the error names what overflows
        arrays = {array_name(model.source, part): array for part, array in model.fit(data).items()}
    for array, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            options = ", ".join(f"{key}={value}" for key, value in model.config.model_dump().items())
            expected = f"options with which {array} is finite, not {options or 'none'}"
            raise UserError("model.name", name, expected, "correct the options of [model] in recloop.toml")
    return arrays


def memory_line(models: Mapping[str, Options], n_items: int) -> str:
    """Return the memory that EASE needs, before it is fitted; empty without EASE."""
    return f"ease over {n_items:,} items takes {ease.memory_text(n_items)}" if "ease" in models else ""


def closed_form(scorers: Mapping[str, ScorerSpec], config: Config) -> dict[str, Options]:
    """Return the options of a bundle's models beside the baselines, by name.

    The options are those of the bundle; an earlier bundle does not hold them, and the configuration does.
    """
    return {
        scorer.model: _options(scorer, config) for scorer in custom_scorers(scorers) if is_closed_form(scorer.model)
    }


def _options(scorer: ScorerSpec, config: Config) -> Options:
    if scorer.config is not None:
        return scorer.config
    return config.model.options if scorer.model == config.model.name else {}


def checked_source(name: str, model: ClosedFormModel) -> str:
    """Return the source of a model.

    Raises:
        UserError: its name is not a plain word, or the model cannot feed it.
    """
    reserved = set(SOURCES) - set(FUSED_SOURCES)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", model.source) or model.source in reserved:
        expected = f"{', '.join(FUSED_SOURCES)}, or a name of its own: lower-case letters, digits and _"
        raise UserError(f"{name}.source", model.source, expected, 'source = "my_source" in the class')
    if model.source not in FUSED_SOURCES and model.kind not in OWN_KINDS:
        expected = f"{' or '.join(OWN_KINDS)} for a source of its own name"
        raise UserError(f"{name}.kind", model.kind, expected, 'kind = "neighbours" in the class')
    return model.source


def recent_weights(model: Any) -> tuple[float, ...] | None:
    """Weights of the newest moments of a source of neighbours; None: all items count."""
    if model.kind != "neighbours":
        return None
    recent = getattr(model.config, "recent", RECENT_WEIGHTS if model.source == "neighbours" else None)
    return None if recent is None else tuple(recent)
