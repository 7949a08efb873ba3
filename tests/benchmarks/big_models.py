"""Models of gigabytes, and of 100,000 nodes, written in seconds and the same on every run.

    python -m tests.benchmarks.big_models FOLDER [gigabytes]

writes ``copy.onnx``, a transformer the way PyTorch's old exporter writes one with a tied head: the
head is a transposed copy of the embedding, and weights are called ``onnx::MatMul_12``. Its twin
``tied.onnx`` reads the embedding there. Both refer to ``model.data``; the copy is its last part.
2 GB are 24 layers of width 1024 and a vocabulary of 128,000.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

__all__ = ["COPY", "DATA", "TIED", "write_chain", "write_readers", "write_tables",
           "write_transformer"]  # fmt: skip

COPY, TIED, DATA = "copy.onnx", "tied.onnx", "model.data"
WIDTH = 1024
HIDDEN = 3 * WIDTH
HEADS = 16
VOCAB_PER_GB = 64_000
LAYERS_PER_GB = 12
BLOCK_ROWS = 1024
PAGE = 4096
OPSETS = (helper.make_opsetid("", 20),)


def noise(seed: int, elements: int) -> np.ndarray:
    """Return float32 of size 0.016 to 0.031 and any sign; faster than any distribution's."""
    raw = np.random.SFC64(seed).random_raw(-(-elements // 2)).view("u4")[:elements]
    raw &= np.uint32(0x807F_FFFF)
    raw |= np.uint32(0x3C80_0000)
    return raw.view("f4")


class _Tables:
    """External tensors of one data file, in its order, each with its seed."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.size = 0
        self.made: list[tuple[TensorProto, int]] = []

    def add(self, name: str, *shape: int) -> str:
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * int(np.prod(shape))
        entries = {"location": self.data, "offset": self.size, "length": length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.made.append((tensor, self.size))
        self.size += -(-length // PAGE) * PAGE
        return name


def _layer(number: int, x: str, tables: _Tables) -> Iterator[onnx.NodeProto]:
    """Yield one layer: attention and two projections, each behind a norm and with its residual."""
    at = f"h.{number}"
    matrices = iter(range(100 * number + 100, 100 * number + 200))

    def linear(source: str, to: str, rows: int, columns: int) -> Iterator[onnx.NodeProto]:
        weight = tables.add(f"onnx::MatMul_{next(matrices)}", rows, columns)
        bias = tables.add(f"{to}.bias", columns)
        yield helper.make_node("MatMul", [source, weight], [f"{to}.product"])
        yield helper.make_node("Add", [bias, f"{to}.product"], [to])

    def norm(source: str, to: str) -> onnx.NodeProto:
        gains = [tables.add(f"{to}.weight", WIDTH), tables.add(f"{to}.bias", WIDTH)]
        return helper.make_node("LayerNormalization", [source, *gains], [to])

    yield norm(x, f"{at}.ln_1")
    for part, perm in {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}.items():
        yield from linear(f"{at}.ln_1", f"{at}.{part}", WIDTH, WIDTH)
        yield helper.make_node("Reshape", [f"{at}.{part}", "split"], [f"{at}.{part}.split"])
        yield helper.make_node(
            "Transpose", [f"{at}.{part}.split"], [f"{at}.{part}.heads"], perm=perm
        )
    yield helper.make_node("MatMul", [f"{at}.q.heads", f"{at}.k.heads"], [f"{at}.scores"])
    yield helper.make_node("Softmax", [f"{at}.scores"], [f"{at}.weights"], axis=-1)
    yield helper.make_node("MatMul", [f"{at}.weights", f"{at}.v.heads"], [f"{at}.seen"])
    yield helper.make_node("Transpose", [f"{at}.seen"], [f"{at}.back"], perm=[0, 2, 1, 3])
    yield helper.make_node("Reshape", [f"{at}.back", "join"], [f"{at}.joined"])
    yield from linear(f"{at}.joined", f"{at}.out", WIDTH, WIDTH)
    yield helper.make_node("Add", [x, f"{at}.out"], [f"{at}.middle"])
    yield norm(f"{at}.middle", f"{at}.ln_2")
    yield from linear(f"{at}.ln_2", f"{at}.up", WIDTH, HIDDEN)
    yield helper.make_node("Gelu", [f"{at}.up"], [f"{at}.gelu"])
    yield from linear(f"{at}.gelu", f"{at}.down", HIDDEN, WIDTH)
    yield helper.make_node("Add", [f"{at}.middle", f"{at}.down"], [f"{at}.end"])


def write_transformer(folder: Path, gigabytes: float = 2.0) -> None:
    """Write ``copy.onnx``, ``tied.onnx`` and their data; holds 13 MB of it at a time."""
    vocab = int(VOCAB_PER_GB * gigabytes)
    layers = max(1, round(LAYERS_PER_GB * gigabytes))
    tables = _Tables(DATA)
    tables.add("wte.weight", vocab, WIDTH)
    nodes = [helper.make_node("Gather", ["wte.weight", "ids"], ["embedded"])]
    x = "embedded"
    for number in range(layers):
        nodes += _layer(number, x, tables)
        x = f"h.{number}.end"
    head = tables.add(f"onnx::MatMul_{100 * layers + 100}", WIDTH, vocab)
    _write_data(folder / DATA, tables)

    shapes = [
        helper.make_tensor("split", TensorProto.INT64, [4], [0, 0, HEADS, WIDTH // HEADS]),
        helper.make_tensor("join", TensorProto.INT64, [3], [0, 0, WIDTH]),
    ]
    stored = [tensor for tensor, _ in tables.made]
    turned = helper.make_node("Transpose", ["wte.weight"], ["turned"], perm=[1, 0])
    made = {
        COPY: ([*nodes, helper.make_node("MatMul", [x, head], ["logits"])], stored),
        TIED: (
            [*nodes, turned, helper.make_node("MatMul", [x, "turned"], ["logits"])],
            stored[:-1],
        ),
    }
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    sizes = ["batch", "sequence", vocab]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
    for name, (body, initializers) in made.items():
        _save(folder / name, body, [ids], [logits], [*shapes, *initializers])


def _write_data(path: Path, tables: _Tables) -> None:
    (embedding, _), *middle, (head, offset) = tables.made
    vocab, width = embedding.dims
    with path.open("wb") as file:
        file.truncate(tables.size)
        for seed, (tensor, start) in enumerate(middle, start=vocab):
            file.seek(start)
            noise(seed, int(np.prod(tensor.dims))).tofile(file)
    shape = tuple(head.dims)
    rows = np.memmap(path, np.float32, "r+", shape=(vocab, width))
    columns = np.memmap(path, np.float32, "r+", offset=offset, shape=shape)
    for start in range(0, vocab, BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        block[:] = noise(start, block.size).reshape(block.shape)
        columns[:, start : start + BLOCK_ROWS] = block.T


def write_tables(path: Path, *, count: int = 48, side: int = 1024) -> None:
    """Write ``count`` square matrices of one shape with external data, four of them identical.

    The four are spread over the file. 48 of 4 MiB are the model that the peers' figures are of.
    """
    same = {index * (count - 1) // 3 for index in range(4)}
    tables = _Tables(f"{path.name}.data")
    names = [tables.add(f"w{index}", side, side) for index in range(count)]
    with path.with_name(tables.data).open("wb") as file:
        file.truncate(tables.size)
        for index, (_, start) in enumerate(tables.made):
            file.seek(start)
            noise(0 if index in same else 1 + index, side * side).tofile(file)
    values = ["x", *(f"x{index}" for index in range(1, count)), "y"]
    nodes = [
        helper.make_node("MatMul", [values[index], name], [values[index + 1]])
        for index, name in enumerate(names)
    ]
    _save(path, nodes, *_ports(["n", side]), [tensor for tensor, _ in tables.made])


def write_chain(path: Path, nodes: int, *, initializers: int | None = None) -> None:
    """Write a chain of ``nodes`` nodes that read ``initializers`` stored tensors, inline.

    By turns a product with a weight, the sum with a bias, a transpose, and an activation. There are
    half as many initializers as nodes, unless said otherwise: then they are read again by turns.
    """
    count = nodes // 2 if initializers is None else initializers
    stored = [
        helper.make_tensor(
            f"p{index}",
            TensorProto.FLOAT,
            [8] if index % 2 else [8, 8],
            noise(index, 8 if index % 2 else 64).tobytes(),
            raw=True,
        )
        for index in range(count)
    ]
    made: list[onnx.NodeProto] = []
    x = "x"
    for number in range(nodes):
        to = "y" if number == nodes - 1 else f"x{number}"
        kind = ("MatMul", "Add", "Transpose", "Relu")[number % 4]
        reads = [f"p{(number // 4 * 2 + number % 4) % count}"] if number % 4 < 2 else []
        made.append(helper.make_node(kind, [x, *reads], [to], name=f"/node.{number}/{kind}"))
        x = to
    _save(path, made, *_ports([8, 8]), stored)


def write_readers(path: Path, readers: int, *, sliced: bool = False) -> None:
    """Write one stored matrix that ``readers`` nodes read, each second one transposed.

    With ``sliced`` each reads one row of it through a Slice of its own.
    """
    rows = readers if sliced else 8
    table = helper.make_tensor(
        "table", TensorProto.FLOAT, [rows, 8], noise(0, rows * 8).tobytes(), True
    )
    stored = [table]
    made: list[onnx.NodeProto] = []
    x = "x"
    for number in range(readers):
        to, source = ("y" if number == readers - 1 else f"x{number}"), "table"
        if sliced:
            source = f"row{number}"
            bounds = [f"at{number}", f"at{number + 1}"]
            made.append(helper.make_node("Slice", ["table", *bounds], [source]))
        elif number % 2:
            source = f"turned{number}"
            made.append(helper.make_node("Transpose", ["table"], [source], perm=[1, 0]))
        made.append(helper.make_node("Add" if sliced else "MatMul", [x, source], [to]))
        x = to
    if sliced:
        stored += [
            helper.make_tensor(f"at{number}", TensorProto.INT64, [1], [number])
            for number in range(readers + 1)
        ]
    _save(path, made, *_ports([8, 8]), stored)


def _ports(shape: list[int | str]) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    return (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    stored: list[TensorProto],
) -> None:
    graph = helper.make_graph(nodes, "main_graph", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    write_transformer(Path(sys.argv[1]), *(float(argument) for argument in sys.argv[2:]))
