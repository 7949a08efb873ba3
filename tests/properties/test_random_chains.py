"""Random chains between weights, heads and outputs: no operand is taken for what it is not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

import tieops
from tests.properties.random_chains import Program, other_feeds, run

BLOCKS = range(8)
PER_BLOCK = 25


def shared_weight(seed: int) -> Program:
    """Return a program in which two or three products and a lookup read one weight."""
    program = Program(seed)
    rng = program.rng
    weight = program.store("w", program.weight((4, 6)))
    if rng.random() < 0.5:
        ids = program.feed("ids", np.array([1, 3, 0]))
        program.returns(program.node("Gather", [weight, ids]))
    for count in range(int(rng.integers(2, 4))):
        value, shape = program.chain(weight, (4, 6), int(rng.integers(4)))
        if shape:
            rows = shape[-2] if len(shape) > 1 else shape[0]
            data = program.feed(f"x{count}", program.weight((2, rows)))
            program.returns(program.node("MatMul", [data, value]))
        else:
            program.returns(program.node("Mul", [program.feed("s", program.weight((2,))), value]))
    return program


@pytest.mark.parametrize("block", BLOCKS)
def test_untie_and_tie_again_compute_what_the_model_computed(block: int) -> None:
    untied_some = 0
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        program = shared_weight(seed)
        proto = program.proto()
        model = tieops.from_onnx(proto)
        untied = tieops.untie(model)
        untied_some += len(untied.parameters) > len(model.parameters)
        protos = [onnx_ir.to_proto(each.ir) for each in (untied, tieops.tie(untied))]
        for feeds in other_feeds(program):
            before = run(proto, feeds)
            for other in protos:
                after = run(other, feeds)
                assert (before is None) == (after is None), seed
                for one, two in zip(before or (), after or (), strict=True):
                    assert one.shape == two.shape, seed
                    assert np.array_equal(one, two), seed
    assert untied_some


@pytest.mark.parametrize("block", BLOCKS)
def test_to_torch_computes_what_the_runtime_computes(block: int) -> None:
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        program = shared_weight(seed)
        proto = program.proto()
        model = tieops.from_onnx(proto)
        given = [each.name for each in model.ir.graph.inputs if not each.is_initializer()]
        feeds = {name: program.feeds[name] for name in given}
        found = tieops.to_torch(model)(*(torch.tensor(array) for array in feeds.values()))
        ran = run(proto, feeds)
        assert ran is not None, seed
        for one, two in zip(found if isinstance(found, tuple) else (found,), ran, strict=True):
            assert np.array_equal(one.detach().numpy(), two), seed


def before_output(seed: int) -> Program:
    """Return a program with a head between two chains: of its weight, and to the output."""
    program = Program(seed)
    rng = program.rng
    weight = program.store("fc.weight", program.weight((4, 6)))
    moved, shape = program.chain(weight, (4, 6), int(rng.integers(3)))
    if len(shape) != 2:
        moved, shape = weight, (4, 6)
    rows, count = shape
    data = program.feed("x", program.weight((3, rows)), symbolic=rng.random() < 0.3)
    classes = program.node("MatMul", [data, moved])
    if rng.random() < 0.5:
        classes = program.node("Add", [classes, program.store("fc.bias", program.weight((count,)))])
    value, _ = program.chain(classes, (3, count), int(rng.integers(1, 5)))
    program.returns(program.node("Relu", [value]))
    return program


def sizes_of(info: onnx.ValueInfoProto) -> list[int | None] | None:
    """Return what an output is declared to be; None for a size that is not a number."""
    declared = info.type.tensor_type
    if not declared.HasField("shape"):
        return None
    return [each.dim_value if each.HasField("dim_value") else None for each in declared.shape.dim]


@pytest.mark.parametrize("features", [9, 3, 12])
@pytest.mark.parametrize("block", BLOCKS)
def test_replace_head_refuses_or_declares_what_the_runtime_gives(block: int, features: int) -> None:
    replaced, refused, unnamed = 0, 0, 0
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        program = before_output(seed)
        proto = program.proto()
        model = tieops.from_onnx(proto)
        nodes = (*proto.graph.node, *(function.node[-1] for function in proto.functions))
        names = [*(each.name for each in nodes), *(layer.name for layer in model.layers)]
        names += [output.name for output in proto.graph.output]
        try:
            small = tieops.replace_head(model, out_features=features)
        except tieops.TieopsError as error:
            refused += 1
            unnamed += not any(name in str(error) for name in names)
            continue
        replaced += 1
        after = onnx_ir.to_proto(small.ir)
        ran = run(proto, program.feeds)
        assert ran is not None, seed
        found = run(after, program.feeds)
        assert found is not None, seed
        # Another value of an operand that is not known may be one for which the shapes differ.
        for feeds in other_feeds(program):
            for info, array in zip(after.graph.output, run(after, feeds) or (), strict=False):
                said = sizes_of(info)
                if said is None:
                    continue
                assert len(said) == array.ndim, (seed, said, array.shape)
                pairs = zip(said, array.shape, strict=True)
                assert all(a in (None, b) for a, b in pairs), (seed, said, array.shape)
    assert replaced
    assert refused
    assert not unnamed
