"""Rules of CONTRIBUTING.md that a program can check: lengths, sizes and banned words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "recloop"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FIRST_LINE = 80
MAX_FILE_LINES = 460
MAX_LOOP_LINES = 149
MAX_ROOT_FILES = 14
BANNED = re.compile(
    r"\b(nobody|somebody|anybody|strangers?|mend(s|ed)?|ladder|rungs?|shelf|anew|for want of|of one mind|told|stands"
    r"|comes|came|the door|taken back|took back|farewell|cannot tell|(?<!there )(is|are) no\b(?! longer)|twins?)\b",
    re.IGNORECASE,
)
STORED = re.compile(r"""'twin'|``ladder``|^['"]\w*['"]$""")
"""Values of earlier stores and bundles, which are still read, and literals of one word."""
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if not page.name.endswith("zh.md"))


def docstrings(module: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def prose(module: Path) -> Iterator[tuple[int, str]]:
    """Comments and strings of a module, with their first lines."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(module.read_text("utf-8")).readline):
        if token.type in kinds:
            yield token.start[0], token.string


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_prose_follows_the_style(module: Path) -> None:
    long = [(line, text) for line, text in docstrings(module) if len(text.splitlines()[0]) > MAX_FIRST_LINE]
    assert long == []
    words = [
        (line, found.group())
        for line, text in prose(module)
        for found in BANNED.finditer(text)
        if not STORED.search(text)
    ]
    assert words == []
    assert len(module.read_text("utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_makes_no_fixed_width_array_of_ids(module: Path) -> None:
    """One long id would give every element of such an array its length."""
    found = [node.lineno for node in ast.walk(ast.parse(module.read_text("utf-8"))) if is_fixed_width(node)]
    assert found == []


def is_fixed_width(node: ast.AST) -> bool:
    """True for ``np.str_``, ``.astype(str)`` and ``np.array(queries.users)`` without ``dtype=object``."""
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) == "np.str_"
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    values = [*node.args, *(keyword.value for keyword in node.keywords)]
    if any(ast.unparse(value).strip("'\"<>=|").startswith("U") for value in values if isinstance(value, ast.Constant)):
        return ast.unparse(node.func.value) == "np" or node.func.attr == "astype"
    if node.func.attr == "astype":
        return ast.unparse(node.args[0]) == "str"
    if ast.unparse(node.func) not in {"np.array", "np.asarray"} or "dtype=object" in ast.unparse(node):
        return False
    return re.fullmatch(r"[\w.]*(users|_ids|names)(\[[^\]]*\])?", ast.unparse(node.args[0])) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_has_no_banned_words(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    assert [found.group() for found in BANNED.finditer(text)] == []


def test_package_root_and_loop_stay_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_ROOT_FILES
    assert len((PACKAGE / "loop.py").read_text("utf-8").splitlines()) <= MAX_LOOP_LINES
