"""The semantics of operators: the only package that knows operators by name.

Read ``operands`` first: how an operand that may be an attribute or an input is read, and when it is
known. Then ``roles`` (which inputs are learnables), ``views`` (which operators only move elements,
and what they do to a view) and ``shape_rules`` (how the shapes of outputs follow from those of
inputs), with ``moving_shapes`` and ``reshaping_shapes``; all three build on ``sizes``.
"""
