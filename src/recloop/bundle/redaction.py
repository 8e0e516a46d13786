"""Removal of users from a bundle in use: its table of users and its windows.

A redacted bundle keeps its name and its arrays' shapes: the user's row has an id that no user has, and the vector of an
unknown user. ``redacted`` of the manifest holds the hashes of the changed files, and the release rows get the new hash of
the manifest. A staged folder ``.redacted-BUNDLE`` that is complete is put in place after an interruption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import safetensors.numpy

from recloop.files import file_sha256, replace_file, swap_folder, sync_folder
from recloop.records import USER_ID, FileFacts, hash_unit_interval

PREFIX: Final = ".redacted-"
USERS_FILE: Final = "users.parquet"
WINDOW_FILE: Final = "window.parquet"
ARRAYS_FILE: Final = "serve.safetensors"
MANIFEST: Final = "manifest.json"
VECTORS: Final = "user_vectors"
WINDOW_SALT: Final = "window"
SetHash = Callable[[str, str], None]
"""Replaces the registered hash of a bundle's manifest."""


def redact(folder: Path, is_former: Callable[[str], bool], users: Collection[str], set_hash: SetHash) -> bool:
    """Remove users from a bundle; return True if it had one of them.

    Args:
        is_former: True for an id of the table of users that is to be removed.
        users: Ids whose queries are removed from the windows of gates.
    """
    changes = {**_without_users(folder, is_former), **_without_windows(folder, users)}
    if not changes:
        return False
    staged = folder.with_name(f"{PREFIX}{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(folder, staged)
    (staged / MANIFEST).unlink()
    for name, write in changes.items():
        write(staged / name)
    tree = json.loads((folder / MANIFEST).read_text("utf-8"))
    facts = {name: asdict(FileFacts(file_sha256(staged / name), (staged / name).stat().st_size)) for name in changes}
    tree["redacted"] = {**tree.get("redacted", {}), **facts}
    text = json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    sync_folder(staged)
    replace_file(staged / MANIFEST, text)  # the folder is complete with it
    put_in_place(staged, set_hash)
    return True


def recover(bundles: Path, set_hash: SetHash) -> None:
    """Put complete staged bundles in place and remove incomplete ones."""
    for staged in sorted(bundles.glob(f"{PREFIX}*")):
        if (staged / MANIFEST).exists():
            put_in_place(staged, set_hash)
        else:
            shutil.rmtree(staged)


def put_in_place(staged: Path, set_hash: SetHash) -> None:
    """Register the new hash, then replace the bundle; both steps can be repeated."""
    name = staged.name.removeprefix(PREFIX)
    set_hash(name, file_sha256(staged / MANIFEST))
    swap_folder(staged, staged.with_name(name))


def _without_users(folder: Path, is_former: Callable[[str], bool]) -> Mapping[str, Callable[[Path], None]]:
    if not (folder / USERS_FILE).exists():
        return {}
    table = pl.read_parquet(folder / USERS_FILE)
    former = np.array([is_former(user) for user in table[USER_ID]], dtype=bool)
    if not former.any():
        return {}
    # no id contains a zero byte, and a count of 0 equals no history
    ids = pl.when(pl.Series(former)).then(pl.format("\0{}", "user_ix")).otherwise(USER_ID).alias(USER_ID)
    counts = pl.when(pl.Series(former)).then(0).otherwise("count").cast(pl.Int64).alias("count")
    redacted = table.with_columns(ids, counts)
    rows = np.flatnonzero(former) + 1

    def write_arrays(file: Path) -> None:
        arrays = safetensors.numpy.load_file(file)
        for name in arrays:
            if name.rpartition(".")[2] == VECTORS:
                arrays[name] = arrays[name].copy()
                arrays[name][rows] = arrays[name][0]  # the row of an unknown user
        safetensors.numpy.save_file(arrays, file)

    return {
        USERS_FILE: lambda file: redacted.write_parquet(file, compression="zstd"),
        ARRAYS_FILE: write_arrays,
    }


def _without_windows(folder: Path, users: Collection[str]) -> Mapping[str, Callable[[Path], None]]:
    if not (folder / WINDOW_FILE).exists():
        return {}
    table = pl.read_parquet(folder / WINDOW_FILE)
    hashes = pl.Series([hash_unit_interval(WINDOW_SALT, user) for user in users], dtype=pl.Float64)
    kept = table.filter(~pl.col("user").is_in(hashes.implode()))
    if len(kept) == len(table):
        return {}
    return {WINDOW_FILE: lambda file: kept.write_parquet(file, compression="zstd")}
