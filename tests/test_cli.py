"""The command line: exit codes, the last line of stderr, one JSON object on stdout."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import recloop
from recloop.cli import app, main, run
from recloop.simulation.shop import SimulatedShop
from recloop.storage import locks

Done = tuple[int, str, str]
Cli = Callable[..., Done]


@pytest.fixture(scope="module")
def popular_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with baselines after its first run."""
    folder = SimulatedShop(users=60, items=40).write(tmp_path_factory.mktemp("cli") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write('[model]\nname = "popular"\n')
    assert run(["-C", str(folder), "update"]) == 0
    return folder


def user_error(done: Done) -> str:
    """Check exit 2, empty stdout and no traceback; return the last line of stderr."""
    code, out, err = done
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert ": expected " in last
    assert "; try: " in last
    return last


def tree(done: Done) -> dict[str, Any]:
    code, out, err = done
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["status", "--bogus"], "No such option: --bogus"),
        (["recommend"], "Missing argument"),
        (["recommend", "-32ae..", "-n", "3"], "recommend -n 3 -- -32ae.."),
        (["status", "-C"], "-C="),
        (["verify", "--last", "0"], "--last"),
        (["serve", "--workers", "0"], "--workers=0"),
        (["status", "--set", "serve"], "--set=serve"),
        (["--set", "serve.prot=1", "status"], "nearest: serve.port"),
        (["status", "--set", "serve.port=x"], "serve.port=x"),
        (["status", "--set", "train.loss=ss_log"], "nearest: ss_logq"),
        (
            ["status", "--set", "stores.log=mysql://u:secret@host/shop"],
            "stores.log=mysql://u@host/shop: expected sqlite:///store/log.db or postgresql://USER@HOST:PORT/DATABASE",
        ),
        (
            ["status", "--set", "stores.decisions=postgresql://u:secret@host/shop"],
            "stores.decisions=postgresql://u@host/shop: expected sqlite:///store/decisions.db;",
        ),
        (["status", "--set", "release.shadow_share=1.5"], "release.shadow_share=1.5"),
        (["promote", "nothing"], "bundle=nothing"),
        (["promote", "nothing", "--to", "moon"], "--to=moon"),
        (["reject", "nothing", "--reason", "why"], "bundle=nothing"),
        (["reject", "nothing"], "--reason="),
        (["evaluate", "nothing"], "bundle=nothing"),
        (["evaluate", "--protocol", "leave-one-out"], "split.protocol=leave-one-out"),
        (["recommend", "u01", "--placement", "cart"], "placement=cart"),
        (["recommend", "u01", "-n", "1001"], "-n=1001"),
        (["train", "nothing"], "model.name=nothing"),
        (["report", "--from", "yesterday"], "yesterday"),
    ],
)
def test_cli_with_a_bad_argument_exits_2_and_names_a_fix(
    cli: Cli, popular_folder: Path, words: list[str], said: str
) -> None:
    assert said in user_error(cli("-C", popular_folder, *words))


def test_cli_without_a_project_exits_2_and_names_init(cli: Cli, tmp_path: Path) -> None:
    assert "recloop init FILE" in user_error(cli("-C", tmp_path, "update"))
    (tmp_path / "recloop.toml").write_text("[data\n")
    assert "recloop.toml" in user_error(cli("-C", tmp_path, "update"))


def test_cli_before_the_first_run_exits_2_and_names_update(cli: Cli, simulated_shop_folder: Path) -> None:
    for verb in (["recommend", "u1"], ["evaluate"], ["serve"]):
        assert "recloop update" in user_error(cli("-C", simulated_shop_folder, *verb))
    assert tree(cli("status", "--json", "-C", simulated_shop_folder))["live"] is None


def test_cli_json_is_one_object_with_the_documented_keys(cli: Cli, popular_folder: Path) -> None:
    status = tree(cli("-C", popular_folder, "status", "--json"))
    assert set(status) >= {
        "live",
        "shadow",
        "experiment",
        "generation",
        "bundles",
        "last_seq",
        "watermark",
        "unnamed_types",
    }
    doctor = tree(cli("-C", popular_folder, "doctor", "--json"))
    assert doctor["read"] == doctor["kept"] + sum(doctor["removed"].values()) + doctor["rejected"]
    answer = tree(cli("-C", popular_folder, "recommend", "u01", "-n", "3", "--json"))
    assert answer["model_version"] == status["live"]
    assert len(answer["items"]) == 3
    verify = tree(cli("-C", popular_folder, "verify", "--json"))
    assert verify == {
        "checked": 0,
        "equal": 0,
        "late": 0,
        "unexplained": 0,
        "removed": 0,
        "earlier": 0,
        "max_score_diff": 0.0,
        "differences": [],
    }
    table = tree(cli("-C", popular_folder, "evaluate", "--json"))
    assert [row["model"] for row in table["rows"]] == ["popular", "bought_before", "covisitation", "served"]
    report = tree(cli("-C", popular_folder, "report", "--json", "--out", popular_folder / "page.html"))
    assert Path(report["path"]).read_text("utf-8").startswith("<!")


def test_update_without_new_rows_does_nothing(cli: Cli, popular_folder: Path) -> None:
    done = tree(cli("-C", popular_folder, "update", "--json"))
    assert (done["verdict"], done["read"]) == ("nothing", 0)


@pytest.fixture(scope="module")
def trained_candidate(popular_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the project with a second bundle, and the JSON of its training."""
    folder = shutil.copytree(popular_folder, tmp_path_factory.mktemp("candidate") / "shop")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(["-C", str(folder), "train", "covisitation", "--json"]) == 0
    return folder, json.loads(out.getvalue())


@pytest.fixture
def candidate_folder(trained_candidate: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the project with a second bundle in state registered."""
    return shutil.copytree(trained_candidate[0], tmp_path / "shop")


@pytest.fixture
def candidate(trained_candidate: tuple[Path, dict[str, Any]]) -> str:
    """The id of the second bundle."""
    return trained_candidate[1]["bundle"]


def refusal(done: Done) -> str:
    """Check exit 1 and empty stdout; return stderr."""
    code, out, err = done
    assert code == 1, err
    assert out == ""
    return err


def moved(done: Done) -> tuple[str, str]:
    """Return the states that a release command printed."""
    move = tree(done)
    return move["from"], move["to"]


def test_train_writes_the_metrics_of_its_run(trained_candidate: tuple[Path, dict[str, Any]]) -> None:
    folder, made = trained_candidate
    assert (folder / "runs" / made["run"] / "metrics.json").exists()


@pytest.mark.parametrize("words", [[], ["--to", "live"], ["--to", "experiment"]])
def test_promote_without_shadow_requests_is_refused(
    cli: Cli, candidate_folder: Path, candidate: str, words: list[str]
) -> None:
    err = refusal(cli("-C", candidate_folder, "promote", candidate, *words))
    assert "refused: shadow requests=0, threshold 100: the shadow step is not earned" in err


def test_promote_with_a_reason_waives_requirements_and_records_them(
    cli: Cli, candidate_folder: Path, candidate: str
) -> None:
    promote = ("-C", candidate_folder, "promote", candidate)
    assert moved(cli(*promote, "--to", "shadow", "--json")) == ("checked", "shadow")
    move = tree(cli(*promote, "--to", "live", "--reason", "tried it", "--json"))
    assert move["from"] == "shadow"
    assert move["to"] == "live"
    assert len(move["evidence"]["waived_requirements"]) == 2
    status = tree(cli("-C", candidate_folder, "status", "--json"))
    assert status["live"] == candidate
    assert status["bundles"][-1]["reason"] == "tried it"
    assert "state=live" in refusal(cli(*promote))


def test_rollback_restores_the_earlier_live_bundle_once(cli: Cli, candidate_folder: Path, candidate: str) -> None:
    before = tree(cli("-C", candidate_folder, "status", "--json"))["live"]
    promote = ("-C", candidate_folder, "promote", candidate, "--to", "live", "--reason", "tried it", "--json")
    assert moved(cli(*promote)) == ("checked", "live")
    move = tree(cli("-C", candidate_folder, "rollback", "--reason", "it was better", "--json"))
    assert {name: move[name] for name in ("bundle", "from", "to", "evidence")} == {
        "bundle": before,
        "from": "retired",
        "to": "live",
        "evidence": {"rolled_back": candidate},
    }
    err = refusal(cli("-C", candidate_folder, "rollback"))
    assert "refused: earlier live bundles=0, threshold 1: no earlier live bundle to restore" in err
    assert moved(cli("-C", candidate_folder, "reject", candidate, "--reason", "worse", "--json"))[0] == "rolled_back"


def test_rejected_bundle_cannot_be_moved_again(cli: Cli, candidate_folder: Path, candidate: str) -> None:
    reject = ("-C", candidate_folder, "reject", candidate)
    assert moved(cli(*reject, "--reason", "worse", "--json")) == ("registered", "refused")
    assert "state=refused" in refusal(cli("-C", candidate_folder, "promote", candidate))
    assert "state=refused" in refusal(cli(*reject, "--reason", "again"))


@pytest.mark.parametrize("share", ["0.0", "1.0"])
def test_promote_to_an_experiment_with_an_empty_arm_exits_2(cli: Cli, popular_folder: Path, share: str) -> None:
    made = tree(cli("-C", popular_folder, "train", "covisitation", "--json"))["bundle"]
    words = ["--set", f"release.experiment_share={share}", "promote", made, "--to", "experiment", "--reason", "try"]
    assert f"release.experiment_share={share}: expected a share above 0 and below 1" in user_error(
        cli("-C", popular_folder, *words)
    )
    assert tree(cli("-C", popular_folder, "status", "--json"))["experiment"] is None


def test_promote_with_too_few_planned_users_names_the_minimum(cli: Cli, popular_folder: Path) -> None:
    made = tree(cli("-C", popular_folder, "train", "covisitation", "--json"))["bundle"]
    words = ["--set", "release.experiment_share=0.05", "promote", made, "--to", "experiment", "--reason", "try"]
    expected = "release.plan.users=4000: expected at least 8000 for 4 looks at a share of 0.05"
    assert expected in user_error(cli("-C", popular_folder, *words))


def test_status_after_a_config_edit_during_an_experiment_shows_the_plan(cli: Cli, popular_folder: Path) -> None:
    made = tree(cli("-C", popular_folder, "train", "covisitation", "--json"))["bundle"]
    assert tree(cli("-C", popular_folder, "status", "--json"))["verdict"] is None
    assert cli("-C", popular_folder, "promote", made, "--to", "experiment", "--reason", "try")[0] == 0
    edited = ["--set", "release.experiment_share=0.1", "--set", "release.plan.users=9000"]
    verdict = tree(cli("-C", popular_folder, *edited, "status", "--json"))["verdict"]
    assert (verdict["bundle"], verdict["verdict"], verdict["no_harm"]) == (made, "running", False)
    assert (verdict["plan"]["share"], verdict["plan"]["users"]) == (0.5, 4000)
    assert verdict["differs"] == [
        "release.experiment_share = 0.5 in this experiment, 0.1 in recloop.toml",
        "release.plan.users = 4000 in this experiment, 9000 in recloop.toml",
    ]
    said = cli("-C", popular_folder, *edited, "status")[1]
    assert f"experiment of {made}: running: 0 of 4 planned looks done" in said
    assert verdict["differs"][0] in said


def test_prepare_during_an_update_exits_3_and_names_it(cli: Cli, popular_folder: Path) -> None:
    with locks.run_lock(popular_folder, "update"):
        code, out, err = cli("-C", popular_folder, "prepare")
    assert (code, out) == (3, "")
    assert "update" in err


def test_prepare_json_reports_the_split(cli: Cli, simulated_shop_folder: Path) -> None:
    done = tree(cli("-C", simulated_shop_folder, "prepare", "--json"))
    assert done["train"] + done["valid"] + done["test"] == done["kept"]
    assert len(done["fingerprint"]) == 64


def test_update_with_excessive_removals_exits_2_and_writes_no_data(cli: Cli, simulated_shop_folder: Path) -> None:
    done = cli("-C", simulated_shop_folder, "--set", "clean.keep=\"event_type = 'click'\"", "update")
    assert "clean.max_removed" in user_error(done)
    assert len(done[2].splitlines()) >= 4  # sample rows precede the last line
    assert not (simulated_shop_folder / "data").exists()
    assert not list(simulated_shop_folder.glob("data*"))


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_has_five_panels_and_needs_no_project(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "recloop", *words], capture_output=True, text=True, check=True)
    panels = re.findall(r"─ ([A-Z][a-z ]+) ─", done.stdout)
    assert panels == ["Options", "Get started", "Inspect", "Data", "Release", "Access", "Operation", "Pipeline steps"]


def help_texts() -> Iterator[tuple[str, str]]:
    """Help texts of verbs, arguments and options by name."""
    group: Any = typer.main.get_command(app)
    yield from ((f"recloop {one.opts[0]}", one.help) for one in group.params)
    for verb, command in group.commands.items():
        yield verb, command.help.split("\n\n")[0].removesuffix(".")
        yield from ((f"{verb} {one.opts[0]}", one.help) for one in command.params if not getattr(one, "hidden", False))


@pytest.mark.parametrize(("name", "text"), [*help_texts()])
def test_help_is_a_short_sentence(name: str, text: str) -> None:
    assert re.fullmatch(r"[^\s\[\]]+( [^\s\[\]]+)+", text), name  # [word] is markup, which rich leaves out
    assert len(text) <= 60, name


def test_version_prints_name_and_number(cli: Cli) -> None:
    assert cli("status", "-h")[1] == cli("status", "--help")[1]
    assert cli("--version") == (0, f"recloop {recloop.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["refuse", "b", "--reason", "too slow"], "command=refuse: expected reject, the new name of refuse"),
        (["refuse", "b", "--reason", "too slow"], "try: recloop reject b --reason 'too slow'"),
        (["recommend", "u01", "-k", "3"], "option=-k: expected -n, the new name of -k"),
        (["recommend", "u01", "-k3"], "option=-k3: expected -n, the new name of -k"),
    ],
)
def test_old_name_is_refused_with_the_new_one(cli: Cli, words: list[str], said: str) -> None:
    assert said in user_error(cli(*words))


def test_init_and_update_of_the_readme_succeed(cli: Cli, simulated_shop: SimulatedShop, tmp_path: Path) -> None:
    simulated_shop.write(tmp_path)
    (tmp_path / "recloop.toml").unlink()
    files = [tmp_path / "events.csv", "--items", tmp_path / "items.csv", "--users", tmp_path / "users.csv"]
    made = tree(cli("-C", tmp_path, "init", *files, "--yes", "--json"))
    assert made["columns"]["group_id"] == "group_id"
    assert made["scenario"] == "content"
    assert "--force" in user_error(cli("-C", tmp_path, "init", *files, "--yes"))
    assert tree(cli("-C", tmp_path, "update", "--set", "model.name=popular", "--json"))["verdict"] == "first"


@pytest.mark.parametrize(("given", "expected"), [("", "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_main_lets_the_threads_of_openmp_sleep(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given)
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["recloop", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == expected
