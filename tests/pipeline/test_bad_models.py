"""Bad input of models: one message, exit code 2, and the live bundle stays; odd values of items are learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from recloop.project import Project, open_project
from recloop.records import DAY, SECOND

Said = tuple[int, str, str]
Cli = Callable[..., Said]


def written(root: Path) -> dict[str, bytes]:
    """Contents of all files but those of stores and of the runs, which keep what failed."""
    files = [path for path in root.rglob("*") if path.is_file() and {"store", "runs"}.isdisjoint(path.parts)]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def sets(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model.name": "mf", "model.l2": "1e300"},
            "model.name=mf: expected options with which item_vectors is finite",
        ),
        ({"model.name": "covisitation", "model.shrink": "-3"}, "model.shrink=-3: expected"),
        ({"model.name": "covisitation", "ranker.model": "gbdt"}, "ranker.model=gbdt: expected a log that can teach"),
        ({"model.name": "ease", "baselines.extra": '["sasrek"]'}, "model.name=sasrek: expected"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "update"])
def test_model_that_cannot_be_fitted_is_one_message_and_live_stays(
    project: Project, cli: Cli, verb: str, settings: dict[str, str], message: str
) -> None:
    live, before = project.live_bundle_id(), written(project.root)
    full = ["--full"] if verb == "update" else []
    code, out, err = cli("-C", project.root, *sets({"placement.home.weights": "auto", **settings}), verb, *full)
    assert (code, out) == (2, "")
    *progress, last = err.splitlines()
    assert last.startswith(f"error: {message}")
    assert "; try: " in last
    assert not [line for line in progress if "error" in line or "Warning" in line]
    assert written(project.root) == before
    assert project.live_bundle_id() == live
    assert cli("-C", project.root, "recommend", "u05")[0] == 0


@pytest.mark.slow
def test_network_that_diverges_is_one_message_and_live_stays(project: Project, cli: Cli) -> None:
    pytest.importorskip("torch")
    live, before = project.live_bundle_id(), written(project.root)
    settings = {"model.name": "gru4rec", "train.lr": "1e38", "train.epochs": "2", "features.dim": "8"}
    code, out, err = cli("-C", project.root, *sets(settings), "train")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(
        "error: train.lr=1e+38: expected a rate at which the loss stays finite; it is "
    )
    assert written(project.root) == before
    assert project.live_bundle_id() == live


ODD_ITEMS: list[dict[str, Any]] = [
    {"tags": [f"c{n}" for n in range(10_000)]},
    {"vector": [1.0]},
    {"vector": [0, 0, 0]},
    {"vector": [float("nan"), 1, 2]},
    {"vector": "not numbers", "tags": "", "text": ""},
    {"text": "word " * 2_000_000},
    {"text": 5},
    {"text": None, "tags": None, "vector": None},
    {},
]
FIELDS = {
    "tags": {"kind": "categories", "dim": 4}, "vector": {"kind": "vector", "dim": 4}, "text": {"kind": "text", "dim": 4},
}  # fmt: skip


def odd_shop(folder: Path) -> Project:
    """A shop whose first items have odd attributes, and whose users have none."""
    folder.mkdir()
    items = []
    for n in range(40):
        usual = {"tags": [f"t{n % 3}"], "vector": [n % 3, 1, n % 5], "text": f"a tin of tea number {n}"}
        odd = ODD_ITEMS[n] if n < len(ODD_ITEMS) else usual
        items.append({"item_id": f"i{n}", **odd})
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows = [
        f"u{user},i{(user * 7 + moment * k) % 40},{(moment * DAY + user * 1000 * SECOND) // SECOND + 1_735_689_600}"
        for user in range(40)
        for moment in range(6)
        for k in (1, 3)
    ]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *dict.fromkeys(rows)]) + "\n")
    (folder / "users.csv").write_text("user_id,age\n" + "".join(f"u{user},\n" for user in range(40)))
    tree = {
        "data": {"events": "log.csv", "items": "items.jsonl", "users": "users.csv"},
        "features": {"item": FIELDS, "user": {"age": {"dim": 4}}, "context": []},
        "model": {"name": "ease"},
    }
    (folder / "recloop.toml").write_text(tomli_w.dumps(tree))
    return open_project(folder)


def test_items_with_odd_attributes_and_users_without_any_are_learned_and_listed(tmp_path: Path, cli: Cli) -> None:
    project = odd_shop(tmp_path / "shop")
    code, _, err = cli("-C", project.root, "update")
    assert code == 0, err
    bundle = project.load_bundle()
    assert {f"i{n}" for n in range(len(ODD_ITEMS))} <= set(bundle.items.ids.ids)
    codes = bundle.fields.codes
    assert codes["item.vector"].codes([item.get("vector") for item in ODD_ITEMS]).max() == 0
    assert codes["item.text"].codes([ODD_ITEMS[5]["text"], {}]).all(axis=1).tolist() == [True, False]
    for user in ("u1", "unknown"):
        code, out, err = cli("-C", project.root, "recommend", user, "--json")
        answer = json.loads(out)
        assert (code, answer["degraded"], len(answer["items"])) == (0, [], 10), err


def test_log_of_one_item_is_learned_searched_and_listed(tmp_path: Path, cli: Cli) -> None:
    rows = [
        f"u{user},only,{1_735_689_600 + moment * 5 * 86_400 + user * 100}" for user in range(30) for moment in range(4)
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    assert cli("-C", tmp_path, "init", "log.csv", "--yes")[0] == 0
    small = ("-C", tmp_path, "--set", "model.name=ease")
    code, out, err = cli(*small, "--set", "ranker.model=gbdt", "update")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(
        "error: ranker.model=gbdt: expected a log that can teach a ranker; 0 moments"
    )
    code, out, _ = cli(*small, "--set", "placement.home.min_new=0.3", "update")
    assert code == 0
    assert " ".join(out.split()).count("the test has no targets new to the user") == 2
    assert "nan" not in out
    code, out, _ = cli(*small, "recommend", "u1", "--json")
    assert [item["item_id"] for item in json.loads(out)["items"]] == ["only"]
    pytest.importorskip("optuna")
    code, out, _ = cli(*small, "tune", "--trials", "2", "--json")
    assert code == 0
    assert json.loads(out)["finished"] == 2
