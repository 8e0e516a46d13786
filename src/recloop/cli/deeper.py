"""Verbs that go deeper: one chapter of a turn by itself, and rows into the log without HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from recloop.shell import Json, Teller, out, plain, print_json, project


def prepare(as_json: Json = False) -> None:
    """Read, clean and split the log into data/."""
    from recloop import loop
    from recloop.backends import locks
    from recloop.collect import doctor as collected

    here = project()
    with locks.turn_lock(here.root, "prepare"):
        made = loop.collect(here, Teller())
    if as_json:
        sizes = {"train": made.train, "valid": made.valid, "test": made.test}
        print_json({**made.report.to_json(), "fingerprint": made.fingerprint, "cut": made.cut, **sizes})
    else:
        out.print(collected.render(made.report))


def train(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="a model in place of [model]")] = "",
    as_json: Json = False,
) -> None:
    """Fit a model on data/, write a bundle and register it."""
    from recloop import loop, standing
    from recloop.backends import locks

    here = project()
    with locks.turn_lock(here.root, "train"):
        made = loop.train(here, Teller(), standing.named_model(here, name))
    if as_json:
        trained = made.bundle.manifest["train"]
        print_json(
            {
                "bundle": made.bundle.id,
                "run": made.run,
                "epochs": trained["epochs"],
                "seconds": round(made.seconds, 2),
                "metrics": made.bundle.metrics,
            }
        )
    else:
        out.print(made.table.render())
        plain(f"registered: {made.bundle.id}; next: recloop promote {made.bundle.id}")


def ingest(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="CSV, JSON lines or Parquet; -: JSON lines from stdin")],
    url: Annotated[str, typer.Option(help="post to this running service, such as http://127.0.0.1:8088")] = "",
    as_json: Json = False,
) -> None:
    """Rows into the log as if posted; safe to repeat where they carry an event_id."""
    from recloop import ingest as arrivals

    taken = arrivals.ingest(project(), file, url, Teller())
    if as_json:
        print_json(taken.to_json())
    else:
        said = ", ".join(f"{count:,} {status}" for status, count in taken.to_json().items())
        plain(f"{said} ({taken.seconds:.1f} s); next: recloop update")
    if not taken.whole:
        raise typer.Exit(1)
