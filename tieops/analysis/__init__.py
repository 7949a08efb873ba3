"""Analyse a model: readers of each stored tensor, layers, ties, problems.

Read ``trace`` first: it follows stored tensors to their readers, through ``computed_weights`` where
a weight is computed before use. ``layers`` groups the readers, ``repeats`` finds repeated blocks,
and ``shapes`` infers missing shapes. ``duplicates`` compares contents, ``problems`` finds waste and
errors, ``report`` renders the results, and ``diff`` compares two models. ``analysis`` combines
them.
"""
