"""Decide which stored tensors are learnables.

``rules`` decides, from what torch reported and from the roles of operators. ``number_sources``
finds where the numbers of a value come from, and ``accidental`` finds ties that started as equal
constants.
"""
