"""The metadata that tieops keeps in a model, parsed with care because anybody can write it.

``keys`` defines the ``tieops.*`` entries, ``torch_kinds`` and ``torch_inputs`` hold what torch
reported of a program's tensors and inputs, and ``parsing`` reads all of them.
"""
