"""Old keys: refused in a project with their new names, translated in recorded settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from recloop.config import Config
from recloop.errors import UserError
from recloop.pipeline import config_changes
from recloop.settings import RENAMED, RENAMED_VALUES, build, new_key, translate_recorded

OLD_PROJECT = Path(__file__).parent / "storage" / "fixtures" / "schema-3"
RECORDED_WITH_OLD_NAMES: dict[str, Any] = {
    "counts.half_life": 30.0,
    "features.dim": 32,
    "features.history": 50,
    "features.request": ["hour", "gap"],
    "placement.home.k": 5,
    "placement.home.mix.history": 1.0,
    "placement.home.mix.popular": 0.25,
    "placement.cart.k": 10,
    "placement.cart.mix": "auto",
    "train.budget": "10m",
}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_key_in_file_set_or_environment_exits_2_with_the_new_name(old: str, new: str) -> None:
    old, new = old.replace("*", "cart"), new.replace("*", "cart")
    tree: Any = 1
    for name in reversed(old.split(".")):
        tree = {name: tree}
    variable = "RECLOOP_" + old.upper().replace(".", "__")
    tries: list[tuple[dict[str, Any], list[str], dict[str, str]]] = [(tree, [], {})]
    if "." in old:
        tries.append(({}, [], {variable: "1"}))
    tries.append(({}, [f"{old}=1"], {}))
    for file, sets, environment in tries:
        with pytest.raises(UserError) as refused:
            build(file, sets, environment)
        assert refused.value.exit_code == 2
        assert str(refused.value).startswith(f"{old}=1: expected {new}, the new name of {old}")


@pytest.mark.parametrize(("key", "old", "new"), [(key, old, new) for (key, old), new in RENAMED_VALUES.items()])
def test_renamed_value_exits_2_with_the_new_name(key: str, old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"{key}={old}: expected {new}"):
        build({}, [f'{key}=["{old}"]'], {})
    build({}, [f'{key}=["{new}"]'], {})


def test_renamed_keys_are_keys_of_the_present_configuration() -> None:
    tree = Config().model_dump(by_alias=True)
    for new in RENAMED.values():
        value: Any = tree
        for name in new.replace("*", "home").split("."):
            value = value[name]
        assert new_key(new) == new


def test_recorded_settings_with_old_names_equal_current_settings() -> None:
    sets = (
        "baselines.half_life=30.0", "features.dim=32", "features.max_history=50",
        'features.context=["hour", "days_since_last"]', "placement.home.n=5",
        "placement.home.weights={history=1.0, popular=0.25}", "placement.cart.n=10",
    )  # fmt: skip
    config = build({}, sets, {})
    translated = translate_recorded(RECORDED_WITH_OLD_NAMES)
    untouched = {key: value for key, value in config_changes.recorded(config).items() if key not in translated}
    assert config_changes.changed_keys(config, untouched | RECORDED_WITH_OLD_NAMES) == []
    other = build({}, [*sets, "placement.home.n=7"], {})
    changed = config_changes.changed_keys(other, untouched | RECORDED_WITH_OLD_NAMES)
    assert [str(change) for change in changed] == ["placement.home.n: 5 -> 7"]


def test_recorded_settings_of_the_old_fixture_equal_its_renamed_recloop_toml() -> None:
    (manifest,) = OLD_PROJECT.glob("bundles/*/manifest.json")
    toml = (OLD_PROJECT / "recloop.toml").read_text("utf-8")
    for old, new in (("history = 50", "max_history = 50"), ("budget = ", "time_budget = "), ("mix = ", "weights = ")):
        assert f"\n{old}" in toml
        toml = toml.replace(f"\n{old}", f"\n{new}")
    config = build(tomllib.loads(toml), (), {})
    assert config_changes.changed_keys(config, json.loads(manifest.read_text("utf-8"))["config"]) == []


@pytest.mark.parametrize(("source", "nearest"), [("neighbors", "neighbours"), ("histroy", "history")])
def test_build_with_a_misspelt_source_names_the_nearest(source: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"nearest: {nearest}") as caught:
        build({"placement": {"home": {"weights": {source: 1.0}}}})
    assert caught.value.name == f"placement.home.weights.{source}"


def test_build_keeps_sources_of_other_models() -> None:
    weights = {"ease": 1.0, "my_source": 0.5, "buy_again": 0.5}
    config = build({"placement": {"home": {"weights": weights}}})
    assert config.placement["home"].weights == weights
