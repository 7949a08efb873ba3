"""What an edit changed: two models compared as graphs, without running them.

``graphs`` compares them, by ``layer_pairs`` and ``parameter_pairs``; the result is a
``difference``.
"""
