"""A custom network: trained by its dotted path, served without its package."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Server

from recloop import loop
from recloop.project import open_project
from recloop.simulation.shop import SimulatedShop

ACME = '''
"""A custom network: a user is a linear map of the mean of the history."""

from typing import ClassVar

import pydantic
import torch
from torch import nn


class Mean(nn.Module):
    class Config(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
        scale: float = 1.0

    inputs: ClassVar[str] = "sequence"

    def __init__(self, config=None):
        super().__init__()
        self.config = config or self.Config()

    def build(self, data, dim, history):
        self.table = nn.Embedding(data.n_items + 1, dim)
        self.linear = nn.Linear(dim, dim)

    def item_vectors(self, codes):
        return self.table.weight

    def forward_user(self, history, moments, mask, context):
        held = mask[:, :, None].to(history.dtype)
        return self.linear(self.config.scale * (history * held).sum(1) / held.sum(1).clamp(min=1))

    def forward_moments(self, history, moments, mask, context, arrived=None):
        number = torch.arange(context.shape[1])[None, :, None]
        seen = ((moments[:, None, :] >= number) & mask[:, None, :]).to(history.dtype)
        return self.linear(self.config.scale * (seen @ history) / seen.sum(2, keepdim=True).clamp(min=1))
'''


@pytest.mark.slow
def test_custom_network_by_path_is_served_without_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: Callable[..., Server]
) -> None:
    package = tmp_path / "packages" / "acme_shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(textwrap.dedent(ACME))
    monkeypatch.syspath_prepend(str(package.parent))
    world = SimulatedShop(seed=0, users=60, items=80)
    folder, user = world.write(tmp_path / "shop"), world.events()["user_id"][0]
    sets = [
        'model.name="acme_shop.models:Mean"',
        "model.scale=2.0",
        "train.epochs=2",
        "placement.home.weights={model=1.0}",
    ]
    bundle = loop.first_run(open_project(folder, sets)).bundle
    assert bundle.manifest.model.to_json() == {"name": "acme_shop.models:Mean", "config": {"scale": 2.0}}
    assert bundle.id.startswith("mean-")
    answer = serving(folder).client.get(f"/v1/recommend/{user}").json()
    assert answer["model_version"] == bundle.id
    assert [item["source"] for item in answer["items"]] == ["model"] * 10
