"""One copy of a tied weight on the CPU: which weights, mapped or packed, and shared by sessions.

Read ``single_copy`` first: it decides and prepares. ``stored_weights`` reads what a file holds,
``mapped_weights`` maps it, ``fused_matmul`` keeps a transposed product from making a copy, and
``shared_weights`` finds what several models have in common.
"""
