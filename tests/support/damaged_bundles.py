"""Bundles with one random damage each, opened as `promote` opens them.

``python tests/support/damaged_bundles.py BUNDLE FIRST LAST`` damages copies of a bundle and prints the number and the
outcome of each: ``refused NAME``, ``equal`` (all golden lists hold) or ``error TYPE``. A crash or an endless bundle ends
the process, so the caller sees the number that it did not print.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from recloop import bundle as bundles
from recloop.errors import BundleError
from recloop.recommend.golden import check_golden

SECONDS = 60
BYTES = 12 * 2**30
"""Time and memory of one bundle."""
JSON_VALUES = ("null", "-1", "1e308", "[]", "{}", '"x"', "true", "[[0]]", '"' + "y" * 5_000 + '"')
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)


def flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def zeros(content: bytes, draw: random.Random) -> bytes:
    place, length = draw.randrange(len(content)), draw.choice((8, 64, 4096))
    return content[:place] + bytes(min(length, len(content) - place)) + content[place + length :]


def insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + draw.randbytes(draw.choice((1, 8, 300))) + content[place:]


def number(content: bytes, draw: random.Random) -> bytes:
    """Write a float that is not finite or a large integer at a place of four bytes."""
    place = draw.randrange(max(len(content) // 4, 1)) * 4
    value = struct.pack("<f", draw.choice(FLOATS)) if draw.random() < 0.5 else draw.randbytes(4)
    return content[:place] + value + content[place + 4 :]


def pickle(_: bytes, draw: random.Random) -> bytes:
    return b"\x80\x04\x95" + draw.randbytes(40) + b"cos\nsystem\n(S'true'\ntR."


def value(content: bytes, draw: random.Random) -> bytes:
    """Replace a value of a JSON tree."""
    tree = json.loads(content)
    node, key = tree, None
    while isinstance(node, dict | list) and node and (key is None or draw.random() < 0.7):
        parent, key = node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    if key is None:
        return draw.choice(JSON_VALUES).encode()
    parent[key] = json.loads(draw.choice(JSON_VALUES))
    return json.dumps(tree).encode()


ANY: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, cut, zeros, insert, pickle)


def damage(folder: Path, draw: random.Random) -> None:
    """Damage one file; mostly the manifest then agrees with it, as after a faulty program and not a faulty disk."""
    name = draw.choice(sorted(file.name for file in folder.iterdir()))
    file = folder / name
    if draw.random() < 0.02:
        target = file.rename(folder.parent / name)
        file.symlink_to(target)
        return
    change = draw.choice((*ANY, value, value, value) if file.suffix == ".json" else (*ANY, number, number, number))
    changed = change(file.read_bytes(), draw)
    file.write_bytes(changed)
    if name == "manifest.json" or draw.random() < 0.1:
        return
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"][name] = {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
    stem = manifest["bundle"].rpartition("-")[0]
    manifest["bundle"] = f"{stem}-{bundles.content_hash(manifest)}"
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def outcome(folder: Path, to_train: bool = True) -> str:
    """Open a bundle and answer its golden cases, as `recloop promote` does.

    ``to_train``: Also read what only an update reads, as it does.
    """
    try:
        found = bundles.load(folder)
        check_golden(found)
        if to_train:
            bundles.load_train(folder)
    except BundleError as error:
        return f"refused {error.name}"
    except Exception as error:  # noqa: BLE001 - any other error is what the test looks for
        return f"error {type(error).__name__}: {error}"
    return "equal"


def main() -> None:
    """Damage and open copies of a bundle."""
    source, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for case in range(first, last):
        signal.alarm(SECONDS)
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / source.name
            shutil.copytree(source, folder)
            damage(folder, random.Random(case))
            text = outcome(folder).replace("\n", " ")
        sys.stdout.write(f"{case} {text}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
