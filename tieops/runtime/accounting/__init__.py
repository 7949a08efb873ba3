"""Count the copies of each weight that a session holds, in the graph that ONNX Runtime made.

Read ``ledger`` first: it is ``tieops.resident_bytes``. ``probe`` reopens the session in a separate
process, ``optimized`` reads the graph that it dumped, and ``resident`` is the result.
"""
