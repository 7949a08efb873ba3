"""Nested inputs as a file spells them: what torch writes is taken, what imports is not."""

from __future__ import annotations

import collections
import json
import sys

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from tieops.ir.metadata.torch_inputs import TorchInputs
from tieops.untrusted.program_checks import is_safe_treespec
from tieops.verification.torch_side import run_module

LEAF = {"type": None, "context": None, "children_spec": []}
TRAPS = [
    LEAF | {"type": "collections.defaultdict", "context": {
        "default_factory_module": "this", "default_factory_name": "s", "dict_context": []}},
    LEAF | {"type": "builtins.dict",
            "context": json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}])},
]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        1,
        ((1, [2, None]), {"a": 3, "b": (4,)}),
        collections.OrderedDict(x=1),
        collections.defaultdict(list, {"k": 1}),
        collections.deque([1], maxlen=3),
    ],
)
def test_what_torch_writes_is_taken(value):
    assert is_safe_treespec(pytree.treespec_dumps(pytree.tree_structure(value)))


@pytest.mark.parametrize("trap", TRAPS)
def test_a_layout_that_imports_a_module_is_not_loaded(trap):
    nested = LEAF | {"type": "builtins.list", "context": "null", "children_spec": [trap]}
    text = json.dumps([1, nested])
    assert not is_safe_treespec(text)
    sys.modules.pop("this", None)
    run_module(torch.nn.Flatten(0), {"input": np.eye(2)}, TorchInputs(text, {}))
    assert "this" not in sys.modules


@pytest.mark.parametrize("text", ["", "[]", "[1]", "[2, {}]", "7", "[" * 100_000, "[1, 7]"])
def test_what_is_no_layout_is_not_loaded(text):
    assert not is_safe_treespec(text)
