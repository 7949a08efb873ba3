"""The graph kit: every edit of a graph is made with these functions, which change no shared object.

Read ``ownership`` first: it defines what a copy of a graph must own before it is edited. Then read
``name_authority`` (fresh names), ``initializers`` (stored tensors), ``values`` (replacing values),
``removed`` (removed nodes that still count as users), ``node_copies``, and ``transposed_reads``,
which redirects the readers of one stored tensor to another one with permuted axes.
"""

from tieops.ir.edit.initializers import (
    add_initializer,
    drop_unread,
    insert_initializer,
    move_to_main_graph,
    remove_initializer,
    rename_initializer,
)
from tieops.ir.edit.name_authority import NameAuthority
from tieops.ir.edit.node_copies import copy_node, copy_nodes
from tieops.ir.edit.ownership import BorrowedTensor, copy_model, own_tensors, snapshot
from tieops.ir.edit.removed import release_removed
from tieops.ir.edit.transposed_reads import TransposedInputs, merge_views, permute, substitute
from tieops.ir.edit.values import (
    as_graph_input,
    bypass,
    keep_as_output,
    remove_input,
    rename_values,
    replace_value,
)

__all__ = [
    "BorrowedTensor",
    "NameAuthority",
    "TransposedInputs",
    "add_initializer",
    "as_graph_input",
    "bypass",
    "copy_model",
    "copy_node",
    "copy_nodes",
    "drop_unread",
    "insert_initializer",
    "keep_as_output",
    "merge_views",
    "move_to_main_graph",
    "own_tensors",
    "permute",
    "release_removed",
    "remove_initializer",
    "remove_input",
    "rename_initializer",
    "rename_values",
    "replace_value",
    "snapshot",
    "substitute",
]
