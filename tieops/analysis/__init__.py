"""A model looked at: who reads each stored tensor, which layers there are, what is wrong.

``trace`` follows stored tensors to their readers, through ``computed_weights`` where a weight is
computed first; ``layers`` groups the readers, ``repeats`` finds blocks that come again,
``shapes`` infers what the graph does not say. ``duplicates`` compares contents, ``problems``
says what is wasted or wrong, ``report`` shows all of it, ``diff`` compares two models.
``analysis`` puts these together.
"""
