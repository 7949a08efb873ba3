"""One copy of a tied weight on the CPU: which weights, mapped or packed, and shared by sessions.

``weights`` decides and arranges; ``stored`` reads what a file holds, ``mapped`` maps it,
``fused`` keeps a transposed product from making a copy, ``shared`` is for several models at once.
"""
