"""Readers of stored tensors, and which reader owns which name.

``readers`` says which slots are one reader and which names a reader owns, ``module_calls`` which
nodes are one call of a module, ``forms`` what of the tensor each name stands for.
"""
