"""Compare two models as graphs, without running them.

Read ``graphs`` first: it compares the models by ``layer_pairs`` and ``parameter_pairs``, and
returns ``difference`` objects.
"""
