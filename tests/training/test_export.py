"""The exported graph equals torch for any batch size and length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from recloop.models.base import TrainData, load_model
from recloop.models.sasrec import SASRec
from recloop.training.export import (
    INPUT_NAMES,
    OUTPUT_NAME,
    TEMPLATES,
    USER_GRAPH,
    EarlierGraphs,
    item_vectors,
    user_graph,
)
from recloop.training.graph_template import GraphTemplate

D, HISTORY = 16, 200
Arrays = Callable[..., TrainData]


def built(arrays: Arrays, context: int, n_items: int = 500) -> SASRec:
    torch.manual_seed(1)
    codes = np.full((1, context), 3, np.int32)
    network: SASRec = load_model("sasrec", {})
    network.build(arrays([[[1]]], n_items, user_codes=codes), D, HISTORY)
    return network.eval()


def session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def query(batch: int, time: int, context: int) -> dict[str, np.ndarray]:
    """Ragged windows: moments oldest first; the longest fills T."""
    rng = np.random.default_rng(batch * 1000 + time)
    lengths = np.maximum(1, rng.integers(0, time + 1, batch))
    lengths[0] = time
    mask = np.arange(time) < lengths[:, None]
    moments = np.zeros((batch, time), np.int64)
    for row, length in enumerate(lengths):
        moment = np.cumsum(rng.random(length) < 0.6)
        moments[row, :length] = moment[-1] - moment
    history = rng.normal(size=(batch, time, D)).astype(np.float32)
    return dict(zip(INPUT_NAMES, (history, moments, mask, rng.integers(0, 4, (batch, context))), strict=True))


@pytest.fixture(scope="module")
def exported(arrays: Arrays) -> tuple[SASRec, bytes]:
    network = built(arrays, context=2)
    return network, user_graph(network, D, 2)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("time", [1, 2, 50, 200])
def test_user_graph_equals_torch(exported: tuple[SASRec, bytes], batch: int, time: int) -> None:
    network, graph = exported
    inputs = query(batch, time, 2)
    (answer,) = session(graph).run([OUTPUT_NAME], inputs)
    with torch.no_grad():
        expected = network.forward_user(*(torch.from_numpy(inputs[name]) for name in INPUT_NAMES))
    assert answer.shape == (batch, D)
    np.testing.assert_allclose(answer, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_user_graph_is_independent_of_padding_and_batch(exported: tuple[SASRec, bytes]) -> None:
    run = session(exported[1])
    inputs = query(5, 40, 2)
    (together,) = run.run([OUTPUT_NAME], inputs)
    for row in range(5):
        length = int(inputs["mask"][row].sum())
        one = {name: value[row : row + 1, :length] for name, value in inputs.items() if name != "context"}
        (alone,) = run.run([OUTPUT_NAME], one | {"context": inputs["context"][row : row + 1]})
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_user_graph_is_valid_and_contains_no_item_table(exported: tuple[SASRec, bytes]) -> None:
    _, graph = exported
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in model.graph.input] == list(INPUT_NAMES)
    assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in model.graph.initializer)
    sizes = {tuple(weight.dims) for weight in model.graph.initializer}
    assert (HISTORY, D) in sizes  # positions are inside
    assert not any(501 in size for size in sizes)  # items are not


@pytest.mark.slow
def test_user_graph_without_context_keeps_the_input(arrays: Arrays) -> None:
    """A request then has C = 0 context columns, and the graph accepts them."""
    network = built(arrays, context=0)
    run = session(user_graph(network, D, 0))
    assert [entry.name for entry in run.get_inputs()] == list(INPUT_NAMES)
    inputs = query(3, 20, 0)
    (answer,) = run.run([OUTPUT_NAME], inputs)
    with torch.no_grad():
        expected = network.forward_user(*(torch.from_numpy(inputs[name]) for name in INPUT_NAMES))
    np.testing.assert_allclose(answer, expected.numpy(), rtol=0, atol=1e-5)


def test_item_vectors_have_a_zero_padding_row(arrays: Arrays) -> None:
    network = built(arrays, context=0)
    vectors = item_vectors(network, torch.zeros(501, 0, dtype=torch.int64))
    assert vectors.dtype == np.float32
    assert not vectors[0].any()
    np.testing.assert_array_equal(vectors[1:], network.table.weight.detach().numpy()[1:])


@pytest.mark.slow
def test_user_graph_bytes_are_independent_of_the_machine(exported: tuple[SASRec, bytes], arrays: Arrays) -> None:
    """The exporter records stack traces with local folders."""
    _, graph = exported
    for word in (b".py", b"/src/", b"site-packages", b"stack_trace"):
        assert word not in graph, word
    model = onnx.load_model_from_string(graph)
    onnx.checker.check_model(model)
    assert "Loop" not in {node.op_type for node in model.graph.node}, "the outputs of Loop are ordered by hash"
    TEMPLATES.clear()
    origin = {"network": built(arrays, 2)}
    exec("from recloop.training.export import user_graph\n\n\ngraph = user_graph(network, 16, 2)", origin)
    assert origin["graph"] == graph, "called from another file"


@pytest.mark.slow
def test_user_graph_with_several_categories_equals_torch(arrays: Arrays) -> None:
    torch.manual_seed(1)
    network: SASRec = load_model("sasrec", {})
    data = arrays([[[1]]], 500, user_codes=np.full((1, 3), 3, np.int32))
    fields = [("user.age", 4, 8), ("user.likes", 4, 8), ("user.likes", 4, 8)]
    network.build(dataclasses.replace(data, user_fields=fields), D, HISTORY)
    network.eval()
    inputs = query(5, 7, 3)
    (answer,) = session(user_graph(network, D, 3)).run([OUTPUT_NAME], inputs)
    with torch.no_grad():
        expected = network.forward_user(*(torch.from_numpy(inputs[name]) for name in INPUT_NAMES))
    np.testing.assert_allclose(answer, expected.numpy(), rtol=0, atol=1e-5)
    assert len(network.context.tables) == 2


def trained(arrays: Arrays, seed: int, n_items: int = 500) -> SASRec:
    """Network whose weights all differ, as after training."""
    network = built(arrays, 2, n_items)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return network


@pytest.mark.slow
def test_filled_template_equals_an_export(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    TEMPLATES.clear()
    user_graph(trained(arrays, 0), D, 2)
    assert len(TEMPLATES) == 1
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", None)  # not called
        filled = user_graph(trained(arrays, 1), D, 2)
    TEMPLATES.clear()
    assert filled == user_graph(trained(arrays, 1), D, 2)


@pytest.mark.slow
def test_graph_of_a_parent_with_new_weights_equals_an_export(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    TEMPLATES.clear()
    parent = trained(arrays, 0)
    weights = {f"network.{name}": tensor.numpy() for name, tensor in parent.state_dict().items()}
    earlier = EarlierGraphs({USER_GRAPH: user_graph(parent, D, 2)}, weights)
    TEMPLATES.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", None)  # not called
        filled = user_graph(trained(arrays, 1, n_items=510), D, 2, earlier)
    assert filled == user_graph(trained(arrays, 1, n_items=510), D, 2)
    TEMPLATES.clear()
    other_weights = EarlierGraphs(earlier.graphs, {name: weight + 1 for name, weight in weights.items()})
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", None)
        with pytest.raises(TypeError):  # an export, because the weights are not those of the graph
            user_graph(trained(arrays, 1), D, 2, other_weights)


def tensors(**values: np.ndarray) -> onnx.ModelProto:
    entries = [onnx.numpy_helper.from_array(array, name) for name, array in values.items()]
    return onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], entries))


def test_template_replaces_transposed_weights_and_rows() -> None:
    def weights(seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {"w": random.random((6, 3), dtype=np.float32), "b": random.random(6, dtype=np.float32)}

    def model(seed: int) -> onnx.ModelProto:
        values = weights(seed)
        constant = np.arange(4, dtype=np.float32)
        return tensors(
            w=values["w"], t=values["w"].T.copy(), part=values["b"][2:5], rows=values["w"][:2].T.copy(), c=constant
        )

    template = GraphTemplate.of(model(0), weights(0))
    assert template is not None
    assert set(template.sources) == {"w", "t", "part", "rows"}
    assert template.filled(weights(1)) == model(1).SerializeToString()


def test_template_of_equal_weights_is_none() -> None:
    zeros = np.zeros(3, dtype=np.float32)
    assert GraphTemplate.of(tensors(folded=zeros), {"a": zeros, "b": zeros}) is None
