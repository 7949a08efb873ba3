"""The rules that decide which stored tensors are learnables.

Three sources, in this order:

1. What torch reported when it exported the program: parameter, buffer or constant, and which
   parameters are frozen (``requires_grad=False``).
2. What was learnable before ``untie`` split it stays learnable: a part that is only added to data
   is a weight because the rest of it was multiplied.
3. Otherwise, what reads the tensor. A float tensor is a parameter if it is read in a
   weight, bias or gain role of an operator that has such a role. A vector that is added to data or
   multiplied with it is a bias or a gain, because exporters write biases and norms that way.

A name never decides. Masks, rotary caches, tables of positions and constants of an exporter have
the dtype and often the shape of a bias or a gain; the inputs of the other operand and the uses of
the result distinguish them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import onnx_ir

from tieops.ir.learnables.number_sources import Provenance, Source
from tieops.ir.metadata.keys import aliases_of
from tieops.ir.metadata.torch_kinds import Kind, is_noted_learnable, is_said_in_state, word_of
from tieops.ir.operators.predicates import is_concat, is_lookup
from tieops.ir.operators.roles import kind_of, role_of
from tieops.ir.operators.traits import (
    batch_axes,
    counts_positions,
    is_elementwise,
    is_multiplication,
    is_product,
    is_quantizer,
    is_sinusoid,
    is_unknown,
    normalizes_alone,
    reads_type_alone,
    vector_role,
)
from tieops.ir.operators.values import moves_values
from tieops.ir.storage.value_samples import is_mask, is_uniform
from tieops.ir.view import Shape, View

__all__ = ["Kind", "Learnables", "Use"]

MIN_TABLE_ELEMENTS = 64
"""Integer tensors below this size are operands (shapes, axes, pads), not tables."""
_TRAINED_ROLES = frozenset(("weight", "bias", "recurrent_weight", "peephole", "skip_bias"))
_STATISTICS = frozenset(("running_mean", "running_var"))
_SCALES = frozenset(("scale", "weight_scale", "zero_point"))
_NORMS = frozenset(("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"))
_QUANTIZED_BITS = 8
MAX_NODES = 64
"""How far a computation of stored tensors alone is followed to its reader."""


class Use(Protocol):
    """One place where a stored tensor arrives: a view of it at one input of one node."""

    @property
    def node(self) -> onnx_ir.Node:
        """Who reads."""
        ...

    @property
    def index(self) -> int:
        """Through which of its inputs."""
        ...

    @property
    def view(self) -> View:
        """How the tensor arrives there."""
        ...


class Learnables:
    """Tells the learnables of a model from what else it stores.

    Args:
        uses: For every stored value the places where it arrives.
    """

    def __init__(self, uses: Mapping[onnx_ir.Value, Sequence[Use]]) -> None:
        self._uses = uses
        self._found: dict[onnx_ir.Value, Kind] = {}
        self._provenance = Provenance()
        self._torch_spoke = any(word_of(value) is not None for value in uses)

    def kind_of(self, value: onnx_ir.Value) -> Kind:
        """Return what a stored tensor is: what is recorded of it, else what its uses say.

        Example:
            >>> tensor = onnx_ir.tensor([[1.0, 2.0]])
            >>> value = onnx_ir.Value(name="w", const_value=tensor)
            >>> Learnables({value: ()}).kind_of(value).name
            'CONSTANT'
        """
        if value not in self._found:
            self._found[value] = word_of(value) or (
                Kind.PARAMETER if is_noted_learnable(value) else self.kind_by_use(value)
            )
        return self._found[value]

    def is_learnable(self, value: onnx_ir.Value) -> bool:
        """Return whether training may change a stored tensor."""
        return self.kind_of(value) is Kind.PARAMETER

    def is_kept(self, value: onnx_ir.Value) -> bool:
        """Return whether a stored tensor is more than a number of the program."""
        return self.kind_of(value) is not Kind.CONSTANT

    def is_in_state(self, value: onnx_ir.Value) -> bool:
        """Return whether the original module's ``state_dict`` had a tensor, as far as is known."""
        kind = self.kind_of(value)
        if kind is not Kind.BUFFER:
            return kind is Kind.PARAMETER
        if word_of(value) is not None:
            return is_said_in_state(value)
        return bool(self._roles(value) & _STATISTICS)

    def is_shareable(self, value: onnx_ir.Value) -> bool:
        """Return whether several readers of a stored tensor make a tie.

        A constant that a program reads in many places is not a tie, nor is a buffer under one
        name, a scale or a single number. What a module holds under two names is one.
        """
        if len(aliases_of(value)) > 1:
            return True
        if self.is_learnable(value):
            return _elements(value) > 1
        return self.kind_of(value) is Kind.BUFFER and self._is_quantized(value)

    def counts(self, value: onnx_ir.Value) -> bool:
        """Return whether a tensor's elements are learnable numbers, quantized ones included."""
        return self.is_learnable(value) or (
            self.kind_of(value) is Kind.BUFFER and self._is_quantized(value)
        )

    def is_read_by_layer(self, use: Use, value: onnx_ir.Value) -> bool:
        """Return whether a use of a stored tensor belongs to a layer, as one of its slots.

        A parameter's uses do, but for a look at its shape. Of a buffer only those in a role of a
        learnable layer do, and as the bias of one: a mask or the scale of a conversion makes no
        layer.
        """
        if counts_positions(use.node) or reads_type_alone(use.node, use.index):
            return False
        kind = self.kind_of(value)
        if kind is Kind.PARAMETER or len(aliases_of(value)) > 1:
            return True
        if kind is Kind.CONSTANT:
            return False
        if self._is_added_to_product(use):
            return True
        return _known_role(use.node, use.index) not in ("", "scale", "zero_point")

    def _is_added_to_product(self, use: Use) -> bool:
        """Return whether a use is the bias of a layer, as BART's ``final_logits_bias`` is."""
        node = use.node
        sizes = use.view.shape or (1,)
        if vector_role(node) != "bias" or math.prod(sizes) != sizes[-1] or sizes[-1] == 1:
            return False
        other = node.inputs[1 - use.index]
        product = other.producer() if other is not None else None
        if other is None or product is None or not is_product(product):
            return False
        is_data = self._provenance.source_of(other) is Source.DATA
        return is_data and not self._provenance.is_score(other)

    def kind_by_use(self, value: onnx_ir.Value) -> Kind:
        """Return what a stored tensor is by its uses alone, whatever torch said."""
        tensor = value.const_value
        if tensor is None or tensor.dtype in (onnx_ir.DataType.STRING, onnx_ir.DataType.BOOL):
            return Kind.CONSTANT
        uses = self._uses.get(value, ())
        roles = self._roles(value)
        is_number = tensor.dtype.is_floating_point() and tensor.dtype.bitwidth > _QUANTIZED_BITS
        if is_number and any(self._trains(use, value) for use in uses):
            return Kind.PARAMETER
        if roles & (_STATISTICS | _SCALES):
            return Kind.BUFFER
        if is_number or not roles & _TRAINED_ROLES:
            return Kind.CONSTANT
        if tensor.dtype.bitwidth <= _QUANTIZED_BITS or _elements(value) >= MIN_TABLE_ELEMENTS:
            return Kind.BUFFER
        return Kind.CONSTANT

    def _is_quantized(self, value: onnx_ir.Value) -> bool:
        tensor = value.const_value
        assert tensor is not None
        uses = self._uses.get(value, ())
        return word_of(value) is None and any(
            _known_role(use.node, use.index) in _TRAINED_ROLES
            and (tensor.dtype.bitwidth <= _QUANTIZED_BITS or is_product(use.node))
            for use in uses
        )

    def _trains(self, use: Use, value: onnx_ir.Value) -> bool:
        if self._is_trained(use.node, use.index, use.view.shape, value):
            return True
        if reads_type_alone(use.node, use.index):
            return False
        is_operand = use.index > 0 and moves_values(use.node) and not is_concat(use.node)
        if is_operand or (use.index > 0 and is_quantizer(use.node)):
            return False  # a size, a filling or a scale
        # A single number in what is computed of weights is an epsilon or a count.
        return _elements(value) > 1 and self._is_trained_later(use.node, value)

    def _is_of_exporter(self, value: onnx_ir.Value) -> bool:
        """Return whether torch's exporter computed a tensor: it names all that the module holds."""
        return self._torch_spoke and word_of(value) is None

    def _roles(self, value: onnx_ir.Value) -> set[str]:
        return {_known_role(use.node, use.index) for use in self._uses.get(value, ())}

    # --- one use --------------------------------------------------------------------------------

    def _is_trained(
        self, node: onnx_ir.Node, index: int, shape: Shape | None, value: onnx_ir.Value
    ) -> bool:
        """Return whether a float tensor arrives where training changes what arrives.

        Args:
            node: Who reads.
            index: Through which of its inputs.
            shape: The shape that arrives, if it is known.
            value: What is stored.
        """
        # A state that a program begins with has the shape of its data, as a matrix of gains has.
        matched = is_elementwise(node) and self._is_matched(node, index, shape)
        if matched and not self._is_of_exporter(value):
            return True
        if vector_role(node):
            return self._is_bias_or_gain(node, index, shape, value)
        if is_product(node):
            return index > 1 or self._is_factor(node, index, shape)
        if is_lookup(node):
            return index == 0 and self._is_embedding(node)
        role = _known_role(node, index)
        if role in _TRAINED_ROLES:
            return not (kind_of(node) in _NORMS and self._is_neutral(node, role, value))
        return not role and is_unknown(node) and _elements(value) > 1

    def _is_trained_later(self, node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
        """Return whether what is computed of stored tensors alone arrives where it is trained."""
        stack, seen = [node], {node}
        while stack and len(seen) <= MAX_NODES:
            at = stack.pop()
            if is_sinusoid(at):
                continue  # positions, however they go on
            source = max(map(self._provenance.source_of, at.inputs), default=Source.STORED)
            if source is Source.DATA:
                # Beside data, a token of a class or a prefix; zeros only fill up.
                if is_concat(at) and not is_uniform(value):
                    return True
                continue
            if source is Source.POSITIONS and not moves_values(at):
                continue
            for output in at.outputs:
                for reader, index in output.uses():
                    if reader in seen:
                        continue
                    if self._is_trained_beside_data(reader, index, output, value):
                        return True
                    seen.add(reader)
                    stack.append(reader)
        return False

    def _is_trained_beside_data(
        self, node: onnx_ir.Node, index: int, arrived: onnx_ir.Value, value: onnx_ir.Value
    ) -> bool:
        if self._is_stored(node):
            return False
        return self._is_trained(node, index, _static_shape(arrived), value)

    def _is_stored(self, node: onnx_ir.Node) -> bool:
        return all(self._provenance.source_of(v) is Source.STORED for v in node.inputs)

    def _is_factor(self, node: onnx_ir.Node, index: int, shape: Shape | None) -> bool:
        """Return whether a matrix multiplies something that is more than places.

        The inverse frequencies of a rotary cache multiply positions, and then become sinusoids.
        """
        if shape is not None and batch_axes(node, index, shape) > 1:
            return False  # computed for each row of a batch, as keys and values are
        others = [v for i, v in enumerate(node.inputs[:2]) if i != index]
        if any(self._provenance.source_of(other) is Source.DATA for other in others):
            return True
        return not self._provenance.becomes_sinusoid(node.outputs[0])

    def _is_embedding(self, node: onnx_ir.Node) -> bool:
        """Return whether rows that are looked up are features, and not sines or cosines."""
        rows = node.outputs[0]
        return not (
            self._provenance.becomes_rotation(rows) or self._provenance.becomes_sinusoid(rows)
        )

    def _is_matched(self, node: onnx_ir.Node, index: int, shape: Shape | None) -> bool:
        """Return whether a matrix has an element for each of the data's, and is not a mask of it.

        Masks, tables of positions and rotary caches are spread over a batch or over heads.
        """
        mine = node.inputs[index]
        other = next((v for i, v in enumerate(node.inputs) if i != index), None)
        if mine is None or other is None or shape is None or len(shape) != 2:
            return False
        if _broadcast_shape(other) != shape or self._provenance.source_of(other) is not Source.DATA:
            return False
        return not self._provenance.is_score(other) and not self._provenance.rotates(node, mine)

    def _is_bias_or_gain(
        self, node: onnx_ir.Node, index: int, shape: Shape | None, value: onnx_ir.Value
    ) -> bool:
        """Return whether a vector is added to data or multiplied with it as a layer's own."""
        mine = node.inputs[index]
        other = next((v for i, v in enumerate(node.inputs) if i != index), None)
        if mine is None or other is None:
            return False
        if self._provenance.source_of(other) is not Source.DATA:
            return False
        if _static_shape(other) == () and _elements(value) > 1:
            return True  # it is scaled or shifted as a whole: no mask of anything
        wide = [size for size in shape or () if size != 1]
        if not shape or len(wide) > 1 or not (wide or _is_of_one_output(other)):
            return False
        if self._is_of_exporter(value) and is_uniform(value) and _is_for_each_row(shape, other):
            return False  # the weights of samples, which are filled in where there are none
        if is_multiplication(node):
            masked = is_mask(shape, value, keeps=1.0)
            return not masked and not self._provenance.rotates(node, mine)
        return not self._provenance.is_score(other) and not is_mask(shape, value, keeps=0.0)

    def _is_neutral(self, node: onnx_ir.Node, role: str, value: onnx_ir.Value) -> bool:
        """Return whether a norm's gain or bias is the ones or zeros that an exporter fills in.

        A norm without learnable parameters still needs them. The parameters of a module are not
        Constant nodes, torch reports their kind, and nothing scales their result again.
        """
        filled = (
            value.producer() is not None
            or self._is_of_exporter(value)
            or (normalizes_alone(node) and self._is_scaled_after(node.outputs[0]))
        )
        return filled and is_uniform(value, 1.0 if role == "weight" else 0.0)

    def _is_scaled_after(self, value: onnx_ir.Value) -> bool:
        after = [node for node in self._provenance.readers_of(value) if is_multiplication(node)]
        factors = [factor for node in after for factor in node.inputs]
        return any(self._provenance.source_of(factor) is Source.STORED for factor in factors)


def _known_role(node: onnx_ir.Node, index: int) -> str:
    """Return the role of an input of a learnable layer, or nothing."""
    if kind_of(node) is None:
        return ""
    role = role_of(node, index)
    return role if role in _TRAINED_ROLES | _STATISTICS | _SCALES else ""


def _elements(value: onnx_ir.Value) -> int:
    assert value.const_value is not None
    return int(value.const_value.size)


def _static_shape(value: onnx_ir.Value) -> Shape | None:
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(size) for size in value.shape.numpy())


def _broadcast_shape(value: onnx_ir.Value) -> Shape | None:
    """Return the shape of a value, which sums and products take from their inputs."""
    for _ in range(MAX_NODES):
        shape = _static_shape(value)
        node = value.producer()
        if shape is not None or node is None or not is_elementwise(node):
            return shape
        computed = [v for v in node.inputs if v is not None and v.const_value is None]
        stored = [_static_shape(v) for v in node.inputs if v is not None and v not in computed]
        known = next((shape for shape in stored if shape is not None), None)
        if len(computed) != 1:
            return None
        value = computed[0]
        if known is not None and len(known) > 2:
            return None
    return None


def _is_for_each_row(shape: Shape, other: onnx_ir.Value) -> bool:
    """Return whether a vector has an element for each of the first axis of what it goes with."""
    rank = 0 if other.shape is None else len(other.shape)
    return 1 < rank == len(shape) and shape[0] == math.prod(shape) > 1


def _is_of_one_output(value: onnx_ir.Value) -> bool:
    """Return whether a value comes from a layer with one output, whose bias is one number."""
    node = value.producer()
    if node is None or not is_product(node) or node.inputs[1] is None:
        return False
    shape = _static_shape(node.inputs[1])
    return shape is not None and len(shape) == 2 and 1 in shape
