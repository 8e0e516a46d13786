"""Fits of closed-form models that are refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from moment_rows import data_of

from recloop.errors import UserError
from recloop.models.base import ModelConfig, TrainData
from recloop.models.mf import MF
from recloop.training.closed_form import fit_model

DATA = data_of([[[1, 2], [3]], [[2], [4]], [[1], [3, 4]]], 4)


class Half:
    """A model of an application with one number that is not finite."""

    kind = "vectors"
    source = "acme"
    config = ModelConfig()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        vectors = np.ones((data.n_items + 1, 2), dtype=np.float32)
        vectors[-1, -1] = -np.inf
        return {"item_vectors": vectors, "rows": np.arange(3)}


def test_fit_model_that_overflows_names_array_and_options_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            UserError, match=r"model\.name=mf: expected .* item_vectors is finite, not dim=8, l2=1e\+300"
        ):
            fit_model("mf", MF(MF.Config(dim=8, l2=1e300)), DATA)
    with pytest.raises(UserError, match=r"acme\.models:Half: expected .* acme\.item_vectors is finite, not none; try"):
        fit_model("acme.models:Half", Half(), DATA)


def test_fit_model_returns_the_arrays_by_their_names_in_a_bundle() -> None:
    assert [*fit_model("mf", MF(MF.Config(dim=8)), DATA)] == ["item_vectors", "user_vectors"]
