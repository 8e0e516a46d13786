"""Dropout that starts after the first epochs of a run."""

from __future__ import annotations

from typing import Any

import lightning

from recloop.models.layers import Dropout


class LateDropout(lightning.Callback):
    """Lightning callback: switch dropout on after ``epochs`` whole epochs.

    In the first epochs each example is new, so a network underfits. Liu et al., "Dropout Reduces Underfitting", ICML 2023
    (arXiv 2303.01500), call it late dropout.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        for module in pl_module.network.modules():
            if isinstance(module, Dropout):
                module.active = trainer.current_epoch >= self.epochs
