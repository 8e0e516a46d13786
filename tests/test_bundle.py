"""Bundles on disk: hashes, missing and extra files, links, and graphs with external tensors."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

import recloop
from recloop import bundle as bundles
from recloop.bundle import Bundle, checks
from recloop.bundle.arrays import DTYPES, map_arrays
from recloop.bundle.golden_case import GoldenCase
from recloop.errors import BundleError
from recloop.features.state import StoredState
from recloop.features.undo import Kind
from recloop.graphs import has_external_tensors
from recloop.policy import FALLBACK, Policy, ScorerSpec, custom_scorers
from recloop.recommend.golden import check_golden
from recloop.simulation.shop import SimulatedShop

STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def fitted_bundle() -> Bundle:
    world = SimulatedShop(users=40, items=30)
    return recloop.fit(
        world.events(), world.items(), world.users(), config={"events": {"positive": ["purchase"]}}
    ).bundle


@pytest.fixture
def bundle_folder(fitted_bundle: Bundle, tmp_path: Path) -> Path:
    return tmp_path / bundles.write(fitted_bundle, tmp_path, STARTED).id


def test_bundle_name_is_model_start_and_hash(bundle_folder: Path) -> None:
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    assert bundle_folder.name == manifest["bundle"] == f"counts-20250102T030405Z-{bundles.content_hash(manifest)}"
    assert not list(bundle_folder.parent.glob(".stage*"))


def test_bundle_round_trips(bundle_folder: Path, fitted_bundle: Bundle) -> None:
    loaded = bundles.load(bundle_folder, bundles.manifest_hash(bundle_folder))
    assert (loaded.spec, loaded.fields, loaded.policy) == (
        fitted_bundle.spec,
        fitted_bundle.fields,
        fitted_bundle.policy,
    )
    assert loaded.items.ids.ids == fitted_bundle.items.ids.ids
    assert loaded.items.attributes == fitted_bundle.items.attributes
    assert all(np.array_equal(loaded.arrays[name], array) for name, array in fitted_bundle.arrays.items())
    assert loaded.arrays.keys() == fitted_bundle.arrays.keys()


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
def test_bundle_arrays_equal_those_read_by_safetensors(tmp_path: Path, dtype: type) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.integers(0, 2, (5, 3)).astype(dtype), "none": np.zeros((0, 4), dtype=dtype),
        "row": rng.integers(0, 2, 7).astype(dtype), "one": np.array(1).astype(dtype),
    }  # fmt: skip
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"of": "a test"})
    read = map_arrays(tmp_path / "a.safetensors")
    expected = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(read[name], array)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="a complete file"):
        map_arrays(tmp_path / "a.safetensors")


def test_bundle_of_equal_content_has_equal_bytes(bundle_folder: Path, fitted_bundle: Bundle, tmp_path: Path) -> None:
    again = tmp_path / "again" / bundles.write(fitted_bundle, tmp_path / "again", STARTED).id
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in bundle_folder.iterdir()
    }


@pytest.mark.parametrize("name", ["serve.safetensors", "items.parquet", "spec.json", "policy.json", "manifest.json"])
def test_bundle_with_a_flipped_byte_is_refused_with_file_and_hash(bundle_folder: Path, name: str) -> None:
    sha256 = bundles.manifest_hash(bundle_folder)
    data = bytearray((bundle_folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}.*SHA-256 [0-9a-f]{{64}}"):
        bundles.load(bundle_folder, sha256)


def test_bundle_with_a_missing_extra_or_linked_file_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    (bundle_folder / "extra.json").write_text("{}")
    with pytest.raises(BundleError, match=r"extra\.json.*the manifest lists"):
        bundles.load(bundle_folder)
    (bundle_folder / "extra.json").unlink()
    shutil.copy(bundle_folder / "policy.json", tmp_path / "policy.json")
    (bundle_folder / "policy.json").unlink()
    with pytest.raises(BundleError, match=r"policy\.json.*an existing file"):
        bundles.load(bundle_folder)
    (bundle_folder / "policy.json").symlink_to(tmp_path / "policy.json")
    with pytest.raises(BundleError, match=r"policy\.json.*not a link"):
        bundles.load(bundle_folder)


def test_bundle_of_a_newer_format_or_encoding_is_refused(bundle_folder: Path) -> None:
    for key in ("format", "encode_version"):
        manifest = json.loads((bundle_folder / "manifest.json").read_text())
        manifest[key] += 1
        (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=f"{key}={manifest[key]}"):
            bundles.load(bundle_folder)
        manifest[key] -= 1
        (bundle_folder / "manifest.json").write_text(json.dumps(manifest))


def test_bundle_graph_with_external_tensors_is_refused(fitted_bundle: Bundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    outside = replace(fitted_bundle, graphs={"user.onnx": onnx.helper.make_model(graph).SerializeToString()})
    written = bundles.write(outside, tmp_path, STARTED)
    with pytest.raises(BundleError, match=r"user\.onnx.*without external tensors"):
        bundles.load(tmp_path / written.id)


def test_check_golden_with_a_changed_list_raises(bundle_folder: Path) -> None:
    loaded = bundles.load(bundle_folder)
    rec = recloop.load(bundle_folder)
    ids = rec.recommend(["x"], n=3)["item_id"].to_list()
    case = GoldenCase(StoredState(), loaded.cut, "home", 3, ids, [-1.0, -2.0, -3.0])
    check_golden(replace(loaded, golden=[case]))
    with pytest.raises(BundleError, match="golden list"):
        check_golden(replace(loaded, golden=[replace(case, ids=ids[::-1])]))
    with pytest.raises(BundleError, match="golden list"):
        check_golden(replace(loaded, golden=[replace(case, scores=[-1.0, -2.0, -3.1])]))


def rewritten(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change one JSON file of a bundle and update its hashes and name."""
    tree = json.loads((folder / name).read_text())
    change(tree)
    (folder / name).write_bytes(bundles._json(tree))
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        data = (folder / file).read_bytes()
        manifest["files"][file] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["bundle"] = f"{manifest['bundle'][:-8]}{bundles.content_hash(manifest)}"
    (folder / "manifest.json").write_bytes(bundles._json(manifest))
    return folder.rename(folder.with_name(manifest["bundle"]))


def written_again(folder: Path) -> dict[str, bytes]:
    loaded = bundles.load(folder)
    return {
        "policy.json": bundles._json(loaded.policy.to_json()),
        "manifest.json": bundles._json(loaded.manifest.to_json()),
    }


def test_policy_and_manifest_round_trip_to_equal_bytes(bundle_folder: Path) -> None:
    assert written_again(bundle_folder) == {
        name: (bundle_folder / name).read_bytes() for name in ("policy.json", "manifest.json")
    }


def test_manifest_of_networks_and_children_round_trips_to_equal_bytes(bundle_folder: Path) -> None:
    def network(tree: dict[str, Any]) -> None:
        tree |= {"parent": "sasrec-20250101T000000Z-00000000", "recipe": "a" * 64, "config": {"features.dim": 32}}
        tree["model"] = {"name": "sasrec", "config": {"layers": 2, "dropout": 0.1}}
        tree["scorers"]["model"] = {"kind": "rank", "model": "neumf", "of": ["history", "popular"]}
        tree["train"] |= {"steps": 7, "steps_per_epoch": 3, "mode": "warm", "optimizer": "reset", "refit": True}

    def tuned(tree: dict[str, Any]) -> None:
        tree["placements"]["home"] |= {"rrf": 60, "weights": {"popular": 1, "history": 0.25}}

    bundle_folder = rewritten(rewritten(bundle_folder, "manifest.json", network), "policy.json", tuned)
    assert written_again(bundle_folder) == {
        name: (bundle_folder / name).read_bytes() for name in ("policy.json", "manifest.json")
    }
    manifest = bundles.load(bundle_folder).manifest
    assert manifest.train.repeated_epochs == 2
    assert [scorer.model for scorer in custom_scorers(manifest.scorers)] == ["neumf"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("policy.json", ()), ("policy.json", ("placements", "home")), ("manifest.json", ()),
        ("manifest.json", ("data",)), ("manifest.json", ("train",)), ("manifest.json", ("model",)),
        ("manifest.json", ("scorers", "popular")),
    ],
)  # fmt: skip
def test_bundle_unknown_keys_are_kept(bundle_folder: Path, tmp_path: Path, name: str, path: tuple[str, ...]) -> None:
    def added(tree: dict[str, Any]) -> None:
        for key in path:
            tree = tree[key]
        tree["from_a_later_version"] = {"value": [1, None]}

    bundle_folder = rewritten(bundle_folder, name, added)
    assert written_again(bundle_folder)[name] == (bundle_folder / name).read_bytes()
    again = bundles.write(bundles.load(bundle_folder), tmp_path / "again", STARTED)
    assert (tmp_path / "again" / again.id / name).read_bytes() == (bundle_folder / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("policy.json", ("placements",)), ("policy.json", ("filter_seen",)), ("policy.json", ("fallback",)),
        ("policy.json", ("placements", "home", "n")), ("policy.json", ("placements", "home", "weights")),
        ("manifest.json", ("data", "cut")), ("manifest.json", ("model", "name")), ("manifest.json", ("train",)),
        ("manifest.json", ("scorers", "popular", "model")),
    ],
)  # fmt: skip
def test_bundle_with_a_missing_key_is_refused_and_names_it(
    bundle_folder: Path, name: str, path: tuple[str, ...]
) -> None:
    def removed(tree: dict[str, Any]) -> None:
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]

    with pytest.raises(BundleError, match=rf"^{re.escape('.'.join((name, *path)))}=missing: expected"):
        bundles.load(rewritten(bundle_folder, name, removed))


@pytest.mark.parametrize(
    ("path", "value"), [(("n",), "ten"), (("weights",), {"popular": "much"}), (("filter",), None), (("rrf",), "60")]
)
def test_policy_value_of_a_wrong_type_is_refused_and_named(
    bundle_folder: Path, path: tuple[str, ...], value: object
) -> None:
    def changed(tree: dict[str, Any]) -> None:
        tree["placements"]["home"][path[0]] = value

    with pytest.raises(BundleError, match=rf"^policy\.json\.placements\.home\.{path[0]}="):
        bundles.load(rewritten(bundle_folder, "policy.json", changed))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda tree: tree.update(fallback=["popular", "trending"]), "fallback=trending: expected one of attributes, segment,"),
        (lambda tree: tree.update(ladder=[*tree.pop("fallback"), "pin"]), "ladder=pin: expected one of attributes, segment,"),
        (lambda tree: tree["placements"]["home"].update(list="trending"), "placements.home.list=trending: expected one of for"),
        (lambda tree: tree["placements"]["home"]["weights"].update(pin=1), "placements.home.weights=pin: expected one of model"),
    ],
)  # fmt: skip
def test_policy_unknown_name_is_refused_on_load(
    bundle_folder: Path, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    with pytest.raises(BundleError, match=rf"^policy\.json\.{re.escape(where)}"):
        bundles.load(rewritten(bundle_folder, "policy.json", change))


def test_policy_of_an_earlier_bundle_keeps_its_fallback_under_the_new_name(bundle_folder: Path) -> None:
    def renamed(tree: dict[str, Any]) -> None:
        tree["ladder"] = tree.pop("fallback")[::-1]

    policy = bundles.load(rewritten(bundle_folder, "policy.json", renamed)).policy
    assert policy.fallback == FALLBACK[::-1]
    assert policy.to_json()["fallback"] == [*policy.fallback]
    assert "ladder" not in policy.to_json()


def test_policy_without_placements_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"policy\.json\.placements=.*at least one placement"):
        bundles.load(rewritten(bundle_folder, "policy.json", lambda tree: tree.update(placements={})))


@pytest.mark.parametrize(
    ("source", "model", "baseline"),
    [("popular", "popular", True), ("model", "mf", False), ("neighbours", "acme.models:Mine", False)],
)
def test_scorer_is_a_baseline_unless_the_model_was_named(source: str, model: str, baseline: bool) -> None:
    assert ScorerSpec(source, model, "counts").is_baseline is baseline


def test_golden_cases_round_trip_to_equal_bytes(bundle_folder: Path, fitted_bundle: Bundle, tmp_path: Path) -> None:
    kinds = [Kind(1), Kind(2)]
    state = StoredState([(5, ["i1", "i2"], [0, 1])], kinds, positives=2, attributes={"age": 30})
    case = GoldenCase(state, fitted_bundle.cut, "home", 2, ["i1", "i2"], [0.25, -1.0])
    written = bundles.write(replace(fitted_bundle, golden=[case]), tmp_path / "again", STARTED)
    file = tmp_path / "again" / written.id / "golden.json"
    loaded = bundles.load(file.parent)
    assert loaded.golden == [case]
    again = bundles.write(loaded, tmp_path / "third", STARTED)
    assert (tmp_path / "third" / again.id / "golden.json").read_bytes() == file.read_bytes()


def test_golden_file_of_a_wrong_shape_is_refused(bundle_folder: Path) -> None:
    def broken(tree: Any) -> None:
        tree.append({"state": {}})

    with pytest.raises(BundleError, match=r"golden\.json=.*a list of golden cases"):
        bundles.load(rewritten(bundle_folder, "golden.json", broken))


def test_default_placement_is_home_in_any_order() -> None:
    placements = {name: {"list": "for_you", "weights": {}, "filter": "", "n": 3} for name in ("discover", "home")}
    policy = Policy.from_json({"placements": placements, "filter_seen": False, "fallback": list(FALLBACK)})
    assert policy.default_placement == "home"


def damaged_arrays(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """Arrays that index outside their tables, or have another shape or type."""
    arrays = bundle.arrays
    n_items = len(bundle.items)
    ids, indptr, popular = (arrays[name].copy() for name in ("neighbours.ids", "neighbours.indptr", "popular"))
    ids[3] = 2**31 - 1
    indptr[5] = indptr[4] - 1
    popular[0] = n_items + 1
    statistics = {
        "ranking.values": np.zeros((n_items + 1, 10), dtype=np.float32),
        "ranking.codes": np.arange(n_items + 1, dtype=np.int32)[None] % 2,
        "ranking.amounts": np.zeros((0, n_items + 1), dtype=np.float32),
        "rhythm.times": np.zeros((1, 2, 15), dtype=np.float32),
        "rhythm.hazard": np.zeros((1, 2, 19), dtype=np.float32),
    }
    return {
        "neighbours.ids": {"neighbours.ids": ids},
        "neighbours.ids is negative": {"neighbours.ids": -arrays["neighbours.ids"]},
        "neighbours.ids is short": {"neighbours.ids": arrays["neighbours.ids"][:-1]},
        "neighbours.weights": {"neighbours.weights": np.full_like(arrays["neighbours.weights"], np.nan)},
        "neighbours.indptr": {"neighbours.indptr": indptr},
        "neighbours.indptr is short": {"neighbours.indptr": arrays["neighbours.indptr"][:-1]},
        "neighbours.indptr are floats": {"neighbours.indptr": arrays["neighbours.indptr"].astype(np.float32)},
        "popular": {"popular": popular},
        "popular has two axes": {"popular": popular[None]},
        "segment.18-29": {"segment.18-29": np.array([0], dtype=np.int32)},
        "item_vectors": {"item_vectors": np.zeros((n_items, 4), dtype=np.float32)},
        "user_vectors": {"user_vectors": np.zeros((9, 4), dtype=np.float32)},
        "attributes.prior": {
            "attributes.affinity": np.zeros((1, 1), dtype=np.float32), "attributes.prior": np.zeros(2, dtype=np.float32),
            "attributes.value_prior": np.zeros(1, dtype=np.float32), "attributes.strengths": np.zeros(2, dtype=np.float32),
        },
        "ranking.values": {"ranking.values": np.zeros((n_items, 10), dtype=np.float32)},
        "ranking.values has nine columns": statistics | {"ranking.values": statistics["ranking.values"][:, :9].copy()},
        "ranking.values are doubles": statistics | {"ranking.values": statistics["ranking.values"].astype(np.float64)},
        "ranking.codes are negative": statistics | {"ranking.codes": statistics["ranking.codes"] - 1},
        "rhythm.times has too few codes": statistics | {"rhythm.times": statistics["rhythm.times"][:, :1].copy()},
    }  # fmt: skip


def test_bundle_with_an_array_outside_its_tables_is_refused_by_name(fitted_bundle: Bundle, tmp_path: Path) -> None:
    for number, (case, arrays) in enumerate(damaged_arrays(fitted_bundle).items()):
        damaged = replace(fitted_bundle, arrays={**fitted_bundle.arrays, **arrays})
        written = bundles.write(damaged, tmp_path / str(number), STARTED)
        with pytest.raises(BundleError, match=f"{re.escape(case.split(' ')[0])} of serve.safetensors"):
            bundles.load(tmp_path / str(number) / written.id)


def header(**facts: Any) -> Callable[[bytes], bytes]:
    """A change of the header of a safetensors file."""

    def change(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        tree = json.loads(content[8 : 8 + size])
        tree["popular"] |= facts
        text = json.dumps(tree).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return change


def time_zone(name: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), "timezone": name}).encode()

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("serve.safetensors", header(dtype="BF16"), "popular of serve.safetensors=BF16"),
        ("serve.safetensors", header(shape=[10**12]), "popular of serve.safetensors"),
        ("serve.safetensors", header(data_offsets=[8, 4]), "popular of serve.safetensors"),
        ("serve.safetensors", lambda content: (2**40).to_bytes(8, "little") + content[8:], "a header of"),
        ("serve.safetensors", lambda _: b"", "serve.safetensors=a header of"),
        ("items.parquet", lambda content: content[:-20], "items.parquet"),
        ("spec.json", lambda _: b"[" * 100_000, "spec.json"),
        ("spec.json", lambda _: b"{}", "spec.json"),
        ("spec.json", time_zone("y" * 300), "is not a time zone (File name too long)"),
        ("spec.json", time_zone("Europe"), "spec.json"),
        ("policy.json", lambda _: b"\xff", "policy.json"),
        ("golden.json", lambda _: b'[{"n": "x"}]', "golden.json"),
    ],
)
def test_bundle_of_any_content_is_refused_by_a_bundle_error(
    bundle_folder: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    changed = change((bundle_folder / name).read_bytes())
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    (bundle_folder / name).write_bytes(changed)
    manifest["files"][name] = {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
    manifest["bundle"] = f"counts-20250102T030405Z-{bundles.content_hash(manifest)}"
    (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=re.escape(message)):
        bundles.load(bundle_folder)


def test_bundle_files_that_are_too_large_for_their_content_are_refused(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAX_JSON_BYTES", 10)
    with pytest.raises(BundleError, match=r"\.json=.*at most 10"):
        bundles.load(bundle_folder)
    monkeypatch.undo()
    monkeypatch.setattr(checks, "MIN_TABLE_ROWS", 1)
    monkeypatch.setattr(checks, "MAX_ROWS_PER_BYTE", 0)
    with pytest.raises(BundleError, match=r"items\.parquet=.*distinct ids"):
        bundles.load(bundle_folder)


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph"])
def test_graph_with_an_external_tensor_at_any_place_is_found(place: str) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)

    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    nodes = {
        "initializer": [],
        "attribute": [onnx.helper.make_node("Constant", [], ["w"], value=tensor)],
        "subgraph": [onnx.helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)],
    }[place]
    graph = onnx.helper.make_graph(nodes, "g", [], [], [tensor] if place == "initializer" else [])
    assert has_external_tensors(onnx.helper.make_model(graph).SerializeToString())
    tensor.data_location = onnx.TensorProto.DEFAULT
    plain = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["w"], value=tensor)], "g", [], [], [tensor])
    assert not has_external_tensors(onnx.helper.make_model(plain).SerializeToString())


def window(**columns: list[object]) -> pl.DataFrame:
    whole = {"to_seq": [5], "user": [0.5], "candidate": [0.1], "live": [0.2], "recipe": ["r"]}
    return pl.DataFrame({**whole, **columns})


def test_load_window_reads_a_window_with_and_without_a_recipe(tmp_path: Path) -> None:
    assert bundles.load_window(tmp_path) is None
    for frame in (window(), window().drop("recipe")):
        frame.write_parquet(tmp_path / "window.parquet")
        read = bundles.load_window(tmp_path)
        assert read is not None
        assert read.equals(frame)


@pytest.mark.parametrize(
    "frame",
    [window(candidate=["high"]), window(live=[None]), window().drop("user"), window(recipe=[1])],
    ids=["another type", "a null", "a missing column", "another recipe"],
)
def test_load_window_refuses_other_columns(tmp_path: Path, frame: pl.DataFrame) -> None:
    frame.write_parquet(tmp_path / "window.parquet")
    with pytest.raises(BundleError, match=r"window\.parquet"):
        bundles.load_window(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\xff" * 64], ids=["empty", "cut", "another file"])
def test_files_of_an_update_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    for name, load in (("window.parquet", bundles.load_window), ("train.safetensors", bundles.load_train)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BundleError, match=name):
            load(tmp_path)


def test_load_train_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    file = tmp_path / "train.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2, np.float32), "b": np.array([1.0, np.nan], np.float32)}, file)
    with pytest.raises(BundleError, match=r"b of train\.safetensors"):
        bundles.load_train(tmp_path)
