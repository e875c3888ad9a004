"""ONNX files of a few nodes, written byte by byte in protobuf's wire format: what they compute is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FLOAT, UINT8 = 1, 2
Shape = tuple[int | str, ...]


def write_means(
    path: Path,
    shape: Shape = ("n", "h", "w", 3),
    taken: int = UINT8,
    outputs: tuple[str, ...] = ("vector",),
    kept: bool = False,
) -> Path:
    """A network that gives the mean of each channel, of as many outputs as are named; `kept`: with sides of 1, and so no
    vector."""
    spatial = (1, 2) if shape[-1] == 3 else (2, 3)
    nodes = [_node("Cast", ["picture"], "floats", _number("to", FLOAT))]
    keep = _number("keepdims", int(kept))
    nodes += [_node("ReduceMean", ["floats"], name, _numbers("axes", spatial), keep) for name in outputs]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"means")
    graph += _field(11, _value("picture", taken, shape))
    graph += b"".join(_field(12, _value(name, FLOAT, ("n", "c", 1, 1) if kept else ("n", "c"))) for name in outputs)
    path.write_bytes(_varint_field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _varint_field(2, 13)))
    return path


def _node(kind: str, inputs: Iterable[str], output: str, *attributes: bytes) -> bytes:
    named = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    return named + _field(4, kind.encode()) + b"".join(_field(5, each) for each in attributes)


def _number(name: str, value: int) -> bytes:
    return _field(1, name.encode()) + _varint_field(3, value) + _varint_field(20, 2)


def _numbers(name: str, values: Iterable[int]) -> bytes:
    return _field(1, name.encode()) + b"".join(_varint_field(8, value) for value in values) + _varint_field(20, 7)


def _value(name: str, kind: int, shape: Shape) -> bytes:
    sides = (_varint_field(1, side) if isinstance(side, int) else _field(2, side.encode()) for side in shape)
    tensor = _varint_field(1, kind) + _field(2, b"".join(_field(1, side) for side in sides))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
