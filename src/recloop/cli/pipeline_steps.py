"""Verbs prepare, train and tune: single steps of an update."""

from __future__ import annotations

from typing import Annotated

import typer

from recloop.cli.terminal import Json, out, plain, print_json, project
from recloop.progress import ConsoleProgress


def prepare(as_json: Json = False) -> None:
    """Read, clean and split the log into data/."""
    from recloop import loop
    from recloop.data.doctor.text import render
    from recloop.storage import locks

    here = project()
    with locks.run_lock(here.root, "prepare"):
        made = loop.collect(here, ConsoleProgress())
    if as_json:
        sizes = {"train": made.train, "valid": made.valid, "test": made.test}
        print_json({**made.report.to_json(), "fingerprint": made.fingerprint, "cut": made.cut, **sizes})
    else:
        out.print(render(made.report))


def train(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="train this model instead of model.name")] = "",
    as_json: Json = False,
) -> None:
    """Train a model on data/ and register its bundle."""
    from recloop import loop
    from recloop.recommend import loading
    from recloop.storage import locks

    here = project()
    with locks.run_lock(here.root, "train"):
        made = loop.train(here, ConsoleProgress(), loading.resolve_model(here, name))
    if as_json:
        print_json(
            {
                "bundle": made.bundle.id,
                "run": made.run,
                "epochs": made.bundle.manifest.train.epochs,
                "seconds": round(made.seconds, 2),
                "metrics": made.bundle.metrics,
            }
        )
    else:
        out.print(made.table.render())
        plain(f"registered: {made.bundle.id}; next: recloop promote {made.bundle.id}")


def tune(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="tune this model instead of model.name")] = "",
    trials: Annotated[int, typer.Option(help="run this many trials, earlier runs included")] = 20,
    budget: Annotated[str, typer.Option(help="stop after this time, e.g. 30m; the next run continues")] = "1h",
    as_json: Json = False,
) -> None:
    """Search a model's settings on validation."""
    from recloop.pipeline import tune as search

    done = search.tune(project(), name, trials, budget, ConsoleProgress())
    if as_json:
        print_json(done.to_json())
        return
    configured = "no result" if done.configured is None else f"{done.configured:.4f}"
    plain(
        f"{done.model}: NDCG@10 {done.best:.4f} on validation, {configured} as configured;"
        f" {done.finished} trials finished, {done.pruned} stopped early ({done.seconds:.0f} s)"
    )
    plain(f"recloop.toml:\n\n{done.toml()}")
    plain(f"next: recloop train {done.model}")
