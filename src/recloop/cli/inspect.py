"""Verbs doctor, evaluate, recommend, status, report and verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recloop.cli.terminal import CliContext, Json, out, plain, print_json, project
from recloop.errors import UserError
from recloop.progress import ConsoleProgress


def doctor(
    signals: Annotated[bool, typer.Option("--signals", help="show events and examples for each event rule")] = False,
    file: Annotated[str, typer.Option("--out", metavar="FILE", help="write the report as an HTML page")] = "",
    effect: Annotated[str, typer.Option("--effect", metavar="RULE", help="compare lists with and without a rule")] = "",
    as_json: Json = False,
) -> None:
    """Check the log and print a report."""
    from recloop.data.doctor.report import build_report

    if file and (effect or signals):
        raise UserError("--out", file, "doctor without --effect and --signals", f"recloop doctor --out {file}")
    if effect:
        _show_effect(effect, as_json)
        return
    if signals:
        from recloop.data.doctor import label_report

        rule_report = label_report.examine_signals(project())
        if as_json:
            print_json({**build_report(project()).to_json(), **rule_report.to_json()})
        else:
            out.print(label_report.render(rule_report))
        return
    here = project()
    report = build_report(here)
    if file:
        from recloop.data.doctor.page import write_page

        write_page(report, here.root.resolve().name, Path(file))
    if as_json:
        print_json({**report.to_json(), **({"path": file} if file else {})})
    elif file:
        plain(f"wrote {file}")
    else:
        from recloop.data.doctor.text import render

        out.print(render(report))


def _show_effect(rule: str, as_json: bool) -> None:
    """Print the effect of a cleaning rule on the counting models."""
    from recloop.pipeline import rule_effect

    effect = rule_effect.measure_rule(project(), rule)
    if as_json:
        print_json(effect.to_json())
    else:
        out.print(rule_effect.render(effect))


def evaluate(
    bundles: Annotated[
        list[str] | None, typer.Argument(metavar="[BUNDLE]...", help="compare these bundles instead of the live one")
    ] = None,
    protocol: Annotated[str, typer.Option(help="override split.protocol")] = "",
    as_json: Json = False,
) -> None:
    """Compare baselines, models and the served list."""
    from recloop.pipeline import training_steps

    if protocol:
        CliContext.sets = (*CliContext.sets, f"split.protocol={protocol}")
    table = training_steps.evaluate_bundles(project(), bundles or [], ConsoleProgress())
    if as_json:
        print_json(table.to_json())
    else:
        out.print(table.render())


def recommend(
    user: Annotated[str, typer.Argument(help="recommend to this user")],
    n: Annotated[int | None, typer.Option("-n", help="set the list length, 1 to 1000")] = None,
    placement: Annotated[str, typer.Option(help="use this placement")] = "home",
    bundle: Annotated[str, typer.Option(help="use this bundle instead of the live one")] = "",
    item: Annotated[str, typer.Option(help="set the item of a list of similar items")] = "",
    filter_seen: Annotated[
        bool | None, typer.Option("--filter-seen/--no-filter-seen", help="leave out what the user has taken")
    ] = None,
    min_new: Annotated[float | None, typer.Option(help="set the share of items new to the user, 0 to 1")] = None,
    as_json: Json = False,
) -> None:
    """Show a user's recommendations without a server."""
    from recloop.serve import offline

    answer = offline.recommend(project(), user, n, placement, bundle, item, filter_seen, min_new)
    if as_json:
        print_json(answer)
    else:
        out.print(offline.render(answer))


def status(as_json: Json = False) -> None:
    """Show the live, shadow and experiment bundles."""
    from recloop.monitoring import experiment
    from recloop.monitoring.shadow_requirement import shadow_requirement
    from recloop.recommend import loading
    from recloop.release.transitions import MIN_SHADOW_REQUESTS

    here = project()
    found = loading.status(here)
    tried, problem = experiment.current_verdict(here)
    need = None if found["shadow"] is None else shadow_requirement(here, found["shadow"], MIN_SHADOW_REQUESTS)
    if as_json:
        print_json({**found, "verdict": tried and tried.to_json(), "shadow_requirement": need and need.to_json()})
        return
    plain(f"live: {found['live'] or 'nothing yet; next: recloop update'}")
    plain(f"generation {found['generation']}, last seq {found['last_seq']}, data up to seq {found['watermark']}")
    for name, rows in found["unnamed_types"].items():
        plain(f"! posted type {name!r} ({rows:,} rows) is not in a rule of [events] and is neutral")
    for row in found["bundles"]:
        plain(f"  {row['state']:<11} {row['bundle']}  {row['reason']}")
    if need is not None:
        plain(f"shadow: {need}")
    for line in tried.lines() if tried else filter(None, [problem]):
        plain(line)


def report(
    start: Annotated[str, typer.Option("--from", help="start the period at this time, ISO 8601")] = "",
    end: Annotated[str, typer.Option("--to", help="end the period with this time, ISO 8601")] = "",
    file: Annotated[str, typer.Option("--out", help="write the page to this file")] = "",
    as_json: Json = False,
) -> None:
    """Write an HTML report of evaluation and list health."""
    from recloop.monitoring import report as page

    done = page.write(project(), start, end, file)
    if as_json:
        print_json(done)
    else:
        plain(f"wrote {done['path']}, a report of {done['requests']} requests")


def verify(
    last: Annotated[int, typer.Option(min=1, help="check this many of the newest decisions")] = 1000,
    as_json: Json = False,
) -> None:
    """Rebuild logged decisions and exit 1 on a difference."""
    from recloop.monitoring import verify as verification
    from recloop.records import now

    here = project()
    found = verification.verify(here, last)
    verification.save_result(here, found, now())
    if as_json:
        print_json(found)
    else:
        line = "{checked} decisions checked: {equal} equal, {late} late, {unexplained} unexplained"
        if found["earlier"]:
            line += ", {earlier} from before the last new first run"
        plain(line.format(**found) + f"; largest score difference {found['max_score_diff']:.2g}")
        for difference in found["differences"][:10]:
            plain("  {request_id}: {name} expected {expected}, actual {actual}".format(**difference))
    if found["unexplained"]:
        raise typer.Exit(1)
