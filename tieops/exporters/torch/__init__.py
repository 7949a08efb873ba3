"""To PyTorch: the graph as a torch.fx program, its weights as parameters, a table of operators."""

from tieops.exporters.torch.convert import to_torch

__all__ = ["to_torch"]
