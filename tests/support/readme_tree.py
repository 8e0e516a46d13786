"""The file tree of the README: every file with the first sentence of its own docstring; `--write` puts it there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "recloop"
START, END = "<!-- tree: python tests/support/readme_tree.py --write -->", "<!-- /tree -->"
WIDTH = 22


def sentence(file: Path) -> str:
    """The first sentence of a file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    found = re.match(r".*?[.](?=\s|$)", paragraph)
    return found[0].removesuffix(".") if found else ""


def tree() -> str:
    """The package as a listing: loop.py first, then the files, then the folders, which are the loop in order."""
    files = sorted(PACKAGE.glob("*.py"), key=lambda file: (file.stem != "loop", file.stem == "__init__", file.stem))
    lines = ["src/recloop/", *(_line("  ", file.name, sentence(file)) for file in files)]
    for folder in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        lines += ["", _line("  ", f"{folder.name}/", sentence(folder / "__init__.py"))]
        inside = sorted(folder.glob("*.py"))
        lines += [_line("    ", file.name, sentence(file)) for file in inside if file.name != "__init__.py"]
    return "\n".join(lines)


def _line(indent: str, name: str, said: str) -> str:
    return f"{indent}{name:<{WIDTH - len(indent)}}{said}".rstrip()


def block() -> str:
    """What stands between the marks of the README."""
    return f"{START}\n```text\n{tree()}\n```\n{END}"


def written(readme: str) -> str:
    """The README with the tree of now."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + block() + after


if __name__ == "__main__":
    file = ROOT / "README.md"
    if "--write" in sys.argv:
        file.write_text(written(file.read_text("utf-8")), "utf-8")
    else:
        print(tree())
