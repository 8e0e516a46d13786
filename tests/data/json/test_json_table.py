"""JSON files: paths, layouts, exact texts and damaged input."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from recloop.config import Data
from recloop.data import tables
from recloop.data.json import table as json_table
from recloop.data.sources import InputFile, find
from recloop.data.tables import Table, paths_of, read_table, sample_table
from recloop.errors import UserError


def source_of(path: Path, content: bytes | str) -> InputFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return InputFile("data.events", path, path.name)


def table(tmp_path: Path, content: bytes | str, names: Sequence[str] | None = None) -> Table:
    return read_table(source_of(tmp_path / "log.json", content), Data(), names)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


GA4 = lines(
    {
        "event_timestamp": "1769421484671015",
        "event_name": "purchase",
        "event_params": [
            {"key": "ga_session_id", "value": {"int_value": "7"}},
            {"key": "page", "value": {"string_value": "/p", "int_value": None}},
        ],
        "user_pseudo_id": "100213813.1767001647",
        "ecommerce": {"transaction_id": "T1"},
        "items": [{"item_id": "A", "price": 54.85}, {"item_id": "B"}],
    },
    {"event_timestamp": "1769421484671016", "event_name": "page_view", "user_pseudo_id": "1.2", "items": []},
)
SEGMENT = lines(
    {"event": "Product Viewed", "properties": {"product_id": 5011}},
    {
        "event": "Order Completed",
        "properties": {"order_id": "o", "products": [{"product_id": "1"}, {"product_id": "2"}]},
    },
    {"type": "page", "properties": {"title": "Home"}},
)
MATOMO = [
    {"idVisit": 7, "actionDetails": [{"type": "action", "timestamp": 10}, {"type": "ecommerceOrder", "timestamp": 20}]},
    {"idVisit": 8, "actionDetails": []},
]


# -- paths


def test_read_table_of_ga4_repeats_the_event_for_every_item(tmp_path: Path) -> None:
    names = [
        "event_name",
        "items[].item_id",
        "items[].price",
        "event_params[ga_session_id]",
        "ecommerce.transaction_id",
    ]
    read = table(tmp_path, GA4, names)
    assert read.frame.rows() == [
        ("purchase", "A", "54.85", "7", "T1"),
        ("purchase", "B", None, "7", "T1"),
        ("page_view", None, None, None, None),
    ]
    assert read.records is not None
    assert read.records.to_list() == [0, 0, 1]
    assert read.n_records == 2
    assert {"event_params[page]", "items[].item_id", "user_pseudo_id"} <= set(read.columns)


def test_read_table_of_segment_reads_both_alternatives_of_the_item(tmp_path: Path) -> None:
    read = table(tmp_path, SEGMENT, ["event", "properties.product_id", "properties.products[].product_id"])
    assert read.frame.rows() == [
        ("Product Viewed", "5011", None),
        ("Order Completed", None, "1"),
        ("Order Completed", None, "2"),
        (None, None, None),
    ]


def test_read_table_of_nested_lists_keeps_the_order_of_elements(tmp_path: Path) -> None:
    content = lines(
        {"u": 1, "days": [{"d": 1, "views": [{"i": 1}, {"i": 2}]}, {"d": 2}, {"d": 3, "views": [{"i": 3}]}]}
    )
    read = table(tmp_path, content, ["u", "days[].d", "days[].views[].i"])
    assert read.frame.rows() == [("1", "1", "1"), ("1", "1", "2"), ("1", "2", None), ("1", "3", "3")]


def test_read_table_of_two_lists_in_one_record_concatenates_their_rows(tmp_path: Path) -> None:
    content = lines({"u": 1, "bought": ["x"], "seen": ["y", "z"]}, {"u": 2, "seen": "w"})
    read = table(tmp_path, content, ["u", "bought[]", "seen[]"])
    assert read.frame.rows() == [("1", "x", None), ("1", None, "y"), ("1", None, "z"), ("2", None, "w")]


def test_read_table_without_list_paths_has_one_row_per_record(tmp_path: Path) -> None:
    read = table(tmp_path, GA4, ["event_name", "items", "missing", "ecommerce"])
    assert read.records is None
    assert read.frame.columns == ["event_name", "items", "ecommerce"]
    assert read.frame["items"].to_list() == ['[{"item_id":"A","price":54.85},{"item_id":"B"}]', "[]"]
    assert read.frame["ecommerce"].to_list() == ['{"transaction_id":"T1"}', None]


def test_read_table_of_values_of_several_types_reads_each(tmp_path: Path) -> None:
    content = lines(
        {"a": {"b": [{"c": 1}]}}, {"a": None}, {"a": {"b": {"c": 2}}}, {"a": 3}, {"a": {"b": [None, {"c": {}}, 4]}}
    )
    read = table(tmp_path, content, ["a.b[].c"])
    assert read.frame["a.b[].c"].to_list() == ["1", None, "2", None, None, "{}", None]
    assert read.broken == {}


def test_read_table_prefers_a_key_with_a_dot_to_a_path(tmp_path: Path) -> None:
    read = table(tmp_path, lines({"a.b": 1, "a": {"b": 2, "c.d": 3}}), ["a.b", "a[c.d]"])
    assert read.frame.rows() == [("1", "3")]
    assert "a[c.d]" in read.columns


def test_read_table_texts_of_values_are_exact(tmp_path: Path) -> None:
    content = '{"id": 1000}\n{"id": 1000.0}\n{"id": 123456789012345678901234567890}\n{"id": true}\n{"id": null}\n{"id": "01"}\n{"id": 1.5}\n{"id": [1]}\n'
    texts = ["1000", "1000", "123456789012345678901234567890", "true", None, "01", "1.5", "[1]"]
    assert table(tmp_path, content).frame["id"].to_list() == texts


# -- layouts


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrapper", ["", "visits"])
def test_read_table_of_an_array_equals_lines(tmp_path: Path, indent: int | None, wrapper: str) -> None:
    content = json.dumps({"status": 1, wrapper: MATOMO, "next": []} if wrapper else MATOMO, indent=indent)
    names = ["idVisit", "actionDetails[].type", "actionDetails[].timestamp"]
    read = table(tmp_path, content, names)
    assert read.frame.equals(table(tmp_path, lines(*MATOMO), names).frame)
    assert read.frame.rows() == [("7", "action", "10"), ("7", "ecommerceOrder", "20"), ("8", None, None)]


def test_read_table_locates_records_of_an_array_by_line(tmp_path: Path) -> None:
    read = table(tmp_path, '\ufeff[\n {"a": 1},\n {"a": NaN},\n\n {"a":\n 3}, 4\n]\n'.encode())
    assert read.how == "json, utf-8"
    assert read.frame["a"].to_list() == ["1", "3"]
    assert sorted(read.broken) == [1, 3]
    assert read.locate([0, 1, 2, 3]) == [(2, '{"a": 1}'), (3, '{"a": NaN}'), (5, '{"a":\n 3}'), (6, "4")]


def test_read_table_of_arrays_in_small_blocks_is_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"a": '\\"]},{[' * 3, "b": ["x\\", {"c": "\\\\"}]}, {"a": "ü", "b": []}, {"a": "", "b": [{}]}] * 3
    content = json.dumps(records, ensure_ascii=False, indent=1).encode()
    whole = table(tmp_path, content)
    for size in (1, 2, 3, 7):
        blocks = [content[start : start + size] for start in range(0, len(content), size)]
        monkeypatch.setattr(InputFile, "blocks", lambda _, blocks=blocks: iter(blocks))
        assert read_table(whole.source, Data()).frame.equals(whole.frame)
    assert whole.frame["a"].to_list() == [record["a"] for record in records]


def test_read_table_of_objects_without_line_breaks_reads_all(tmp_path: Path) -> None:
    assert table(tmp_path, '{"a":1}{"a":2} {"a":3}').frame["a"].to_list() == ["1", "2", "3"]
    read = table(tmp_path, '{\n "a": 1\n}\n{\n "a": [{"b": 2}]\n}\n', ["a"])
    assert read.frame["a"].to_list() == ["1", '[{"b":2}]']
    assert read.locate([1]) == [(4, '{\n "a": [{"b": 2}]\n}')]


def test_read_table_of_one_record_with_a_wanted_key_is_not_a_wrapper(tmp_path: Path) -> None:
    read = table(tmp_path, lines({"user": "u", "items": [{"id": 1}, {"id": 2}]}), ["user", "items[].id"])
    assert read.frame.rows() == [("u", "1"), ("u", "2")]


def test_read_table_of_two_lists_in_one_object_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found a second list, carts"):
        table(tmp_path, json.dumps({"orders": [{"a": 1}], "carts": [{"a": 1}]}))


def test_read_table_of_utf_16_reads_an_array(tmp_path: Path) -> None:
    assert table(tmp_path, '[{"a": "Größe"}]'.encode("utf-16")).frame["a"].to_list() == ["Größe"]


# -- damaged input


@pytest.mark.parametrize(
    "content",
    [
        "{u'user': u'a', u'n': 1, u'x': None}\n\n{u'user': u'b\\u00fc', u'n': 2, u'x': True}\n",
        "{'user': 'a', 'n': 1}\n",
    ],
)
def test_read_table_of_python_literals_raises_with_a_working_fix(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="Python literals") as caught:
        table(tmp_path, content)
    command = caught.value.fix.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    new = tmp_path / "log-json.jsonl"
    assert read_table(InputFile("data.events", new, new.name), Data()).frame["user"][0] == "a"


def test_python_literals_in_archives_have_a_fix_that_unpacks(tmp_path: Path) -> None:
    (tmp_path / "steam.json.gz").write_bytes(gzip.compress(b"{'a': None}\n"))
    with zipfile.ZipFile(tmp_path / "my logs.zip", "w") as archive:
        archive.writestr("day 1.json", "{'a': None}\n")
    for name, command in (
        ("steam.json.gz", "gzip -dc steam.json.gz | "),
        ("my logs.zip", "unzip -p 'my logs.zip' 'day 1.json' | "),
    ):
        (source,) = find(tmp_path, name, "data.events")
        with pytest.raises(UserError) as caught:
            read_table(source, Data())
        assert caught.value.fix.startswith(command)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1},\n{"a": 2', r"record 2 \(line 2\) is not closed"),
        ('[{"a": 1},\n{"a": 2}\n', r"record 2 \(line 2\) is not closed"),
        ('{"a": 1,\n"b": [{"a": 2},\n', r"record 1 \(line 1\) is not closed"),
        ('[{"a": 1}]\n[{"a": 2}]\n', "text after the array"),
    ],
)
def test_read_table_of_cut_off_json_raises_with_the_line(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        table(tmp_path, content)


def test_read_table_of_lines_rejects_damaged_ones(tmp_path: Path) -> None:
    bom = "\ufeff"
    content = (
        f'{{"a": oops}}\n{{"a": "x", "a": "y"}}\r\n{bom}{{"a": 2}}\n{{"a": "\\ud800"}}\n{{"a": 3}} x\n"s"\n{{"a": 4'
    )
    read = table(tmp_path, content)
    assert read.frame["a"].to_list() == ["y", "2"]
    assert sorted(read.broken) == [0, 3, 4, 5, 6]
    assert [line for line, _ in read.locate(read.broken)] == [1, 4, 5, 6, 7]


@pytest.mark.parametrize(("depth", "names"), [(500, None), (100_000, None), (980, ["a"]), (100_000, ["a", "a[].b"])])
def test_read_table_of_deep_json_rejects_the_record(tmp_path: Path, depth: int, names: list[str] | None) -> None:
    deep = '{"a": ' + "[" * depth + "]" * depth + "}"
    read = table(tmp_path, f'{deep}\n{{"a": [{{"b": 1}}]}}\n', names)
    assert list(read.broken) == [0]
    assert len(read.frame) == 1


def test_read_table_of_a_field_of_10_mb_keeps_it(tmp_path: Path) -> None:
    text = "x" * 10_000_000
    for content in (f'{{"a": "{text}"}}\n{{"a": "y"}}\n', f'[{{"a": "{text}"}}, {{"a": "y"}}]'):
        assert table(tmp_path, content).frame["a"].str.len_bytes().to_list() == [10_000_000, 1]


# -- samples


def test_sample_json_expands_the_list_with_ids_and_most_elements(tmp_path: Path) -> None:
    source = source_of(tmp_path / "log.json", GA4)
    sample = sample_table(source, Data(), 10)
    assert sample.frame["items[].item_id"].to_list() == ["A", "B", None]
    assert sample.frame["event_params[page]"].to_list() == ["/p", "/p", None]
    taxes = lines(
        {"order": 1, "lines": [{"sku": "a", "taxes": [{"rate": 1}, {"rate": 2}]}], "notes": [{"text": "t"}] * 9}
    )
    sample = sample_table(source_of(tmp_path / "log.json", taxes + taxes), Data(), 1)
    assert sample.frame.to_dicts() == [{"order": "1", "lines[].sku": "a"}] * 2


def test_sample_table_reads_a_part_of_long_lines_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_SAMPLE_BYTES", 100_000)
    monkeypatch.setattr(json_table, "MAX_SAMPLE_BYTES", 100_000)
    records = [{"id": number, "text": "x" * 1000} for number in range(6000)]
    for content in (lines(*records), json.dumps(records)):
        source = source_of(tmp_path / "log.json", content)
        sample = sample_table(source, Data(), 1000)
        assert 50 < len(sample.frame) < 4500
        assert sample.is_part or sample.source.sample_bytes
    assert sample_table(source_of(tmp_path / "log.json", '[{"id": 1}]'), Data(), 1000).is_part is False


def test_json_leaves_give_samples_and_shares(tmp_path: Path) -> None:
    leaves = {leaf.path: leaf for leaf in paths_of(source_of(tmp_path / "log.json", GA4), Data())}
    assert leaves["items[].price"].list == "items[]"
    assert leaves["items[].price"].share == 0.5
    assert leaves["items[].item_id"].samples == ("A", "B")
    assert leaves["ecommerce.transaction_id"].share == 0.5
    assert "items" not in leaves
