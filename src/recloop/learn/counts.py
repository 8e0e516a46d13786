"""The counting half of a bundle: popular lists, co-visitation rows, the half-life of bought-before; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recloop.bundle import Bundle, ItemTable, UserTable
from recloop.config import Config
from recloop.errors import UserError
from recloop.features.state import Timeline
from recloop.features.vocab import as_text
from recloop.learn.arrays import Tables
from recloop.learn.mixing import choose_mix
from recloop.models.base import SOURCE_OF, TrainData, load_model
from recloop.models.covisitation import RECENT
from recloop.recommend import similar
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.ladder import segment_lists
from recloop.recommend.recall import Recalled
from recloop.recommend.recommender import LADDER, Recommender
from recloop.records import MIX_SOURCES, Query

HALF_LIVES: tuple[float | None, ...] = (None, 30.0, 90.0, 365.0)
"""Days that ``counts.half_life = "auto"`` tries; None: every moment counts the same."""
SEGMENT_LENGTH = 1000


def fit_counts(
    data: TrainData, tables: Tables, other: str = "", options: Mapping[str, Any] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and scorers of the counting models; the half-life is still None (`tune`).

    Args:
        other: A closed-form model by dotted path; it takes the place of ours for the source that it feeds.
        options: Of that model.
    """
    models: dict[str, Any] = {load_model(name, {}).source: (name, load_model(name, {})) for name in SOURCE_OF}
    if other and other not in SOURCE_OF:
        model = load_model(other, options or {})
        if model.source not in {*models, "model"}:
            expected = f"a source that serving knows in closed form: {', '.join([*models, 'model'])}"
            raise UserError(f"{other}.source", model.source, expected, "mend the class")
        models[model.source] = (other, model)
    arrays = {name: array for _, model in models.values() for name, array in model.fit(data).items()}
    if tables.spec.segment:
        values = [None if row is None else row.get(tables.spec.segment) for row in tables.user_attributes]
        segments = [None if value is None else as_text(value) for value in values]
        row_user = data.moment_user[data.row_moment]
        arrays |= segment_lists(segments, row_user, data.items, data.n_items + 1, SEGMENT_LENGTH)
    scorers: dict[str, Any] = {
        source: {"kind": model.kind, "model": name} for source, (name, model) in sorted(models.items())
    }
    if "model" in scorers:
        scorers["model"]["config"] = models["model"][1].config.model_dump(mode="json")
    scorers["history"]["half_life"] = None
    recent = getattr(models["neighbours"][1].config, "recent", RECENT)
    scorers["neighbours"]["recent"] = list(recent)
    return arrays, scorers


def draft(
    config: Config,
    tables: Tables,
    data: TrainData,
    arrays: dict[str, np.ndarray],
    scorers: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> Bundle:
    """A bundle in memory, its mixes not yet chosen: every source weighs 1."""
    placements = {
        name: {"list": placement.list, "weights": _start(placement.list, placement.mix, scorers),
               "filter": placement.filter, "k": placement.k}
        for name, placement in config.placement.items()
    }  # fmt: skip
    closed = scorers.get("model", {})
    named = {"name": closed["model"], "config": closed["config"]} if "config" in closed else manifest["model"]
    return Bundle(
        manifest={**manifest, "model": named, "scorers": dict(scorers)},
        spec=tables.spec,
        fields=tables.fields,
        policy={"placements": placements, "filter_seen": config.split.filter_seen, "ladder": list(LADDER)},
        items=ItemTable(
            ids=tables.items,
            count=data.counts[1:],
            tail=tables.tail,
            first_seq=tables.first_seq,
            attributes=[row or {} for row in tables.item_attributes],
        ),
        users=UserTable(tables.users, np.diff(data.moment_offsets[data.user_offsets]))
        if "user_vectors" in arrays
        else None,
        arrays=arrays,
    )


def tune(
    bundle: Bundle, config: Config, data: TrainData, past: Timeline, threads: int = 1
) -> tuple[Bundle, dict[str, Any]]:
    """The half-life and the mixes, chosen by NDCG@10 on the validation moments; what was chosen, for the log.

    Args:
        past: Timeline of the rows before the cut, validation moments included: each query sees what came before it.
    """
    chosen: dict[str, Any] = {"validation_moments": 0 if data.held is None else len(data.held)}
    if data.held is None:
        days = config.counts.half_life
        return _with_half_life(bundle, days if isinstance(days, float) else None), chosen
    bundle, chosen["half_life"], own = _choose_half_life(bundle, config, data, past)
    recalled = _recalled(bundle, data, past, [source for source in bundle.scorers if source != "history"], threads)
    lists = {source: found.items for source, found in {**recalled, "history": own}.items()}
    chosen["validation_ndcg"] = {
        source: choose_mix({source: found}, data.held.items, data.held.offsets)[1] for source, found in lists.items()
    }
    weights, ndcg = choose_mix(lists, data.held.items, data.held.offsets)
    chosen["mix"], chosen["validation_ndcg"]["mix"] = weights, ndcg
    placements = {
        name: {**placement, "weights": weights} if _auto(config, name) else placement
        for name, placement in bundle.policy["placements"].items()
    }
    return replace(bundle, policy={**bundle.policy, "placements": placements}), chosen


def _choose_half_life(
    bundle: Bundle, config: Config, data: TrainData, past: Timeline
) -> tuple[Bundle, float | None, Recalled]:
    days = config.counts.half_life
    tried: tuple[float | None, ...] = HALF_LIVES
    if days != "auto":
        tried = (None,) if days == "none" else (float(days),)
    best: tuple[float, Bundle, float | None, Recalled] | None = None
    for half_life in tried:
        candidate = _with_half_life(bundle, half_life)
        own = _recalled(candidate, data, past, ["history"])["history"]
        assert data.held is not None
        _, ndcg = choose_mix({"history": own.items}, data.held.items, data.held.offsets)
        if best is None or ndcg > best[0]:
            best = (ndcg, candidate, half_life, own)
    assert best is not None
    return best[1:]


def _with_half_life(bundle: Bundle, half_life: float | None) -> Bundle:
    scorers = {**bundle.scorers, "history": {**bundle.scorers["history"], "half_life": half_life}}
    return replace(bundle, manifest={**bundle.manifest, "scorers": scorers})


def _recalled(
    bundle: Bundle, data: TrainData, past: Timeline, sources: list[str], threads: int = 1, chunk: int = 256
) -> dict[str, Recalled]:
    """The top 200 of each source for every validation query."""
    held = data.held
    assert held is not None
    table = bundle.items
    recommender = Recommender(bundle, Catalogue.of_table(table.ids.ids, table.attributes), threads)
    placement = next(iter(bundle.policy["placements"]))
    parts = []
    for start in range(0, len(held), chunk):
        span = slice(start, start + chunk)
        users = [data.user_ids[ix] for ix in held.user_ix[span]]
        states = past.states(users, held.as_of[span].tolist(), held.now[span].tolist())
        encoded = recommender.encode(states, held.now[span])
        queries = [
            Query(user_id=user, now=int(now), placement=placement)
            for user, now in zip(users, held.now[span], strict=True)
        ]
        parts.append(recommender.recall(encoded, recommender.allowed(encoded, queries), sources))
    return {
        source: Recalled(
            np.concatenate([part[source].items for part in parts]),
            np.concatenate([part[source].scores for part in parts]),
        )
        for source in sources
    }


def _auto(config: Config, name: str) -> bool:
    return config.placement[name].list == "for_you" and config.placement[name].mix == "auto"


def _start(kind: str, mix: Any, scorers: Mapping[str, Any]) -> dict[str, float]:
    if kind == "popular":
        return {"popular": 1.0}
    if kind == "latest":
        return {}
    if kind == similar.LIST and mix == "auto":
        return dict(similar.PLACEMENT["weights"])
    if mix == "auto":
        return {source: 1.0 for source in MIX_SOURCES if source in scorers}
    # A network comes after the counts: its weight waits for it.
    held = {*scorers, "model"}
    return {source: float(mix[source]) for source in MIX_SOURCES if mix.get(source) and source in held}
