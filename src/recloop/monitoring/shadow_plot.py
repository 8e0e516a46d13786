"""Picture of a shadow report: the agreement of a candidate with live.

A module apart from the report, so that a service does not import Matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from recloop.evaluation.agreement import MEASURES


def plot(report: Mapping[str, Any], file: Path | str) -> None:
    """Plot each measure of a report with its 95 % CI; the noise floor is grey."""
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "recloop"}):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for offset, color, label, numbers in (
            (-0.12, "#1f5fa8", f"candidate, {report['requests']:,} requests", report["agreement"]),
            (0.12, "#8a8a8a", "live with another seed (noise floor)", report["noise"]),
        ):
            if numbers is None:
                continue
            points = [(y, numbers[m]) for y, m in enumerate(MEASURES) if numbers[m]["value"] is not None]
            value = np.array([estimate["value"] for _, estimate in points])
            ends = np.array([[estimate["low"], estimate["high"]] for _, estimate in points]).T
            axes.errorbar(
                value, [y + offset for y, _ in points], xerr=np.abs(ends - value), fmt="o", color=color, capsize=3,
                markersize=5, label=label,
            )  # fmt: skip
        axes.axvline(1.0, color="#cccccc", linewidth=1, zorder=0)
        axes.set_yticks(range(len(MEASURES)), MEASURES)
        axes.set_ylim(len(MEASURES) - 0.5, -0.5)
        axes.set_xlim(right=1.03)
        axes.set_xlabel("agreement with live (1 = equal)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower center", ncols=2, bbox_to_anchor=(0.45, 1.0))
        figure.savefig(file, metadata={"Date": None} if str(file).endswith(".svg") else None, dpi=160)
