"""How many copies of a weight a session holds, counted in the graph that ONNX Runtime made.

``ledger`` is ``tieops.resident_bytes``; ``probe`` opens the session again in a process of its own,
``optimized`` reads what it wrote, and ``resident`` is what is told.
"""
