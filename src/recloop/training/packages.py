"""Packages of the extra ``train``, which fit and export networks."""

from __future__ import annotations

import importlib.util
from typing import Final

PACKAGES: Final = ("torch", "lightning", "onnx", "onnxscript")


def missing_packages() -> list[str]:
    """Return the packages that are not installed; none is imported."""
    return [package for package in PACKAGES if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # an import hook that blocks it
        return False
