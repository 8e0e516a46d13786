"""Write, hash, check and load bundles; numpy only.

A bundle determines the lists completely: weights, vocabularies, feature spec, fusion weights, rules and placements are in one
folder whose manifest holds the SHA-256 of every file (docs/reference/bundle.md). Loading executes no code of a bundle:
its files are JSON, Parquet, safetensors and ONNX, never pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import safetensors.numpy

from recloop.bundle.arrays import check_arrays, map_arrays
from recloop.bundle.checks import (
    ITEM_COLUMNS,
    RANKER_GRAPH,
    USER_COLUMNS,
    check_graph,
    check_sizes,
    read_table,
    read_window,
)
from recloop.bundle.golden_case import GoldenCase
from recloop.errors import BundleError
from recloop.features.attribute_rows import AttributeRows
from recloop.features.learned_range import LearnedRange
from recloop.features.spec import ENCODE_VERSION, FeatureSpec
from recloop.features.vocabulary import FieldCodes, Vocabulary
from recloop.files import AttributeValues, JsonTree, file_sha256, readable, sync_folder, unchanged_sha256, write_file
from recloop.manifest import Manifest
from recloop.policy import Policy, ScorerSpec
from recloop.records import FUSED_SOURCES, FileFacts

FORMAT = 1
"""Version of the bundle format. It changes with the files or their meaning; other versions are rejected."""
MANIFEST = "manifest.json"
FIX = "recloop update --full, or copy the bundle again"
GRAPHS = ("user.onnx", "item.onnx", "rank.onnx", RANKER_GRAPH)
"""Graphs of a bundle; `rank.onnx` is a network that reorders the items of other sources."""


@dataclass(frozen=True)
class ItemTable:
    """Items that a bundle can rank; row ``ix - 1`` belongs to ``item_ix`` ix."""

    ids: Vocabulary
    count: np.ndarray  # (N,) int64 training positives
    tail: np.ndarray  # (N,) bool
    first_seq: np.ndarray  # (N,) int64
    attributes: Sequence[AttributeValues]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class UserTable:
    """Users that the model knows by id.

    Row ``ix`` of ``user_vectors`` belongs to ``user_ix`` ix; row 0 is padding.
    """

    ids: Vocabulary
    count: np.ndarray  # (U,) int64 rows that the model learned from, one per item and moment


def array_name(source: str, name: str) -> str:
    """Return the name of a model's array in a bundle.

    A source of a model's own name has its own arrays: ``NAME.item_vectors``, ``NAME.indptr``.
    """
    if source in FUSED_SOURCES:
        return name
    return f"{source}.{name.removeprefix('neighbours.')}"


@dataclass(frozen=True)
class Bundle:
    """Bundle in memory.

    ``arrays`` are those of serve.safetensors; ``graphs`` are ONNX bytes by file name. ``train`` and ``window`` (the test
    windows of its gate and of its parents') are written but not loaded; see `load_train` and `load_window`.
    """

    manifest: Manifest
    spec: FeatureSpec
    fields: FieldCodes
    policy: Policy
    items: ItemTable
    arrays: dict[str, np.ndarray]
    graphs: dict[str, bytes] = field(default_factory=dict)
    train: dict[str, np.ndarray] = field(default_factory=dict)
    metrics: JsonTree = field(default_factory=dict)
    golden: list[GoldenCase] = field(default_factory=list)
    users: UserTable | None = None
    window: pl.DataFrame | None = None
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared(self, name: str, derive: Callable[[], Any]) -> Any:
        """Return a value derived from the arrays; all users of this bundle share it."""
        if name not in self._shared:
            self._shared[name] = derive()
        return self._shared[name]

    @property
    def id(self) -> str:
        return self.manifest.bundle

    @property
    def scorers(self) -> Mapping[str, ScorerSpec]:
        """Scorers by source."""
        return self.manifest.scorers

    @property
    def default_placement(self) -> str:
        return self.policy.default_placement

    @property
    def cut(self) -> int:
        return self.manifest.data.cut

    @property
    def learned(self) -> LearnedRange:
        """Rows that the bundle was fitted on."""
        return self.manifest.data.learned


def write(bundle: Bundle, bundles: Path, started: datetime) -> Bundle:
    """Write a bundle atomically and return it with its id.

    The files are staged, synced to disk and renamed.

    Args:
        bundles: The folder of all bundles.
        started: Start of the run, UTC; part of the name, and unchanged when an interrupted run is resumed.
    """
    stage = bundles / f".stage-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        return _stage(bundle, stage, started)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # exists only if a write failed


def _stage(bundle: Bundle, stage: Path, started: datetime) -> Bundle:
    """Write into ``stage``, then rename it to its final name."""
    for name, data in _files(bundle).items():
        write_file(stage / name, data)
    if bundle.train:
        safetensors.numpy.save_file(_contiguous(bundle.train), stage / "train.safetensors")
        with (stage / "train.safetensors").open("rb") as written:
            os.fsync(written.fileno())
    files = {path.name: FileFacts(file_sha256(path), path.stat().st_size) for path in sorted(stage.iterdir())}
    manifest = replace(bundle.manifest, format=FORMAT, encode_version=ENCODE_VERSION, files=files)
    stamp = started.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{manifest.model.name.rpartition(':')[2].lower()}-{stamp}-{content_hash(manifest.to_json())}"
    manifest = replace(manifest, bundle=name)
    write_file(stage / MANIFEST, _json(manifest.to_json()))
    target = stage.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    stage.rename(target)
    sync_folder(stage.parent)
    return replace(bundle, manifest=manifest)


def content_hash(manifest: Mapping[str, Any]) -> str:
    """First 8 hex digits of the SHA-256 of a manifest, as it was first written.

    Keys ``bundle`` and ``redacted`` are left out. The JSON is UTF-8 with sorted keys and no spaces.
    """
    plain = {key: value for key, value in manifest.items() if key not in {"bundle", "redacted"}}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def manifest_hash(path: Path) -> str:
    """SHA-256 of a bundle's manifest file.

    Registration records it and serving checks it.
    """
    try:
        return file_sha256(path / MANIFEST)
    except FileNotFoundError:
        raise BundleError("bundle", path, f"a bundle with {MANIFEST}", "recloop status") from None


def load(path: Path, sha256: str | None = None) -> Bundle:
    """Check every file of a bundle, then load it.

    Args:
        path: The bundle's folder.
        sha256: Hash of the manifest as registered; None: not compared.

    Raises:
        BundleError: a wrong hash, a missing or extra file, a link, a graph with external data, an unknown format or
            encode_version.
    """
    with readable(path):
        return _loaded(path, check(path, sha256))


def load_written(path: Path) -> Bundle:
    """Load a bundle that this process has just written; only its manifest is checked.

    Its release, and each process that serves it, check every byte (`check`).

    Raises:
        BundleError: a file is missing or cannot be read.
    """
    with readable(path):
        return _loaded(path, read_manifest(path))


def _loaded(path: Path, manifest: Manifest) -> Bundle:
    """Load the checked files of a bundle."""
    check_sizes(path, manifest)
    with readable(path / "spec.json"):
        spec = FeatureSpec.from_json(_read_json(path / "spec.json"))
    with readable(path / "fields.json"):
        fields = FieldCodes.from_json(_read_json(path / "fields.json"))
        fields.check(spec)
    graphs = {name: (path / name).read_bytes() for name in GRAPHS if name in manifest.files}
    policy = Policy.from_json(_read_json(path / "policy.json"), manifest.scorers)
    for name, data in graphs.items():
        check_graph(name, data, path, "" if policy.ranker is None else policy.ranker.model)
    if (policy.ranker is None) != (RANKER_GRAPH not in graphs):
        part = "policy.json" if policy.ranker is None else RANKER_GRAPH
        raise BundleError(part, path, "the ranker of the bundle: its graph and its settings", "recloop update --full")
    table = read_table(path / "items.parquet", ITEM_COLUMNS)
    users = _users(path / "users.parquet") if "users.parquet" in manifest.files else None
    with readable(path / "serve.safetensors"):
        arrays = map_arrays(path / "serve.safetensors")
    check_arrays(arrays, len(table), None if users is None else len(users.ids))
    return Bundle(
        manifest=manifest,
        spec=spec,
        fields=fields,
        policy=policy,
        items=ItemTable(
            ids=Vocabulary(table["item_id"]),
            count=table["count"].to_numpy(),
            tail=table["tail"].to_numpy(),
            first_seq=table["first_seq"].to_numpy(),
            attributes=AttributeRows(table["fields"]),
        ),
        arrays=arrays,
        graphs=graphs,
        metrics=_read_json(path / "metrics.json"),
        golden=GoldenCase.read_all(path / "golden.json"),
        users=users,
    )


def _users(path: Path) -> UserTable:
    table = read_table(path, USER_COLUMNS)
    return UserTable(Vocabulary(table["user_id"]), table["count"].to_numpy())


def check(path: Path, sha256: str | None = None) -> Manifest:
    """Check all files of a bundle and return its manifest; see `load`."""
    if not path.is_dir() or path.is_symlink():
        raise BundleError("bundle", path, "a bundle folder", "recloop status")
    found = {entry.name: entry for entry in path.iterdir()}
    for entry in sorted(found.values()):
        if entry.is_symlink() or not entry.is_file():
            raise BundleError("bundle file", entry, "a regular file, not a link or a folder", FIX)
    if MANIFEST not in found:
        raise BundleError("bundle file", path / MANIFEST, "an existing file", FIX)
    manifest = read_manifest(path, sha256)
    listed = set(manifest.files)
    for name in sorted(listed - set(found)):
        raise BundleError("bundle file", path / name, "an existing file (the manifest lists it)", FIX)
    for name in sorted(set(found) - listed - {MANIFEST}):
        raise BundleError("bundle file", path / name, "only files that the manifest lists", FIX)
    for name in sorted(manifest.files):
        sha256 = manifest.redacted.get(name, manifest.files[name]).sha256
        if unchanged_sha256(found[name]) != sha256:
            raise BundleError("bundle file", path / name, f"SHA-256 {sha256}", FIX)
    return manifest


def read_manifest(path: Path, sha256: str | None = None) -> Manifest:
    """Check the manifest of a bundle and return it; its other files are not read.

    Args:
        sha256: Hash of the manifest as registered; None: not compared.
    """
    file = path / MANIFEST
    if sha256 is not None and manifest_hash(path) != sha256:
        raise BundleError("bundle file", file, f"SHA-256 {sha256} as registered", FIX)
    tree = _read_json(file)
    if tree.get("format") != FORMAT:
        raise BundleError("format", tree.get("format"), f"{FORMAT}", "upgrade recloop")
    if tree.get("encode_version") != ENCODE_VERSION:
        raise BundleError("encode_version", tree.get("encode_version"), f"{ENCODE_VERSION}", "upgrade recloop")
    manifest = Manifest.from_json(tree)
    if not manifest.bundle.endswith(content_hash(tree)):
        raise BundleError("bundle", manifest.bundle, f"a name that ends in {content_hash(tree)}", FIX)
    return manifest


def parent_of(path: Path) -> str | None:
    """Parent named by an unchecked manifest; None without a parent or a manifest."""
    file = path / MANIFEST
    return Manifest.from_json(_read_json(file)).parent if file.exists() else None


def load_train(path: Path) -> dict[str, np.ndarray]:
    """Load the arrays for a warm start; serving never reads them.

    Raises:
        BundleError: the file cannot be read, or an array is not of finite numbers.
    """
    file = path / "train.safetensors"
    with readable(file):
        arrays = safetensors.numpy.load_file(file)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise BundleError(f"{name} of {file.name}", "not finite", "finite numbers", "recloop update --full")
    return arrays


def load_window(path: Path) -> pl.DataFrame | None:
    """Load the test windows of a bundle's gate and of its parents' gates.

    Serving never reads them. None if the bundle did not pass through a gate.

    Raises:
        BundleError: the file cannot be read, or a column is missing, has another type or has nulls.
    """
    file = path / "window.parquet"
    if not file.exists():
        return None
    with readable(file):
        return read_window(file)


def _files(bundle: Bundle) -> dict[str, bytes]:
    table = pl.DataFrame(
        {
            "item_ix": pl.Series(np.arange(1, len(bundle.items) + 1), dtype=pl.Int32),
            "item_id": pl.Series(list(bundle.items.ids.ids), dtype=pl.String),
            "count": pl.Series(bundle.items.count, dtype=pl.Int64),
            "tail": pl.Series(bundle.items.tail, dtype=pl.Boolean),
            "fields": pl.Series([_object_text(row) for row in bundle.items.attributes], dtype=pl.String),
            "first_seq": pl.Series(bundle.items.first_seq, dtype=pl.Int64),
        }
    )
    return {
        "spec.json": _json(bundle.spec.to_json()),
        "fields.json": _json(bundle.fields.to_json()),
        "policy.json": _json(bundle.policy.to_json()),
        "metrics.json": _json(bundle.metrics),
        "golden.json": _json(msgspec.to_builtins(bundle.golden)),
        "items.parquet": _parquet(table),
        "serve.safetensors": safetensors.numpy.save(_contiguous(bundle.arrays)),
        **({} if bundle.users is None else {"users.parquet": _parquet(_user_rows(bundle.users))}),
        **({} if bundle.window is None else {"window.parquet": _parquet(bundle.window)}),
        **bundle.graphs,
    }


def _object_text(row: AttributeValues) -> str:
    """JSON of an item's attributes, sorted by name; many items have none."""
    return json.dumps(row, sort_keys=True) if row else "{}"


def _user_rows(users: UserTable) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_ix": pl.Series(np.arange(1, len(users.ids) + 1), dtype=pl.Int32),
            "user_id": pl.Series(list(users.ids.ids), dtype=pl.String),
            "count": pl.Series(users.count, dtype=pl.Int64),
        }
    )


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _read_json(path: Path) -> Any:
    with readable(path):
        return json.loads(path.read_text("utf-8"))
