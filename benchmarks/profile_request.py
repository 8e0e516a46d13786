"""Print the walk of a list request with the microseconds of each step.

    .venv/bin/python benchmarks/profile_request.py PROJECT
    .venv/bin/python benchmarks/profile_request.py PROJECT --filter "category = 'c01'" --requests 2000 --json
    .venv/bin/python benchmarks/profile_request.py PROJECT --cold

The request runs in this process, from the parsed path to the bytes of the body, without network. Each step is timed alone
without the steps inside it; ``other`` is the rest of the request. A value is the median over the requests after a first
round of the same users. Each request has a random one of the filters; by default, of the categories of a benchmark project,
as in `serve.py`. With ``--cold`` every request is its user's first one. The functions are those of the service; a step that
this version does not have is left out. Stop `recloop serve` first: the project is opened for writing, and decisions are
recorded.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import polars as pl
import serve_project

from recloop.project import open_project
from recloop.recommend import ranker as rankers
from recloop.recommend import recommender as recommenders
from recloop.recommend import sources
from recloop.serve import recommend_routes
from recloop.serve import service as services
from recloop.serve.access import AccessRules
from recloop.serve.list_endpoint import ListEndpoint
from recloop.serve.recommend_routes import RecommendRoutes
from recloop.serve.service import Service

HEADERS: Final = [(b"host", b"127.0.0.1")]
MAX_USERS: Final = 500


class Steps:
    """Exclusive time of each step of the current request, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._request: dict[str, float] = defaultdict(float)
        self._inner = [0.0]  # time of the steps inside each open step

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that also adds its exclusive time to a step."""

        def wrapper(*words: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*words, **named)
            finally:
                whole = time.perf_counter() - begin
                self._request[name] += whole - self._inner.pop()
                self._inner[-1] += whole

        return wrapper

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Time an attribute of a module or object; a missing one is left out."""
        if hasattr(owner, attribute):
            setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))

    def end_request(self) -> None:
        for name, seconds in self._request.items():
            self.seconds[name].append(seconds)
        self._request.clear()


class Encoder:
    """JSON encoder whose method can be replaced."""

    def __init__(self, encoder: Any) -> None:
        self.encode = encoder.encode


def main() -> None:
    """Send the requests and print the steps."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("project", type=Path)
    words.add_argument("--requests", type=int, default=1_000)
    words.add_argument(
        "--filter", action="append", help="condition of the requests; repeatable; default: each category"
    )
    words.add_argument("--cold", action="store_true", help="drop the cached states before each request")
    words.add_argument("--json", action="store_true")
    asked = words.parse_args()
    sources.KEEP_VECTORS = False  # every request encodes
    project = open_project(asked.project)
    service = Service(project)
    try:
        steps = Steps()
        install(steps, service)
        endpoint = ListEndpoint(RecommendRoutes(service), AccessRules(service))
        answer = steps.timed("other", endpoint.reply)
        users = users_of(asked.project)
        conditions = asked.filter or filters_of(service)
        queries = [f"n=10&filter={quote(condition)}".encode() for condition in conditions] or [b"n=10"]
        draw = random.Random(0)
        walks = [*users, *(draw.choice(users) for _ in range(asked.requests))]
        for number, user in enumerate(walks):
            if asked.cold:
                service.user_states.clear()
            reply = answer(f"/v1/recommend/{user}", draw.choice(queries), HEADERS)
            if reply.status != 200:
                raise SystemExit(reply.body.decode())
            steps.end_request()
            if number == len(users) - 1:  # the first round fills the caches
                steps.seconds.clear()
    finally:
        service.close()
    microseconds = {name: 1e6 * statistics.median(values) for name, values in steps.seconds.items()}
    total = sum(microseconds.values())  # medians: a pause of the process is not part of a step
    microseconds["sources"] = sum(value for name, value in microseconds.items() if name.startswith("source "))
    sys.stdout.write(report(microseconds, total, conditions, asked.json))


def install(steps: Steps, service: Service) -> None:
    """Time the steps of a request of this service."""
    recommender = service.recommender
    steps.wrap(service.user_states, "state", "state")
    steps.wrap(service, "_state", "state")
    steps.wrap(recommender, "encode", "encode")
    steps.wrap(service.catalog, "check", "filter check")
    steps.wrap(recommender, "candidate_mask", "mask")
    for name, source in recommender.scorers.items():
        steps.wrap(source, "best", f"source {name}")
    if recommender.ranker is not None:
        steps.wrap(rankers, "candidates_of", "ranker union")
        steps.wrap(recommender.ranker._space, "matrix", "ranker features")
        steps.wrap(recommender.ranker._session, "run", "ranker trees")
        steps.wrap(recommender.ranker, "rank", "ranker rest")
    steps.wrap(recommenders, "fuse", "fuse")
    steps.wrap(recommender.slots, "assemble", "slots")
    steps.wrap(recommender, "inputs", "inputs")
    steps.wrap(services, "build_decision", "decision")
    steps.wrap(service.decisions, "put", "decision")
    steps.wrap(service, "reply", "reply")
    encoder: Any = Encoder(recommend_routes.ENCODER)
    recommend_routes.ENCODER = encoder
    steps.wrap(encoder, "encode", "reply")


def users_of(project: Path) -> list[str]:
    """A sample of the users of the split."""
    split = project / "data" / "split" / "train.parquet"
    users = pl.read_parquet(split, columns=["user_id"])["user_id"].cast(pl.String).unique().sort().to_list()
    return random.Random(1).sample(users, min(MAX_USERS, len(users)))


def filters_of(service: Service) -> list[str]:
    """Conditions of `serve.py`: one for each category of a benchmark project."""
    if "category" not in service.catalog.columns:
        return []
    return [f"category = 'c{code:02d}'" for code in range(serve_project.CATEGORIES)]


def report(microseconds: dict[str, float], total: float, conditions: list[str], as_json: bool) -> str:
    """Table of the steps, or one JSON object."""
    rounded = {name: round(value, 1) for name, value in microseconds.items()}
    if as_json:
        return json.dumps({"filters": conditions, "total": round(total, 1), "steps": rounded}) + "\n"
    lines = ["| step | microseconds | share |\n| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {value:,.1f} | {value / total:.1%} |" for name, value in rounded.items() if name != "sources"
    ]
    return "\n".join([*lines, f"| request | {total:,.1f} | 100.0% |"]) + "\n"


if __name__ == "__main__":
    main()
