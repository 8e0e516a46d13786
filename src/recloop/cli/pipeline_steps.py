"""Single steps of an update, and work on the folder: backup, restore, gc."""

from __future__ import annotations

from pathlib import Path
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
    plain(
        f"{done.model}: NDCG@10 {done.best:.4f} on validation, {done.configured:.4f} as configured;"
        f" {done.finished} trials finished, {done.pruned} stopped early ({done.seconds:.0f} s)"
    )
    plain(f"recloop.toml:\n\n{done.toml()}")
    plain(f"next: recloop train {done.model}")


def quarantine(
    where: Annotated[str, typer.Option(metavar="CONDITION", help="select rows by this SQL condition on event fields")],
    reason: Annotated[str, typer.Option(help="store this reason with the rows")],
    start: Annotated[str, typer.Option("--from", help="start the period at this time, ISO 8601")] = "",
    end: Annotated[str, typer.Option("--to", help="end the period before this time, ISO 8601")] = "",
    restore: Annotated[bool, typer.Option("--restore", help="restore quarantined rows")] = False,
    force: Annotated[bool, typer.Option("--force", help="allow more than clean.max_removed")] = False,
    as_json: Json = False,
) -> None:
    """Quarantine or restore rows."""
    from recloop.pipeline import quarantine as rows

    done = rows.quarantine(project(), where, reason, start, end, restore, force)
    if as_json:
        print_json(done.to_json())
        return
    verb = "restored" if restore else "quarantined"
    others = "not in quarantine" if restore else "already quarantined"
    plain(f"{done.new:,} rows {verb} of {done.matched:,} matching rows ({done.already:,} {others})")
    if not done.new:
        return
    types = ", ".join(f"{name} {count:,}" for name, count in done.types.items())
    plain(f"  {done.share:.2%} of {done.rows:,} rows, {done.users:,} users ({done.user_share:.2%}): {types}")
    for row in done.samples:
        plain("  " + " ".join(f"{name}={value}" for name, value in row.items()))
    if done.waiting:
        plain(f"  {done.waiting:,} rows are queued; the running service applies them within a second")
    plain("next: recloop update")


def export(
    what: Annotated[
        str, typer.Argument(metavar="split|log|person", help="export split, log, or all that is stored of a person")
    ],
    user: Annotated[str, typer.Argument(metavar="[USER]", help="export this person")] = "",
    form: Annotated[str, typer.Option("--format", help="parquet, hdf5 (split) or jsonl (log)")] = "parquet",
    folder: Annotated[str, typer.Option("--out", metavar="PATH", help="write this new folder; a person: file")] = "",
    as_json: Json = False,
) -> None:
    """Export the split, the log for a new project, or a person."""
    from recloop.data import export as exports

    here = project()
    if what == "person":
        _export_person(user, folder)
        return
    done = exports.export(here, what, form, Path(folder or f"export-{what}"))
    if as_json:
        print_json(done.to_json())
        return
    for name, rows in done.rows.items():
        plain(f"{name}: {rows:,} rows")
    plain(f"wrote {', '.join(str(file) for file in done.files)}")


def _export_person(user: str, file: str) -> None:
    """Print all that is stored of a user as JSON, or write it to a new private file."""
    from recloop.errors import UserError
    from recloop.files import private_file, replace_json
    from recloop.privacy.person_export import export_person

    if not user:
        raise UserError("USER", user, "a user id", "recloop export person USER")
    if file and Path(file).exists():
        raise UserError("--out", file, "a file that does not exist yet", f"--out {file}.new")
    tree = export_person(project(), user)
    if not file:
        print_json(tree)
        return
    private_file(Path(file))
    replace_json(Path(file), tree)
    Path(file).chmod(0o600)
    plain(f"wrote {file}: {len(tree['events']):,} events, {len(tree['decisions']):,} decisions")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be removed and remove nothing")] = False,
    as_json: Json = False,
) -> None:
    """Remove expired bundles, runs and rows."""
    from recloop.pipeline import retention
    from recloop.storage import locks

    here = project()
    with locks.run_lock(here.root, "gc"):
        done = retention.collect(here, dry_run)
    if as_json:
        print_json(done.to_json())
        return
    for line in done.lines:
        plain(line)


def ingest(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="read CSV, JSON lines or Parquet; - is stdin")],
    url: Annotated[str, typer.Option(help="post to this service, e.g. http://127.0.0.1:8088")] = "",
    as_json: Json = False,
) -> None:
    """Add rows to the log, once per event_id."""
    from recloop.ingest import bulk as arrivals

    taken = arrivals.ingest(project(), file, url, ConsoleProgress())
    if as_json:
        print_json(taken.to_json())
    else:
        counts = ", ".join(f"{count:,} {status}" for status, count in taken.to_json().items())
        plain(f"{counts} ({taken.seconds:.1f} s); next: recloop update")
    if not taken.whole:
        raise typer.Exit(1)


def backup(
    to: Annotated[str, typer.Argument(metavar="TO", help="write into this new folder")], as_json: Json = False
) -> None:
    """Copy the project while it is served and updated."""
    from recloop.pipeline import backup as steps

    done = steps.backup(project(), Path(to), ConsoleProgress())
    if as_json:
        print_json(done.to_json())
    else:
        plain(f"{done.files:,} files, {done.bytes / 1e6:,.1f} MB, log up to seq {done.last_seq}: {done.path}")


def restore(
    source: Annotated[str, typer.Argument(metavar="FROM", help="folder of a backup")],
    to: Annotated[str, typer.Option(help="write into this new folder")],
    as_json: Json = False,
) -> None:
    """Copy a backup into a new project folder and verify it."""
    from recloop.pipeline import backup as steps

    done = steps.restore(Path(source), Path(to), ConsoleProgress())
    if as_json:
        print_json(done.to_json())
        return
    checked = done.verified or {}
    plain(
        f"{done.files:,} files with equal hashes, {checked['checked']} decisions rebuilt; next: recloop -C {to} serve"
    )
