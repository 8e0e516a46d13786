"""Changes of a network between epochs, such as dropout that starts late."""

from __future__ import annotations

from typing import Any

import lightning

from recloop.models.layers import Dropout
from recloop.training.network import OptionalMembers


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


class EpochStart(lightning.Callback):
    """Lightning callback: tell a network the number of each epoch of a full run."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        start_epoch = OptionalMembers.from_network(pl_module.network).start_epoch
        if start_epoch is not None:
            start_epoch(trainer.current_epoch)
