"""Typed records of a bundle's policy: placements, fallback order, scorers.

``policy.json`` and the scorers of ``manifest.json`` are parsed here once, when a bundle is loaded. Unknown keys are kept in
``other_keys`` and written back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from recloop.errors import BundleError
from recloop.files import JsonObject, JsonTree, without_none
from recloop.records import FUSED_SOURCES, source_names

RRF: Final = 60
"""score(i) = sum over sources of w_s / (60 + rank_s(i)), rank from 1 (Cormack et al., SIGIR 2009).

Default constant of the rank fusion. A smaller one gives the first ranks of a source more weight; ``weights = "auto"``
chooses it on validation.
"""
RANKERS: Final = ("gbdt", "mlp")
"""Models of the second stage."""
LISTS: Final = ("for_you", "again", "popular", "similar", "latest")
"""Kinds of list that a placement serves."""
HOME: Final = "home"
"""Placement that gates judge and that the rows of an evaluation show."""
FOR_YOU: Final = "for_you"
"""List of the items that a user takes next."""
AGAIN: Final = "again"
"""List of the items that a user had before, the most due first; it has no fallback."""
AGAIN_SOURCE: Final = "buy_again"
"""Source of a list `AGAIN`."""
PERSONAL: Final = (FOR_YOU, AGAIN)
"""Kinds of list that depend on the history of the user."""
FALLBACK: Final = ("attributes", "segment", "popular", "latest")
"""Sources of the fallback, in the order of a new bundle."""
FADING: Final = ("popular", "neighbours", "history")
"""Sources with a half-life, in tuning order; Popular is first because its order breaks the ties of the others."""


@dataclass(frozen=True)
class RankerSpec:
    """Second stage of a bundle: a model that orders what the sources recall.

    Attributes:
        model: ``gbdt`` or ``mlp``.
        depths: Candidates that each source supplies, in the order of `source_names`.
        features: Names of the inputs of ``ranker.onnx``, in order (`recloop.features.ranking`).
        fields, numbers: Categorical and numeric item fields behind the features.
        moments: Number of moments that it learned from. until: Stamp before which they happened.
    """

    model: str
    depths: Mapping[str, int]
    features: tuple[str, ...]
    fields: tuple[str, ...]
    numbers: tuple[str, ...]
    moments: int
    until: int
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, tree: JsonObject) -> RankerSpec:
        spec = cls(**tree.fields(cls), other_keys=tree.unread)
        tree.check("model", [spec.model], RANKERS)
        depths = {name: spec.depths[name] for name in source_names(spec.depths) if name in spec.depths}
        spec = replace(spec, depths=depths)
        if not spec.depths:
            raise BundleError("policy.json.ranker.depths", "{}", "at least one source", "recloop update --full")
        return spec

    def to_json(self) -> JsonTree:
        known = {name: value for name, value in vars(self).items() if name != "other_keys"}
        lists = {name: [*getattr(self, name)] for name in ("features", "fields", "numbers")}
        return {**self.other_keys, **known, **lists, "depths": dict(self.depths)}


def sources_of_new_items(scorers: Collection[str]) -> dict[str, float]:
    """Return weight 1 for the sources that recall new items."""
    owned = {"history", AGAIN_SOURCE}
    return {source: 1.0 for source in source_names(scorers) if source in scorers and source not in owned}


@dataclass(frozen=True)
class NewItems:
    """Share of new items in a list, and the fusion that supplies further ones.

    Attributes:
        share: Smallest share of new items, above 0.
        weights, rrf: Weights and constant of the fusion whose new items follow those of the list; see `Placement`.
    """

    share: float
    weights: Mapping[str, float]
    rrf: float | None = None

    @property
    def fusion_constant(self) -> float:
        return RRF if self.rrf is None else self.rrf

    def slots(self, n: int) -> int:
        """Return the number of new items in a list of ``n``.

        Below a share of 1 one slot is left for any item.
        """
        return min(math.ceil(self.share * n - 1e-9), n if self.share >= 1 else n - 1)

    @classmethod
    def read(cls, tree: JsonObject, sources: Collection[str]) -> NewItems:
        weights = tree.required("weights", dict[str, int | float])
        tree.check("weights", weights, source_names(sources))
        return cls(tree.required("share", float), weights, tree.number("rrf"))

    def to_json(self) -> JsonTree:
        return {"share": self.share, "weights": dict(self.weights), **without_none(rrf=self.rrf)}


@dataclass(frozen=True)
class Placement:
    """Placement: the kind of its list, its sources and their weights.

    Attributes:
        list: ``for_you``, ``again``, ``popular``, ``similar`` or ``latest``.
        weights: Weight of each source in the fusion; a source with weight 0 or without a weight is not used.
        filter: Condition on every item of the list; empty: none.
        n: Length of a list if the query has none.
        rrf: Constant of the rank fusion; None: `RRF`.
        ranked: True if the bundle's ranker orders the list; its free slots follow the fusion.
        filter_seen: Leave out what the user has taken before; None: the setting of the policy.
        new: Items new to the user that the list holds at least; None: no such rule.
        cold_share: Share of the slots, rounded down, for items without a row in the bundle; they end the list.
        cold_own: Slots at the end of the list, at most, for items without a row that the user took in several moments.
    """

    list: str
    weights: Mapping[str, float]
    filter: str
    n: int
    rrf: float | None = None
    ranked: bool = False
    filter_seen: bool | None = None
    new: NewItems | None = None
    cold_share: float = 0.0
    cold_own: int = 0
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fusion_constant(self) -> float:
        return RRF if self.rrf is None else self.rrf

    def cold_slots(self, n: int) -> int:
        """Return the number of slots for items without a row in a list of ``n``."""
        return int(self.cold_share * n + 1e-9)

    def own_cold_slots(self, n: int) -> int:
        """Return the largest number of slots of `cold_own` in a list of ``n``.

        One slot is left for any item.
        """
        return min(self.cold_own, n - 1)

    @classmethod
    def read(cls, tree: JsonObject, sources: Collection[str] = FUSED_SOURCES) -> Placement:
        kind = tree.required("list", str)
        tree.check("list", [kind], LISTS)
        weights = tree.required("weights", dict[str, int | float])
        tree.check("weights", weights, source_names(sources))
        return cls(
            list=kind,
            weights=weights,
            filter=tree.required("filter", str),
            n=tree.required(_stored_key(tree, "n", "k"), int),
            rrf=tree.number("rrf"),
            ranked=tree.optional("ranked", bool) or False,
            filter_seen=tree.optional("filter_seen", bool),
            new=NewItems.read(tree.child("new"), sources) if tree.unread.get("new") else None,
            cold_share=tree.number("cold_share") or 0.0,
            cold_own=tree.optional("cold_own", int) or 0,
            other_keys=tree.unread,
        )

    def to_json(self) -> JsonTree:
        known = {"list": self.list, "weights": dict(self.weights), "filter": self.filter, "n": self.n}
        return {
            **self.other_keys,
            **known,
            **without_none(rrf=self.rrf, ranked=self.ranked or None, filter_seen=self.filter_seen),
            **({} if self.new is None else {"new": self.new.to_json()}),
            **without_none(cold_share=self.cold_share or None, cold_own=self.cold_own or None),
        }


@dataclass(frozen=True)
class CatalogRules:
    """Attributes that take items out of lists; an empty name: no such rule.

    Attributes:
        availability: Attribute that is false, 0 or a text such as ``out_of_stock`` for items that cannot be bought.
        published, expires: Attributes with the times from which an item is shown and no longer shown.
        group: Attribute that variants of one product share; a list holds one of them.
        timezone: Zone of times without one.
    """

    availability: str = ""
    published: str = ""
    expires: str = ""
    group: str = ""
    timezone: str = "UTC"
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, tree: JsonObject) -> CatalogRules:
        fields = tree.fields(cls)
        return cls(**fields, other_keys=tree.unread)

    def to_json(self) -> JsonTree:
        known = {name: value for name, value in vars(self).items() if name != "other_keys"}
        return {**self.other_keys, **known}


@dataclass(frozen=True)
class Policy:
    """Policy of a bundle: placements, seen-item filter, fallback order and ranker."""

    placements: Mapping[str, Placement]
    filter_seen: bool
    fallback: tuple[str, ...]
    ranker: RankerSpec | None = None
    catalog: CatalogRules = CatalogRules()
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def default_placement(self) -> str:
        """Placement ``home``, or the first one; a stored policy orders them by name."""
        return HOME if HOME in self.placements else next(iter(self.placements))

    def filters_seen(self, placement: Placement, asked: bool | None = None) -> bool:
        """Return True if lists leave out seen items: as asked, by placement or by policy."""
        if placement.list == AGAIN:
            return False
        settings = (asked, placement.filter_seen)
        return next((value for value in settings if value is not None), self.filter_seen)

    def new_items(self, placement: Placement) -> NewItems | None:
        """Return the rule for new items of a placement whose lists may show seen items."""
        return None if self.filters_seen(placement) else placement.new

    def with_new_items(self, placement: Placement, share: float, scorers: Collection[str]) -> Placement:
        """Return a placement whose lists hold at least this share of new items.

        A placement without a rule takes the fusion of another one of new items, if the bundle has one; validation chose
        its weights. Otherwise each source that recalls new items has weight 1.

        Args:
            share: 0 to 1; 0 removes the rule. scorers: Sources of the bundle.
        """
        if share <= 0:
            return replace(placement, new=None)
        chosen = next((one.new for one in (placement, *self.placements.values()) if one.new is not None), None)
        if chosen is None:
            chosen = next((NewItems(share, one.weights, one.rrf) for one in self._of_new_items()), None)
        new = chosen or NewItems(share, sources_of_new_items(scorers))
        return replace(placement, new=replace(new, share=share))

    def _of_new_items(self) -> list[Placement]:
        """Return the placements whose weights were chosen on items new to the user."""
        for_you = [placement for placement in self.placements.values() if placement.list == FOR_YOU]
        return [placement for placement in for_you if self.filters_seen(placement)]

    def with_placement(self, name: str, placement: Placement) -> Policy:
        return replace(self, placements={**self.placements, name: placement})

    @classmethod
    def from_json(cls, tree: Any, sources: Collection[str] = FUSED_SOURCES) -> Policy:
        """Parse ``policy.json`` of a bundle with these sources.

        Raises:
            BundleError: a key is missing or has another type, a list or source is unknown, or the policy has no placement.
        """
        policy = JsonObject(tree, "policy.json")
        placements = {name: Placement.read(one, sources) for name, one in policy.children("placements").items()}
        if not placements:
            raise BundleError("policy.json.placements", "{}", "at least one placement", "recloop update --full")
        return cls(
            placements=placements,
            filter_seen=policy.required("filter_seen", bool),
            fallback=_read_fallback(policy),
            ranker=RankerSpec.read(policy.child("ranker")) if policy.unread.get("ranker") else None,
            catalog=CatalogRules.read(policy.child("catalog")) if policy.unread.get("catalog") else CatalogRules(),
            other_keys=policy.unread,
        )

    def to_json(self) -> JsonTree:
        return {
            **self.other_keys,
            "placements": {name: placement.to_json() for name, placement in self.placements.items()},
            "filter_seen": self.filter_seen,
            "fallback": [*self.fallback],
            **({} if self.ranker is None else {"ranker": self.ranker.to_json()}),
            **({} if self.catalog == CatalogRules() else {"catalog": self.catalog.to_json()}),
        }


def _stored_key(tree: JsonObject, key: str, earlier: str) -> str:
    """Select the earlier name of a key if an object has only that one."""
    return earlier if earlier in tree.unread and key not in tree.unread else key


def _read_fallback(policy: JsonObject) -> tuple[str, ...]:
    key = _stored_key(policy, "fallback", "ladder")
    stages = policy.required(key, tuple[str, ...])
    policy.check(key, stages, FALLBACK)
    return stages


@dataclass(frozen=True)
class ScorerSpec:
    """Source of a bundle: the model that feeds it, and its settings.

    Attributes:
        source: ``model``, ``history``, ``neighbours``, ``popular``, or a name that the model chose.
        model: Name of a built-in model, or ``package.module:Class``.
        kind: ``vectors``, ``neighbours``, ``counts`` or ``rank``.
        config: Options of a closed-form model, of a baseline the configured ones; None for a network.
        half_life: Days; None: every moment counts the same.
        same: Weight of two items of one moment, for co-visitation; None: 0.
        recent: Weights of the newest moments, for ``neighbours``; None: all items of the history count the same.
        of: Sources that supply the items which a ``rank`` model orders.
        rows: Rows of items and moments that a closed-form model was fitted on; None for a baseline or a network.
        until: End of those rows, int64 microseconds.
    """

    source: str
    model: str
    kind: str
    config: Mapping[str, Any] | None = None
    half_life: float | None = None
    same: float | None = None
    recent: tuple[float, ...] | None = None
    of: tuple[str, ...] | None = None
    rows: int | None = None
    until: int | None = None
    other_keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fit_options(self) -> JsonTree:
        """Options of a baseline, both configured and chosen on validation."""
        if self.source == "history":
            return {}
        return {**(self.config or {}), "half_life": self.half_life, **without_none(same=self.same)}

    @property
    def is_baseline(self) -> bool:
        """True for a built-in baseline, which every bundle holds."""
        return self.source in FADING and ":" not in self.model

    @classmethod
    def read(cls, source: str, tree: JsonObject) -> ScorerSpec:
        return cls(
            source=source,
            model=tree.required("model", str),
            kind=tree.required("kind", str),
            config=tree.optional("config", JsonTree),
            half_life=tree.nullable("half_life", float),
            same=tree.number("same"),
            recent=tree.optional("recent", tuple[int | float, ...]),
            of=tree.optional("of", tuple[str, ...]),
            rows=tree.optional("rows", int),
            until=tree.optional("until", int),
            other_keys=tree.unread,
        )

    def to_json(self) -> JsonTree:
        known: JsonTree = {"kind": self.kind, "model": self.model}
        if self.source in FADING:
            known["half_life"] = self.half_life
        config = None if self.config is None else dict(self.config)
        recent, of = (None if values is None else [*values] for values in (self.recent, self.of))
        fit = {"rows": self.rows, "until": self.until, "same": self.same}
        return {**self.other_keys, **known, **without_none(config=config, recent=recent, of=of, **fit)}


def custom_scorers(scorers: Mapping[str, ScorerSpec]) -> Sequence[ScorerSpec]:
    """Scorers that are not built-in baselines: networks and configured models."""
    return [scorer for scorer in scorers.values() if not scorer.is_baseline]
