"""What operators mean: the only place that knows them by name.

Read ``operands`` first: how an operand that may be an attribute or an input is read, and when it is
known. Then ``roles`` (which inputs are learnables), ``views`` (which operators only move elements,
and what they do to a view).
"""
