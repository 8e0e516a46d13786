"""Training end to end on a log with known next items: learning, stopping, repeatability."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from recloop.config import Config
from recloop.errors import UserError
from recloop.models.base import TrainData, load_model
from recloop.settings import build
from recloop.training import trainer, validation
from recloop.training.batches import SequenceDataset
from recloop.training.fit import TrainedNetwork, fit_network, has_sequences

N = 30
Arrays = Callable[..., TrainData]


def circle(arrays: Arrays, users: int = 60, basket: int = 1) -> TrainData:
    """Users walk a circle of N items; half of them hold out the last step."""
    step = np.arange(9)
    walks = [[[(start * 7 + at * basket + b) % N + 1 for b in range(basket)] for at in step] for start in range(users)]
    held = {user: walks[user][-1] for user in range(0, users, 2)}
    return arrays([walk[:-1] if user in held else walk for user, walk in enumerate(walks)], N, held=held)


def settings(**train: object) -> Config:
    return build(
        {"features": {"dim": 16, "max_history": 20, "context": []}, "train": {"lr": 0.01, **train}}, environment={}
    )


def train_alone(
    data: TrainData, folder: Path, budget: float = 600, dropout: float = 0.0, start: str = "counts", **train: object
) -> tuple[dict[str, torch.Tensor], validation.TrainingCallback]:
    """Train without an export; return the final weights and the training callback."""
    network = load_model("sasrec", {"dropout": dropout, "dropout_after": 0, "start": start})
    _, watch = trainer.train(network, data, settings(**train), folder, budget, quiet=True)
    return network.state_dict(), watch


@pytest.fixture(scope="module")
def fitted_circle_run(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedNetwork, Path]:
    folder = tmp_path_factory.mktemp("run") / "one"
    config = settings(epochs=60, patience=60)
    return fit_network("sasrec", {"dropout": 0.0}, circle(arrays), config, folder, 600, quiet=True), folder


def test_fit_network_learns_the_next_item(fitted_circle_run: tuple[TrainedNetwork, Path]) -> None:
    network, _ = fitted_circle_run
    assert network.validation > 0.9  # chance: 0.15
    assert network.stopped == "epochs"
    assert 1 <= network.epochs <= 60


def test_fit_network_returns_arrays_graph_and_train_state(fitted_circle_run: tuple[TrainedNetwork, Path]) -> None:
    network, _ = fitted_circle_run
    vectors = network.arrays["item_vectors"]
    assert vectors.shape == (N + 1, 16)
    assert not vectors[0].any()
    assert network.name == "sasrec"
    assert network.config == {
        "block": "vanilla",
        "blocks": 2,
        "heads": 2,
        "dropout": 0.0,
        "dropout_after": 4,
        "attention_dropout": 0.0,
        "start": "counts",
    }
    assert len(network.graph) > 1_000
    names = {name.partition(".")[0] for name in network.train_state}
    assert names == {"network", "exp_avg", "exp_avg_sq", "step"}
    np.testing.assert_array_equal(network.train_state["network.table.weight"][1:], vectors[1:])


def test_exported_graph_ranks_the_next_item_first(fitted_circle_run: tuple[TrainedNetwork, Path]) -> None:
    """Item vectors and graph, as serving reads them, rank 4 first after 1 2 3."""
    network, _ = fitted_circle_run
    vectors = network.arrays["item_vectors"]
    session = onnxruntime.InferenceSession(network.graph, providers=["CPUExecutionProvider"])
    inputs = {
        "history": vectors[[1, 2, 3]][None],
        "moments": np.array([[2, 1, 0]]),
        "mask": np.ones((1, 3), bool),
        "context": np.zeros((1, 0), np.int64),
    }
    (user,) = session.run(None, inputs)
    assert int((user @ vectors[1:].T).argmax()) + 1 == 4


def test_exported_graph_is_valid_and_independent_of_padding(fitted_circle_run: tuple[TrainedNetwork, Path]) -> None:
    """One window alone, and padded beside a longer one."""
    network, _ = fitted_circle_run
    onnx.checker.check_model(onnx.load_from_string(network.graph), full_check=True)
    session = onnxruntime.InferenceSession(network.graph, providers=["CPUExecutionProvider"])
    moments = np.array([[2, 1, 0, 0, 0], [4, 3, 2, 1, 0]])
    mask = np.arange(5) < np.array([[3], [5]])
    history = network.arrays["item_vectors"][[[1, 2, 3, 0, 0], [9, 8, 7, 6, 5]]]
    context = np.zeros((2, 0), np.int64)
    (together,) = session.run(None, {"history": history, "moments": moments, "mask": mask, "context": context})
    alone = {"history": history[:1, :3], "moments": moments[:1, :3], "mask": mask[:1, :3], "context": context[:1]}
    np.testing.assert_allclose(session.run(None, alone)[0][0], together[0], rtol=0, atol=1e-5)


def test_fit_network_writes_the_run_folder(fitted_circle_run: tuple[TrainedNetwork, Path]) -> None:
    network, folder = fitted_circle_run
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == ["checkpoint/train.safetensors", "config.toml", "log.jsonl", "metrics.json"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(list(line) == ["step", "epoch", "loss", "seconds"] for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"] / 3
    found = json.loads((folder / "metrics.json").read_text())
    assert found["NDCG@10"] == network.validation
    assert found["stopped"] == "epochs"
    stored = load_file(folder / "checkpoint" / "train.safetensors")
    assert stored.keys() == network.train_state.keys()
    for name, array in network.train_state.items():
        np.testing.assert_array_equal(stored[name], array)


def test_train_with_one_seed_gives_equal_weights(arrays: Arrays, tmp_path: Path) -> None:
    """Dropout, drawn targets and steps repeat, also with checks by time."""
    data = circle(arrays, users=40, basket=3)
    once, watch = train_alone(data, tmp_path, dropout=0.2, epochs=2)
    again, looked = train_alone(data, tmp_path, budget=1.0, dropout=0.2, epochs=2)
    other, _ = train_alone(data, tmp_path, dropout=0.2, epochs=2, seed=1)
    assert watch.stopped == looked.stopped == "epochs"
    for name, tensor in once.items():
        assert torch.equal(again[name], tensor), name
    assert not torch.equal(other["table.weight"], once["table.weight"])


def test_train_starts_dropout_after_its_first_epochs(arrays: Arrays, tmp_path: Path) -> None:
    data = dataclasses.replace(circle(arrays, users=20), held=None)

    def table(epochs: int, **options: float) -> torch.Tensor:
        network = load_model("sasrec", options)
        trainer.train(network, data, settings(epochs=epochs), tmp_path, 600, quiet=True)
        return network.table.weight.detach()

    assert torch.equal(table(1, dropout=0.5, dropout_after=1), table(1, dropout=0.0))
    assert not torch.equal(table(2, dropout=0.5, dropout_after=1), table(2, dropout=0.0))


def test_train_without_a_gain_stops_by_patience(arrays: Arrays, tmp_path: Path) -> None:
    """The validation targets cannot be learned, so the first epoch stays the best."""
    data = circle(arrays)
    assert data.held is not None
    nowhere = dataclasses.replace(data.held, items=np.zeros_like(data.held.items))
    _, watch = train_alone(dataclasses.replace(data, held=nowhere), tmp_path, patience=2)
    assert (watch.stopped, watch.kept.epoch, watch.kept.ndcg) == ("patience", 1, 0.0)
    assert [look.epoch for look in watch.looks if look.at == "epoch"] == [1, 2, 3]


def test_train_over_budget_stops_after_the_step(arrays: Arrays, tmp_path: Path) -> None:
    _, watch = train_alone(circle(arrays, users=900), tmp_path, budget=1e-6)  # three steps an epoch
    assert (watch.stopped, watch.kept.epoch, watch.kept.step) == ("time_budget", 0, 1), (
        "a started epoch is not a complete one"
    )
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert watch.looks[-1].ndcg == watch.kept.ndcg


def test_train_stopped_by_budget_keeps_the_best_check_by_time(arrays: Arrays, tmp_path: Path) -> None:
    """A run stopped by its budget keeps the best check by time."""
    watch = validation.TrainingCallback(None, tmp_path, patience=3, budget=1e9, bar=False)
    watch.by_time, watch.by_epoch = validation.BestWeights(ndcg=0.5), validation.BestWeights(ndcg=0.4)
    for stopped, ndcg in (("time_budget", 0.5), ("patience", 0.4), ("epochs", 0.4)):
        watch.stopped = stopped  # type: ignore[assignment]
        assert watch.kept.ndcg == ndcg
    watch.close()


def test_train_without_validation_moments_keeps_the_last_weights(arrays: Arrays, tmp_path: Path) -> None:
    weights, watch = train_alone(dataclasses.replace(circle(arrays), held=None), tmp_path, epochs=2, patience=1)
    assert (watch.stopped, watch.kept.epoch) == ("epochs", 2)
    assert [look.ndcg for look in watch.looks] == [None, None]
    assert torch.equal(weights["table.weight"], watch.kept.weights["table.weight"])


def test_validation_ndcg_is_computed_on_the_full_ranking(arrays: Arrays) -> None:
    """NDCG@10 of the validation moments by hand, with and without seen items."""
    data = circle(arrays, users=24, basket=2)
    held = data.held
    assert held is not None
    torch.manual_seed(3)
    network = load_model("sasrec", {})
    network.build(data, 16, 20)
    learner = trainer.Learner(network, data, settings().train).eval()
    items, moments, mask, context = SequenceDataset(data, 20).queries(held.user_ix, held.now)
    with torch.no_grad():
        table = learner.vectors()
        scores = network.forward_user(table[items], moments, mask, context) @ table.T
    for filter_seen in (False, True):
        values = []
        for v, user in enumerate(held.user_ix):
            ranked = scores[v].clone()
            ranked[0] = -torch.inf
            if filter_seen:
                low, high = data.user_offsets[user], data.user_offsets[user + 1]
                ranked[data.items[data.moment_offsets[low] : data.moment_offsets[high]]] = -torch.inf
            top = ranked.argsort(descending=True)[:10].tolist()
            targets = held.items[held.offsets[v] : held.offsets[v + 1]].tolist()
            gain = sum(1 / math.log2(top.index(t) + 2) for t in targets if t in top and ranked[t] > -torch.inf)
            values.append(gain / (1 + 1 / math.log2(3)))
        assert validation.ValidationSet(data, held, 20, filter_seen).score(learner) == pytest.approx(
            np.mean(values), abs=1e-9
        )
    assert not learner.training


def test_train_excludes_holdout_users_from_the_gradient(arrays: Arrays, tmp_path: Path) -> None:
    """Other histories of ``old`` users give the same weights."""
    data = circle(arrays)
    old = np.arange(data.n_users) % 3 == 1
    rows = np.repeat(old[data.moment_user], np.diff(data.moment_offsets))
    other = dataclasses.replace(data, items=np.where(rows, data.items[::-1], data.items), old=old)
    kept, changed = (  # counts include old users, so the start is random
        train_alone(dataclasses.replace(d, held=None), tmp_path, start="random", epochs=1)[0]
        for d in (dataclasses.replace(data, old=old), other)
    )
    assert torch.equal(kept["table.weight"], changed["table.weight"])
    with_old_users, _ = train_alone(dataclasses.replace(data, held=None), tmp_path, start="random", epochs=1)
    assert not torch.equal(with_old_users["table.weight"], kept["table.weight"])


def test_fit_network_without_a_user_with_two_moments_raises(arrays: Arrays, tmp_path: Path) -> None:
    alone = arrays([[[1, 2]], [[3]], []], 3)
    assert not has_sequences(alone)
    with pytest.raises(UserError, match=r"model\.name=sasrec: expected a log with a user who has two moments"):
        fit_network("sasrec", {}, alone, settings(), tmp_path / "run", 600)
    assert not (tmp_path / "run").exists()


def test_fit_network_with_a_baseline_raises(arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.name=popular: expected a network"):
        fit_network("popular", {}, circle(arrays), settings(), tmp_path, 600)


def test_train_with_one_item_and_one_user_is_finite(arrays: Arrays, tmp_path: Path) -> None:
    weights, watch = train_alone(arrays([[[1], [1], [1]]], 1, held={0: [1]}), tmp_path, epochs=1)
    assert watch.kept.ndcg == 1.0
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_train_with_a_diverging_loss_names_rate_step_and_checkpoint(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is not a number from the third step on; two steps are an epoch."""
    step = trainer.Learner.training_step
    monkeypatch.setattr(
        trainer.Learner,
        "training_step",
        lambda self, batch, number: step(self, batch, number) * (math.nan if self.global_step == 2 else 1.0),
    )
    with pytest.raises(UserError, match=r"train\.lr=0\.01: .* it is nan at step 3; the weights of step 2 are in "):
        train_alone(circle(arrays, users=600), tmp_path, epochs=5)
    stored = load_file(tmp_path / "checkpoint" / "train.safetensors")
    assert all(np.isfinite(array).all() for array in stored.values())


def test_train_whose_last_step_diverges_raises(arrays: Arrays, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr=1e\+38: expected a rate at which the loss stays finite"):
        train_alone(circle(arrays, users=20), tmp_path, lr=1e38, epochs=1)
    assert not (tmp_path / "checkpoint").exists()


def test_train_with_decayed_rate_and_averaged_weights_is_repeatable(arrays: Arrays, tmp_path: Path) -> None:
    data = dataclasses.replace(circle(arrays, users=40), held=None)
    once, watch = train_alone(data, tmp_path, epochs=2, schedule="cosine", ema=0.5)
    again, _ = train_alone(data, tmp_path, epochs=2, schedule="cosine", ema=0.5)
    constant, _ = train_alone(data, tmp_path, epochs=2, ema=0.5)
    newest, _ = train_alone(data, tmp_path, epochs=2, schedule="cosine", ema=0.0)
    assert watch.average is not None
    for name, tensor in once.items():
        assert torch.equal(again[name], tensor), name
    for other in (constant, newest):
        assert not torch.equal(other["table.weight"], once["table.weight"])


@pytest.mark.slow
def test_fit_network_writes_its_progress_bar_to_stderr_only(
    arrays: Arrays, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    data = circle(arrays, users=20)
    fit_network("sasrec", {}, data, settings(epochs=1), tmp_path / "loud", 600)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 1" in err
    assert len(err) < 1_000  # only the bar: Lightning and the exporter are silent
    train_alone(data, tmp_path, epochs=1)
    assert capfd.readouterr() == ("", "")


def test_train_restores_the_callers_torch_state(arrays: Arrays, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train_alone(circle(arrays, users=20), tmp_path, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_train_after_ctrl_c_raises_keyboard_interrupt(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Learner, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_alone(circle(arrays), tmp_path)


def test_fit_import_loads_no_torch() -> None:
    code = "import sys, recloop.training.fit; print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_train_budget_excludes_validation_seconds(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 1 s, a check 100 s: a budget of 20 s gives 20 steps."""
    clock = SimpleNamespace(now=0.0)
    step, score = trainer.Learner.training_step, validation.ValidationSet.score

    def slow_step(self: trainer.Learner, batch: Any, number: int) -> torch.Tensor:
        clock.now += 1.0
        return step(self, batch, number)

    def slow_look(self: validation.ValidationSet, learner: Any) -> float:
        clock.now += 100.0
        return score(self, learner)

    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(trainer.Learner, "training_step", slow_step)
    monkeypatch.setattr(validation.ValidationSet, "score", slow_look)
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
    _, watch = train_alone(circle(arrays, users=9000), tmp_path / "long", budget=20.0)  # 26 steps an epoch
    assert watch.stopped == "time_budget"
    assert len((tmp_path / "long" / "log.jsonl").read_text().splitlines()) == 20
    assert len(watch.looks) == 2, "the first tenth and the end: checks take at most a tenth of the time"
    assert (watch.seconds, watch.looking) == (20.0, 200.0)
    _, watch = train_alone(circle(arrays, users=900), tmp_path / "short", budget=150.0)  # 3 steps an epoch
    assert (watch.stopped, watch.kept.epoch <= 2, watch.looking) == ("time_budget", True, 200.0), (
        "checks also end a run"
    )


def test_validation_set_of_many_users_samples_1024(arrays: Arrays) -> None:
    data = circle(arrays, users=4000)  # half of them held out
    assert data.held is not None
    assert len(data.held) == 2000
    examination = validation.ValidationSet(data, data.held, 20, filter_seen=False)
    assert len(examination) == validation.MAX_USERS == 1024
    rows = np.searchsorted(data.held.user_ix, examination.users)
    assert (data.held.user_ix[rows] == examination.users).all()
    np.testing.assert_array_equal(examination.targets, data.held.items[rows])


@pytest.mark.parametrize("gpu", [False, True])
def test_deterministic_sets_cublas_workspace_and_warns_on_a_gpu_only(
    monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with trainer.deterministic(0):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is gpu
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: training on a GPU is not run here")
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "two_tower", "neumf"])
def test_fit_network_on_a_gpu_trains_and_exports(arrays: Arrays, tmp_path: Path, name: str) -> None:
    network = fit_network(name, {}, circle(arrays), settings(epochs=2), tmp_path / "run", 600, quiet=True)
    assert network.epochs >= 1
    assert np.isfinite(network.arrays["item_vectors"]).all()
    assert network.graph
