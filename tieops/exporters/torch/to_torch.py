"""``to_torch``: a module that trains, with one nn.Parameter per learnable and every tie kept."""

from __future__ import annotations

from typing import Any

import onnx_ir
from torch import fx, nn

from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.graph import Program, Translator
from tieops.exporters.torch.module import converted
from tieops.exporters.torch.ops.symbolic_ints import find_symbolic_ints
from tieops.exporters.torch.store import Store
from tieops.importers.torch.lr_factors import set_lr_factor
from tieops.ir.operators.predicates import is_constant_operator
from tieops.ir.walk import all_graphs
from tieops.model import Model, TiedModel, as_model
from tieops.passes.inline import inline_all
from tieops.passes.untie import UntiePass

__all__ = ["to_torch"]


def to_torch(model: Model) -> fx.GraphModule:
    """Return a PyTorch module that computes what a model computes, and trains.

    Every stored learnable is one ``nn.Parameter`` under the FQN it had, a tied one under all of
    its names, so that ``load_state_dict`` works both ways with the original module. What is not
    learnable is a buffer; ``tieops.ir.learnables.rules`` tells which is which. A parameter that
    ``from_torch`` saw frozen has ``requires_grad=False``. Of a file that torch's own exporter wrote
    nobody knows: there all parameters train, and each module gets its own of those that were merged
    because they began equal. Regions without gradients (``no_grad``, ``detach``) and buffers that
    the forward writes are not in a graph; ``model.analysis.problems`` lists those that
    ``from_torch`` saw. Views (transposes, slices) are applied in the forward, so gradients of
    every reader flow to the one parameter.

    Args:
        model: A model from ``from_torch``, ``from_onnx`` or any pass; it is left alone, and shares
            no memory with the module.

    Returns:
        A module in ``eval()`` mode. Its forward takes the graph's inputs in order, under their
        names, and returns the only output or a tuple of all. ``module.code`` is the program as
        Python; ``module.meta`` has ``input_names`` and ``output_names``. Learning-rate factors lie
        with the layers, where ``tieops.param_groups`` reads them. Where the model itself has a
        layer or a parameter of a name that a GraphModule needs (``graph``, ``code``, ``meta``, …),
        it is a plain ``nn.Module``, and that name is the layer's.

    Raises:
        UnsupportedModelError: If an operator, an attribute or a dtype of the model is not known;
            it is named.

    Example:
        >>> import torch
        >>> from tieops import from_onnx
        >>> from onnx import parser
        >>> proto = parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        ... { h = Gather(emb, x)
        ...   t = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, t) }''')
        >>> net = to_torch(from_onnx(proto))
        >>> [name for name, _ in net.named_parameters()]
        ['emb']
        >>> net(torch.tensor([0]))
        tensor([[14., 32., 50.]], grad_fn=<MmBackward0>)
    """
    ir = as_model(model).clone()
    if ir.functions:
        inline_all(ir)
    _note_constants(ir)
    prepared, _ = UntiePass(accidental=True).on_copy(TiedModel(ir))
    content = nn.Module()
    store = Store(prepared, content)
    program = Program(ir, store, find_symbolic_ints(ir.graph))
    graph = Translator(program, ir.graph, content, None).run(prepared.inputs)
    if not hasattr(content, "meta"):
        vars(content)["meta"] = {
            "input_names": tuple(value.name for value in prepared.inputs),
            "output_names": tuple(value.name for value in ir.graph.outputs),
        }
    owners = dict(content.named_modules(remove_duplicate=False))
    for name, factor in store.lr_factors.items():
        owner, _, key = name.rpartition(".")
        set_lr_factor(owners[owner], key, factor)
    module: Any = converted(content, graph)
    return module.eval()


def _note_constants(ir: onnx_ir.Model) -> None:
    """Put the value of every Constant node on its output, however the node spells it."""
    for graph in all_graphs(ir):
        for node in graph:
            if is_constant_operator(node):
                found = onnx_ir.convenience.get_const_tensor(node.outputs[0])
                if found is None:
                    raise UnsupportedModelError(
                        "to_torch cannot read a Constant",
                        {"node": node.name, "attributes": ", ".join(node.attributes)},
                        "store it as a dense tensor",
                    )
                node.outputs[0].const_value = found
