"""The table of operators that tests keep is the one that torch makes, and no export changes it."""

from __future__ import annotations

import pytest
import torch

from tests.support.export_tables import Registry, keep_tables, new_table


@pytest.mark.parametrize("opset", [18, 20])
def test_a_kept_table_has_what_a_new_one_has(opset: int) -> None:
    keep_tables()
    new, kept = new_table(opset_version=opset), Registry.from_torchlib(opset_version=opset)
    assert kept.opset_version == new.opset_version == opset
    functions = [
        {target: [(m.onnx_function, m.fx_target, m.is_complex, str(m.signature)) for m in metas]
         for target, metas in table.functions.items()}
        for table in (new, kept)
    ]  # fmt: skip
    assert functions[0] == functions[1]


def test_what_is_added_to_one_is_not_in_the_next() -> None:
    keep_tables()
    target = torch.ops.aten.relu.default
    before = Registry.from_torchlib().get_decomps(target)
    changed = Registry.from_torchlib()
    changed.register_op(target, torch.neg)
    assert len(changed.get_decomps(target)) == len(before) + 1
    assert Registry.from_torchlib().get_decomps(target) == before
