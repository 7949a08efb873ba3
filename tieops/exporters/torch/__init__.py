"""Export to PyTorch: the graph as a torch.fx program, its weights as parameters."""

from tieops.exporters.torch.to_torch import to_torch

__all__ = ["to_torch"]
