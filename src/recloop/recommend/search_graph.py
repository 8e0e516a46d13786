"""Graph of the 8-bit scan: one MatMulInteger, written without the package onnx."""

from __future__ import annotations

from functools import cache

import onnxruntime as ort


@cache
def open_session() -> ort.InferenceSession:
    """Open the graph sums (1, P) int32 = query (1, D) uint8 @ codes (D, P) int8."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(_graph(), options, providers=["CPUExecutionProvider"])


def _graph() -> bytes:
    """Write a graph of one MatMulInteger as ONNX protobuf (IR 8, opset 13)."""
    uint8, int8, int32 = 2, 3, 6
    node = _bytes(1, b"query") + _bytes(1, b"codes") + _bytes(2, b"sums") + _bytes(4, b"MatMulInteger")
    inputs = _bytes(11, _matrix(b"query", uint8)) + _bytes(11, _matrix(b"codes", int8))
    graph = _bytes(1, node) + _bytes(2, b"scan") + inputs + _bytes(12, _matrix(b"sums", int32))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 13))


def _matrix(name: bytes, element: int) -> bytes:
    shape = _bytes(1, _bytes(2, name + b"_rows")) + _bytes(1, _bytes(2, name + b"_columns"))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, element) + _bytes(2, shape)))


def _bytes(field: int, data: bytes) -> bytes:
    assert len(data) < 2**14
    length = bytes([len(data)]) if len(data) < 2**7 else bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
    return bytes([field << 3 | 2]) + length + data


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])
