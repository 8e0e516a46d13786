"""Prometheus text format of metrics, version 0.0.4.

family("recloop_entropy", "Evenness of the slots", "gauge", [({"window": "day"}, 0.83)])

The text is that of `prometheus_client`, apart from an exponent in numbers of a million or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

Sample = tuple[Mapping[str, str], float]
"""Labels and value."""
ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def family(name: str, description: str, kind: str, samples: Iterable[Sample]) -> str:
    """Format a metric with its samples.

    Args:
        name: Name; that of a counter ends in ``_total``.
        description: Text of one line, without a backslash.
        kind: ``gauge`` or ``counter``.
    """
    lines = [f"# HELP {name} {description}\n# TYPE {name} {kind}\n"]
    lines += [f"{name}{_labels(labels)} {_number(value)}\n" for labels, value in samples]
    return "".join(lines)


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join([f'{name}="{labels[name].translate(ESCAPES)}"' for name in sorted(labels)])
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    number = float(value)
    if math.isfinite(number):
        return repr(number)
    return "NaN" if math.isnan(number) else f"{number:+}".replace("inf", "Inf")
