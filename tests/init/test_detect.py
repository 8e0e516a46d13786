"""`init` on varied logs: columns, event types, and a loadable file that is not overwritten."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recloop.config import FILE
from recloop.data.prepare import prepare
from recloop.errors import UserError
from recloop.init import detect
from recloop.init.detect import InitResult, init
from recloop.project import open_project
from recloop.simulation.shop import SimulatedShop


def write(path: Path, **columns: list[Any]) -> str:
    pl.DataFrame(columns).write_csv(path)
    return path.name


def times(n: int, step: int = 3601) -> list[str]:
    return pl.from_epoch(pl.Series(range(n)) * step + 1_735_700_000).dt.strftime("%Y-%m-%d %H:%M:%S").to_list()


def found(made: detect.InitResult, key: str) -> Any:
    return next(one.value for one in made.guesses if one.key == key)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("household_id,store_id,basket_id,product_id,quantity,sales_value,week,transaction_timestamp",
         {"user_id": "household_id", "item_id": "product_id", "timestamp": "transaction_timestamp",
          "group_id": "basket_id", "quantity": "quantity", "value": "sales_value"}),
        ("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
         {"user_id": "CustomerID", "item_id": "StockCode", "timestamp": "InvoiceDate", "group_id": "InvoiceNo",
          "quantity": "Quantity", "value": "UnitPrice", "name": "Description"}),
        ("userId,movieId,rating,timestamp",
         {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp", "value": "rating"}),
        ("event_time,event_type,product_id,category_code,brand,price,user_id,user_session",
         {"user_id": "user_id", "item_id": "product_id", "timestamp": "event_time", "event_type": "event_type",
          "value": "price"}),
        ("Kundennummer,Artikelnummer,Bestelldatum,Menge,Bestellnummer",
         {"user_id": "Kundennummer", "item_id": "Artikelnummer", "timestamp": "Bestelldatum", "quantity": "Menge",
          "group_id": "Bestellnummer"}),
        ("shop_customer_no,the_item_code,happened_date",
         {"user_id": "shop_customer_no", "item_id": "the_item_code", "timestamp": "happened_date"}),
    ],
)  # fmt: skip
def test_init_detects_columns_by_name(tmp_path: Path, header: str, columns: dict[str, str]) -> None:
    names = header.split(",")
    rows = []
    for n in range(60):
        basket = n // 2
        row = dict.fromkeys(names, f"x{n % 7}") | {
            columns["user_id"]: f"c{basket % 9}",
            columns["item_id"]: f"p{n % 17}",
        }
        row[columns["timestamp"]] = times(60)[basket]
        for ours in ("quantity", "value"):
            if ours in columns:
                row[columns[ours]] = str(1 + n % 5)
        if "group_id" in columns:
            row[columns["group_id"]] = f"b{basket}"
        if "event_type" in columns:
            row[columns["event_type"]] = ("view", "cart", "purchase")[n % 3]
        rows.append(row)
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv")
    made = init("log.csv", root=tmp_path, yes=True)
    assert {ours: theirs for ours, theirs in made.columns.items() if theirs} == columns
    prepare(open_project(tmp_path))


@pytest.fixture(scope="module")
def detected_shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InitResult]:
    """A project folder made by init from the simulated shop, and init's result."""
    folder = tmp_path_factory.mktemp("detected")
    SimulatedShop(seed=0).write(folder)
    return folder, init("events.csv", "items.csv", "users.csv", folder, yes=True, force=True)


def test_init_of_the_simulated_shop_detects_columns(detected_shop: tuple[Path, InitResult]) -> None:
    _, made = detected_shop
    assert made.columns == {
        "user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "event_type": "event_type",
        "value": "value", "quantity": "quantity", "group_id": "group_id", "event_id": "event_id", "name": "name",
        "anonymous_id": "", "time_offset": "",
    }  # fmt: skip
    assert made.time_unit == "iso"
    assert made.scenario == "content"
    assert set(made.to_json()) == {"columns", "time_unit", "scenario", "guesses", "rows", "next"}
    for guess in made.to_json()["guesses"]:
        assert set(guess) == {"key", "value", "why", "confidence"}
        assert guess["why"]


def test_init_of_the_simulated_shop_detects_events(detected_shop: tuple[Path, InitResult]) -> None:
    events = open_project(detected_shop[0]).config.events
    assert {name: getattr(events, name) for name in ("weights", "history", "positive", "neutral", "negative")} == {
        "weights": {"purchase": 5.0, "click": 1.0},
        "history": ("click",),
        "positive": (),
        "neutral": (),
        "negative": ("dislike",),
    }


def test_init_of_the_simulated_shop_detects_features_and_rules(detected_shop: tuple[Path, InitResult]) -> None:
    config = open_project(detected_shop[0]).config
    kinds = {name: field.kind for name, field in config.features.item.items()}
    assert kinds == {"category": "category", "price": "number"}
    assert {name: field.source for name, field in config.features.user.items()} == {"age": "age"}
    assert config.serve.segment == "age"
    assert config.split.filter_seen is False
    assert config.clean.burst != "off"


def test_init_of_the_simulated_shop_gives_settings_that_prepare_every_row(
    detected_shop: tuple[Path, InitResult],
) -> None:
    assert prepare(open_project(detected_shop[0])).report.removed == {}


def test_init_of_ratings_sets_filter_seen(tmp_path: Path) -> None:
    n = 400
    write(
        tmp_path / "u.csv", user=[f"u{k % 10}" for k in range(n)], movie=[f"m{k}" for k in range(n)],
        rating=[k % 5 + 1 for k in range(n)], ts=[1_735_700_000_000 + k * 1_001 for k in range(n)],
    )  # fmt: skip
    made = init("u.csv", root=tmp_path, yes=True)
    assert (made.time_unit, made.scenario) == ("ms", "sequential")
    assert found(made, "split.filter_seen") is True
    assert tomllib.loads(made.toml)["split"]["filter_seen"] is True
    events = open_project(tmp_path).config.events
    assert (events.positive, events.history) == (("value >= 4",), ("value < 4",))


def test_init_with_daily_timestamps_disables_the_burst_rule(tmp_path: Path) -> None:
    days = [f"2025-{1 + k % 9:02}-{1 + k % 28:02}" for k in range(200)]
    write(
        tmp_path / "a.csv", customer=[f"u{k % 9}" for k in range(200)], sku=[f"i{k % 5}" for k in range(200)], date=days
    )
    made = init("a.csv", root=tmp_path, yes=True)
    assert found(made, "clean.burst") == "off"
    assert open_project(tmp_path).config.clean.burst == "off"
    assert 'burst = "off"                     # stamps have a resolution of one day' in made.toml
    assert made.scenario == "collaborative"


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (
            {"view": 50, "purchase": 5, "add to cart": 10},
            {
                "weights": {"purchase": 5, "event_type = 'add to cart'": 3, "view": 1},
                "history": ["view"],
            },
        ),
        (
            {"click": 99, "impression": 300, "hide": 3},
            {"positive": ["click"], "negative": ["hide"], "neutral": ["impression"]},
        ),
        ({"click": 990, "like": 2, "skip": 5}, {"positive": ["like", "click"], "neutral": ["skip"]}),
        ({"view": 990, "buy": 2}, {"weights": {"buy": 5, "view": 1}}),
        (
            {"purchase": 9, "return": 2, "don't know": 4},
            {"weights": {"purchase": 5}, "neutral": ["event_type = 'don''t know'"], "undo": {"return": "purchase"}},
        ),
        (
            {"listen": 90, "like": 9, "dislike": 5, "undislike": 2, "unlike": 2, "unsave": 1},
            {
                "weights": {"like": 3, "listen": 1}, "history": ["listen"], "negative": ["dislike"], "neutral": ["unsave"],
                "undo": {"undislike": "dislike", "unlike": "like"},
            },
        ),
        ({"refund": 2, "interaction": 30}, {"positive": ["interaction"], "undo": {"refund": "*"}}),
        ({"1": 50, "4": 9}, {"positive": ["1", "4"]}),
        ({"purchase": 60}, {"weights": {"purchase": 5}}),
        ({"impression": 60}, {"neutral": ["impression"]}),
    ],
)  # fmt: skip
def test_init_of_event_types_detects_input_target_and_undo(
    tmp_path: Path, types: dict[str, int], expected: dict[str, Any]
) -> None:
    kinds = [name for name, count in types.items() for _ in range(count)]
    n = len(kinds)
    write(
        tmp_path / "a.csv", user_id=[f"u{k % 9}" for k in range(n)], item_id=[f"i{k % 31}" for k in range(n)],
        time=times(n), action=kinds,
    )  # fmt: skip
    made = init("a.csv", root=tmp_path, yes=True)
    events = open_project(tmp_path).config.events.model_dump(mode="json")
    assert made.columns["event_type"] == "action", "a single value is also a type"
    none: dict[str, Any] = {"positive": [], "negative": [], "neutral": [], "history": [], "weights": {}, "undo": {}}
    assert events == none | expected | {"undo": {"quantity < 0": "*"} | expected.get("undo", {})}


def test_init_of_a_binary_column_makes_1_positive(tmp_path: Path) -> None:
    write(
        tmp_path / "a.csv", user_id=[f"u{k % 9}" for k in range(90)], item_id=[f"i{k % 31}" for k in range(90)],
        time=times(90), click=[int(k % 3 == 0) for k in range(90)], impression_id=[k // 2 * 9 + k % 9 for k in range(90)],
    )  # fmt: skip
    made = init("a.csv", root=tmp_path, yes=True)
    assert made.columns["value"] == "click"
    events = open_project(tmp_path).config.events
    assert (events.positive, events.neutral) == (("value = 1",), ("value = 0",))


def test_init_chooses_features_and_omits_near_unique_text(tmp_path: Path) -> None:
    write(
        tmp_path / "log.csv",
        user_id=[f"u{k % 9}" for k in range(90)],
        product_id=[f"p{k}" for k in range(90)],
        time=times(90),
    )
    write(
        tmp_path / "items.csv", product_id=[f"p{k}" for k in range(90)], kind=["tea", "coffee", "milk"] * 30,
        price=[k + 0.5 for k in range(90)], url=[f"https://x/{k}" for k in range(90)], **{"Farbe (außen)": ["rot", "blau"] * 45},
        brand_id=[k % 40 for k in range(90)], constant=["x"] * 90, size=[f"{k % 80} g" for k in range(90)],
    )  # fmt: skip
    made = init("log.csv", "items.csv", root=tmp_path, yes=True)
    fields = open_project(tmp_path).config.features.item
    assert {field.source: field.kind for field in fields.values()} == {
        "kind": "category", "price": "number", "Farbe (außen)": "category", "brand_id": "category",
    }  # fmt: skip
    assert made.columns["name"] == "{kind}, {size}"


def test_init_chooses_the_item_column_that_both_files_share(tmp_path: Path) -> None:
    n = 18
    codes = [f"p{k}" for k in range(n)]
    write(tmp_path / "log.csv", user=["a", "b"] * 9, item=["shelf"] * n, sku=codes, code=codes, time=times(n))
    write(tmp_path / "items.csv", sku=codes, name=["n"] * n)
    assert init("log.csv", "items.csv", root=tmp_path, yes=True).columns["item_id"] == "sku"
    assert init("log.csv", root=tmp_path, yes=True, force=True).columns["item_id"] == "item"
    write(tmp_path / "items.csv", cod=codes, name=["n"] * n)
    with pytest.raises(
        UserError,
        match=r"--items=items\.csv: expected a column with ids of item of the log, found none among cod, name",
    ):
        init("log.csv", "items.csv", root=tmp_path, yes=True, force=True)


def test_init_with_an_existing_file_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("mine")
    with pytest.raises(UserError, match="--force"):
        init("nowhere.csv", root=tmp_path, yes=True)
    assert (tmp_path / FILE).read_text() == "mine"
    write(tmp_path / "a.csv", user_id=["u", "v"], item_id=["i", "j"], time=times(2))
    init("a.csv", root=tmp_path, yes=True, force=True)
    assert open_project(tmp_path).config.data.events == "a.csv"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.csv", FILE]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"foo": ["1", "2"], "item_id": ["a", "b"], "time": ["2025-01-01", "2025-01-02"]}, "data.columns.user_id="),
        ({"user_id": ["1", "2"], "bar": ["a", "b"], "time": ["2025-01-01", "2025-01-02"]}, "a column with the item id"),
        (
            {"user_id": ["1", "2"], "item_id": ["a", "b"], "time": ["now", "then"]},
            "a column with the time in a known form",
        ),
        ({"user_id": [], "item_id": [], "time": []}, "rows under the header"),
        ({"user_id": ["1"], "item_id": ["a"], "date": ["01/02/2025"]}, "month first"),
    ],
)
def test_init_without_a_detectable_column_raises_and_writes_nothing(
    tmp_path: Path, columns: dict[str, list[str]], said: str
) -> None:
    write(tmp_path / "a.csv", **columns)
    with pytest.raises(UserError, match=said):
        init("a.csv", root=tmp_path, yes=True)
    assert not (tmp_path / FILE).exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_init_on_a_terminal_asks_and_enter_keeps_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.csv", user_id=["u", "v"], person=["p", "q"], item_id=["i", "j"], time=times(2))
    monkeypatch.setattr("sys.stdin", Terminal("persn\nperson\n\n\n-\n\n"))
    assert init("a.csv", root=tmp_path).columns["user_id"] == "person"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no column persn; nearest: person" in captured.err
    monkeypatch.setattr("sys.stdin", io.StringIO("person\n"))  # without a terminal init does not ask
    assert init("a.csv", root=tmp_path, force=True).columns["user_id"] == "user_id"


def test_init_into_another_folder_writes_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.csv", user_id=["u", "v"], item_id=["i", "j"], time=times(2))
    monkeypatch.chdir(tmp_path)
    init("a.csv", root="shop", yes=True)
    assert open_project("shop").config.data.events == (tmp_path / "a.csv").as_posix()


def test_init_file_has_comments_and_default_values(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", user_id=["u", "v"] * 5, item_id=list("abcdefghij"), time=times(10))
    made = init("a.csv", root=tmp_path, yes=True)
    assert (tmp_path / FILE).read_text() == made.toml
    assert made.toml.startswith("# recloop: settings of this folder")
    assert "# next: recloop update" in made.toml
    plain = open_project(tmp_path).config
    defaults = type(plain)()
    for section in ("features", "model", "train", "placement", "serve", "evaluate", "stores"):
        assert getattr(plain, section) == getattr(defaults, section)
    assert plain.clean == defaults.clean


def test_init_of_json_items_names_non_latin_fields(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", user_id=["u", "v"] * 9, item_id=[f"i{k}" for k in range(18)], time=times(18))
    rows = [
        {"item_id": f"i{k}", "颜色": "红蓝"[k % 2], "产地": "南北"[k % 2], "mixed": ["x"] if k % 2 else "y"}
        for k in range(18)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    init("log.csv", "items.jsonl", root=tmp_path, yes=True)
    fields = open_project(tmp_path).config.features.item
    assert {name: field.source for name, field in fields.items()} == {"field": "颜色", "field_2": "产地"}
