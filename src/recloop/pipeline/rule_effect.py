"""Effect of a cleaning rule on the counting models, paired on test queries.

    recloop doctor --effect clean.duplicates

Both sides learn their own rows before one cut and answer the same moments after it. The targets are rows that both
sides keep, so that neither is judged on rows that only the other has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl
import rich.console
import rich.table
import rich.text
from numpy.typing import NDArray

from recloop import __version__
from recloop.bundle import Bundle
from recloop.config import Burst, Clean, Config
from recloop.data.clean import CleanResult, clean
from recloop.data.doctor.id_checks import non_products
from recloop.data.entities import EntityTable, read_project
from recloop.data.read import RawEvents
from recloop.data.split import cut_of
from recloop.errors import UserError
from recloop.evaluation.bootstrap import Difference, difference, user_means
from recloop.evaluation.paired import answer, subsample
from recloop.evaluation.queries import Queries, make_queries
from recloop.features.dwell import DwellPercentiles
from recloop.features.learned_range import nothing_held
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.manifest import Manifest, ModelSpec, Training, TrainingRows
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.records import ITEM_ID, SEQ, STAMP, max_int
from recloop.training import baselines
from recloop.training.dataset import make_tables, train_data

SOURCES: Final = {
    "popular": {"popular": 1.0},
    "bought_before": {"history": 1.0},
    "covisitation": {"neighbours": 1.0},
    "served": {"popular": 1.0, "history": 1.0, "neighbours": 1.0},
}
"""Fusion weights of each compared list; ``served`` fuses the three counting models with equal weights."""
METRIC: Final = "NDCG@10"


@dataclass(frozen=True)
class ListEffect:
    """NDCG@10 of one list with and without the rule.

    Both are means over users; ``difference`` is paired.
    """

    name: str
    with_rule: float
    without: float
    difference: Difference

    def to_json(self) -> JsonTree:
        """JSON object of one list."""
        return {
            "list": self.name,
            "with": round(self.with_rule, 6),
            "without": round(self.without, 6),
            "difference": self.difference.to_json(),
        }


@dataclass(frozen=True)
class RuleEffect:
    """Effect of one rule on the counting models.

    Attributes:
        rule: Key of the configuration.
        on, off: Value of the key with and without the rule.
        removed: Rows that the rule removes.
        moments, users: Test moments and their users.
    """

    rule: str
    on: str
    off: str
    removed: int
    moments: int
    users: int
    lists: tuple[ListEffect, ...]

    def to_json(self) -> JsonTree:
        """JSON object of ``recloop doctor --effect RULE --json``."""
        return {
            "rule": self.rule,
            "on": self.on,
            "off": self.off,
            "removed": self.removed,
            "moments": self.moments,
            "users": self.users,
            "metric": METRIC,
            "lists": [effect.to_json() for effect in self.lists],
        }


def measure_rule(project: Project, rule: str) -> RuleEffect:
    """Compare the counting models with and without a rule of ``[clean]``.

    Args:
        rule: Name of the key, with or without ``clean.``; without a value in the configuration its default is used,
            and for ``exclude_items`` the items that the doctor proposes.

    Raises:
        UserError: the rule is unknown, removes no row, or leaves no test moment.
    """
    raw, items, users = read_project(project)
    name = rule.removeprefix("clean.")
    on, off = _variants(project.config, name, raw, items)
    with_rule, without = _cleaned(raw, items, users, on), _cleaned(raw, items, users, off)
    n_removed = len(without.valid_rows) - len(with_rule.valid_rows)
    on_value, off_value = (str(_plain(vars(config.clean)[name])) for config in (on, off))
    if not n_removed:
        raise UserError("--effect", rule, "a rule that removes rows of this log", "recloop doctor")
    cut = cut_of(with_rule.valid_rows, on.split.quantile)
    both = with_rule.valid_rows.join(without.valid_rows.select(SEQ), on=SEQ, how="semi", maintain_order="left")
    queries = subsample(make_queries(both.filter(pl.col(STAMP) >= cut), "successive"))
    if not len(queries):
        raise UserError(
            "test moments", 0, "a positive row after the cut", "use a longer log, or recloop doctor --signals"
        )
    catalog, people = (None if table is None else _numbered(table) for table in (items, users))
    sides = []
    for config, side in ((on, with_rule), (off, without)):
        bundle = counts_bundle(config, side.valid_rows, cut, catalog, people, side.dwell)
        timeline = StateHistory(side.valid_rows, people)
        sides.append(ndcg_by_list(bundle, queries, timeline, Catalog.from_frames([catalog])))
    lists = tuple(_list_effect(name, sides[0][name], sides[1][name], queries.users, on.train.seed) for name in SOURCES)
    n_users = len(set(queries.users))
    return RuleEffect(f"clean.{name}", on_value, off_value, n_removed, len(queries), n_users, lists)


def _variants(config: Config, name: str, raw: RawEvents, items: EntityTable | None) -> tuple[Config, Config]:
    """Configuration with the rule and without it."""
    defaults = Clean()
    catalog = items.frame[ITEM_ID].to_list() if items is not None and config.data.items else ()
    proposed = tuple(found.item_id for found in non_products(raw.frame, catalog) if found.proposed)
    ways: dict[str, tuple[object, object]] = {
        "duplicates": ("exact", "off"),
        "burst": (config.clean.burst if config.clean.burst != "off" else Burst(), "off"),
        "keep": (config.clean.keep or defaults.keep, ""),
        "exclude_items": (config.clean.exclude_items or proposed, ()),
        "future": (config.clean.future if config.clean.future != "off" else defaults.future, "off"),
    }
    if name not in ways:
        expected = f"a rule of [clean]: {', '.join(ways)}"
        raise UserError("--effect", name, expected, "recloop doctor --effect clean.duplicates")
    on, off = (config.model_copy(update={"clean": config.clean.model_copy(update={name: way})}) for way in ways[name])
    return on, off


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def _cleaned(raw: RawEvents, items: EntityTable | None, users: EntityTable | None, config: Config) -> CleanResult:
    after = sum(len(table.frame) for table in (items, users) if table is not None)
    return clean(raw.frame, config, after, None if items is None else items.frame)


def _numbered(table: EntityTable) -> pl.DataFrame:
    return table.frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(SEQ))


def counts_bundle(
    config: Config,
    valid_rows: pl.DataFrame,
    cut: int,
    items: pl.DataFrame | None,
    users: pl.DataFrame | None,
    dwell: DwellPercentiles | None = None,
) -> Bundle:
    """Fit the counting models on the rows before ``cut``, without decay, in memory."""
    rows = valid_rows.filter(pl.col(STAMP) < cut)
    tables = make_tables(FeatureSpec.from_config(config, dwell), rows, cut, items, users)
    arrays = train_data(tables, rows, None)
    counts, scorers = baselines.fit_counts(arrays, tables)
    trained = TrainingRows(cut, until_seq=max_int(rows[SEQ]), held_seq=nothing_held(rows), protocol="temporal")
    manifest = Manifest(ModelSpec("counts", {}), trained, Training(seed=config.train.seed), recloop=__version__)
    return baselines.draft_bundle(config, tables, arrays, counts, scorers, manifest)


def ndcg_by_list(
    bundle: Bundle, queries: Queries, timeline: StateHistory, catalog: Catalog
) -> dict[str, NDArray[np.float64]]:
    """(Q,) NDCG@10 of each list of `SOURCES`."""
    results = {}
    for name in SOURCES:
        weights = {source: weight for source, weight in SOURCES[name].items() if source in bundle.scorers}
        placements = {
            placement_name: replace(placement, weights=weights) if placement.list == "for_you" else placement
            for placement_name, placement in bundle.policy.placements.items()
        }
        policy = replace(bundle.policy, placements=placements)
        results[name] = answer(replace(bundle, policy=policy), queries, timeline, catalog).ndcg
    return results


def _list_effect(
    name: str, with_rule: NDArray[np.float64], without: NDArray[np.float64], users: list[str], seed: int
) -> ListEffect:
    _, numbers = np.unique(np.array(users, dtype=object), return_inverse=True)
    n_users = int(numbers.max()) + 1
    means = user_means(np.column_stack([with_rule, without]), numbers, n_users)
    paired = difference(means[:, 0], means[:, 1], seed)
    return ListEffect(name, float(np.nanmean(means[:, 0])), float(np.nanmean(means[:, 1])), paired)


def render(effect: RuleEffect) -> rich.console.Group:
    """Render an effect for the terminal."""
    table = rich.table.Table(box=None, pad_edge=False)
    for column in ("list", "with", "without", "difference (95 % CI)", "p", "verdict"):
        table.add_column(column, justify="left" if column in {"list", "verdict"} else "right")
    for row in effect.lists:
        change = row.difference.absolute
        table.add_row(
            row.name, f"{row.with_rule:.4f}", f"{row.without:.4f}",
            f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})", f"{row.difference.p:.3f}", row.difference.verdict,
        )  # fmt: skip
    head = (
        f"{effect.rule} = {effect.on or 'empty'} removes {effect.removed:,} rows. {METRIC} of the counting models with and "
        f"without it, on {effect.moments:,} test moments of {effect.users:,} users; targets are rows that both keep."
    )
    return rich.console.Group(rich.text.Text(head), table)
