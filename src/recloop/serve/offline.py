"""Recommendations without a running server; read-only, no decision is logged."""

from __future__ import annotations

import uuid
from string import Formatter

import msgspec
import rich.table

from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.project import Project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.recommend.user_states import StateRegistry
from recloop.records import Query, now
from recloop.release.assignment import LIVE
from recloop.serve.response import build_response

SLOT_COLUMNS = ("item_id", "score", "source", "reason")


def recommend(
    project: Project,
    user_id: str,
    n: int | None = None,
    placement: str = "home",
    bundle: str = "",
    item: str = "",
    filter_seen: bool | None = None,
    min_new: float | None = None,
) -> JsonTree:
    """Compute the reply of ``GET /v1/recommend/{user_id}``, with item names.

    Args:
        n: List length, 1 to 1000; None for the placement's.
        bundle: A registered bundle; empty for the live one.
        filter_seen: Leave out what the user has taken. min_new: Smallest share of items new to the user, 0 to 1; None for the
            placement's setting of either.

    Raises:
        UserError: unknown bundle or placement, no live bundle yet, n or min_new out of range, or min_new for another kind of
            list.
        BundleError: the bundle may not be served.
    """
    if n is not None and not 1 <= n <= 1000:
        raise UserError("-n", n, "a whole number from 1 to 1000", f"recloop recommend {user_id} -n 10")
    if min_new is not None and not 0 <= min_new <= 1:
        raise UserError("--min-new", min_new, "a number from 0 to 1", f"recloop recommend {user_id} --min-new 0.3")
    if not user_id:
        raise UserError("USER", user_id, "a user id", "recloop recommend USER")
    loading.check_complete(project)
    loaded = project.load_bundle(bundle)
    archive = project.open_archive()
    with project.open_log() as log:
        as_of = max(archive.watermark, log.last_seq())
        catalog = Catalog.from_frames([archive.items(), log.items(until=as_of)])
        registry = StateRegistry(project, archive, log)
        user_id = registry.identities.person(user_id)
        state = registry.open([loaded.spec])[loaded.spec.state_key].read(user_id, as_of)
    query = Query(
        user_id=user_id,
        now=now(),
        n=n or 0,
        placement=placement,
        properties=naming(project.config.data.columns.name),
        request_id=uuid.uuid4().hex,
        item_id=item,
        filter_seen=filter_seen,
        min_new=min_new,
    )
    recommender = Recommender(loaded, catalog, with_availability=True)
    query = recommender.normalize(query)
    ranked = recommender.recommend(state, [query], with_inputs=False)[0]
    reply: JsonTree = msgspec.to_builtins(
        build_response(query, ranked, catalog, loaded.id, LIVE, [], project.config.catalog.aliases)
    )
    return reply


def render(reply: JsonTree) -> rich.table.Table:
    """Format the reply as a table for a terminal."""
    empty = f": {reply['empty_reason']}" if "empty_reason" in reply else ""
    table = rich.table.Table(title=f"{reply['placement']}, {reply['model_version']}{empty}", title_justify="left")
    attributes = [name for name in (reply["items"] or [{}])[0] if name not in SLOT_COLUMNS]
    for column, justify in (("", "right"), ("item", "left"), *((name, "left") for name in attributes)):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column in ("score", "source", "reason"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for rank, item in enumerate(reply["items"], 1):
        values = ["" if item[name] is None else str(item[name]) for name in attributes]
        table.add_row(str(rank), item["item_id"], *values, f"{item['score']:.4f}", item["source"], item["reason"])
    return table


def naming(template: str) -> tuple[str, ...]:
    """List the attributes in ``data.columns.name``: one name, or a template's fields.

    An example of a template is ``{type}, {size}``.
    """
    if "{" not in template:
        return (template,) if template else ()
    return tuple(field for _, field, _, _ in Formatter().parse(template) if field)
