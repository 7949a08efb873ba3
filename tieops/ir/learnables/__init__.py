"""What counts as a learnable.

``rules`` decides it, from what torch said and from the roles of operators; ``number_sources``
says where the numbers of a value come from, ``accidental`` which ties began as equal constants.
"""
